"""The truth table with real packets, in both dataplanes."""

from collections.abc import Iterator

import pytest

from tests.policy.stage import Stage
from tests.policy.table import CASES
from tortie.lab.cluster import Lab

pytestmark = pytest.mark.cluster

CELLS = 16  # cases at a time: 80 pods


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    mode = {"iptables": "Disabled", "nftables": "Enabled"}[request.param]
    lab = Lab(tmp_path_factory.mktemp(request.param), 3, ipv6=True, agent_env={"FELIX_NFTABLESMODE": mode})
    try:
        lab.up()
        with Stage(lab, CELLS) as stage:
            yield stage
    finally:
        lab.down()


@pytest.mark.timeout(400)  # a thousand cases; three minutes on an idle machine
def test_every_case_is_enforced_as_specified(stage: Stage) -> None:
    wrong = stage.play(CASES)
    assert not wrong, f"{len(wrong)} probes of {len({w.split(': ')[1] for w in wrong})} cases:\n" + "\n".join(
        wrong[:200]
    )
