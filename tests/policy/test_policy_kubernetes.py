"""The truth table's cases that Kubernetes can say, as plain NetworkPolicies on a Kubernetes datastore."""

from collections.abc import Iterator

import pytest

from tests.policy.kubernetes import native_cases
from tests.policy.stage import Stage
from tests.support.kubernetes import programs
from tortie.core.speaker import Speaker
from tortie.lab.cluster import Lab

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]  # a minute on two idle cores

CELLS = 6  # cases at a time: 30 pods


@pytest.fixture(scope="module")
def stage(speaker: Speaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    programs("kube-apiserver")
    env, folder = {"FELIX_NFTABLESMODE": "Disabled"}, tmp_path_factory.mktemp("lab")
    lab = Lab(folder, 3, ipv6=True, speakers=(speaker,), agent_env=env, kubernetes=True)
    try:
        lab.up()
        with Stage(lab, CELLS, hosts=False) as stage:
            yield stage
    finally:
        lab.down()


def test_every_case_is_enforced_as_specified(stage: Stage) -> None:
    cases = list(native_cases())
    assert len(cases) >= 30
    wrong = stage.play(cases)
    assert not wrong, "\n".join([f"{len(wrong)} probes went otherwise:", *wrong[:200]])
