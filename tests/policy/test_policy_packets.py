"""The truth table, and policies by chance, with real packets in both dataplanes."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.policy import chance
from tests.policy.board import BUILT_IN_TIERS, STANDARD, Case, Json, Probe, imaginary, packet_of
from tests.policy.naive import World
from tests.policy.stage import Stage
from tests.policy.table import CASES
from tortie.core.speaker import Speaker
from tortie.lab.cluster import Lab

# Each test takes a minute on two idle cores, and busy ones have ten times as long at most.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

CELLS = 16  # cases at a time: 80 pods
CLUSTERS = 48  # by chance


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def stage(
    request: pytest.FixtureRequest, speaker: Speaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    mode = {"iptables": "Disabled", "nftables": "Enabled"}[request.param]
    env = {"FELIX_NFTABLESMODE": mode}
    lab = Lab(tmp_path_factory.mktemp(request.param), 3, ipv6=True, speakers=(speaker,), agent_env=env)
    try:
        lab.up()
        with Stage(lab, CELLS) as stage:
            for node in lab.nodes.values():
                by_nftables = "table ip calico" in node.box.output("nft", "list", "tables")
                assert by_nftables == (request.param == "nftables")
            yield stage
    finally:
        lab.down()


def report(wrong: list[str]) -> str:
    return "\n".join([f"{len(wrong)} probes went otherwise:", *wrong[:200]])


def test_every_case_is_enforced_as_specified(stage: Stage) -> None:
    wrong = stage.play(CASES)
    assert not wrong, report(wrong)


def test_policies_by_chance_are_enforced_as_specified(stage: Stage) -> None:
    wrong = stage.play([by_chance(number, one) for number, one in enumerate(some_clusters())])
    assert not wrong, report(wrong)


def some_clusters() -> list[list[Json]]:
    """The same ones every time."""
    found: list[list[Json]] = []

    @settings(
        max_examples=CLUSTERS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(chance.resources(wide=False))
    def collect(resources: list[Json]) -> None:
        found.append(resources)

    collect()
    return found


def by_chance(number: int, resources: list[Json]) -> Case:
    """What the specification says of them, in a cell like the real ones."""
    cell = imaginary(7)
    world = World([*BUILT_IN_TIERS, *cell.background(), *cell.endpoints(), *cell.filled(resources)])
    passes = {probe: world.allowed(packet_of(probe, cell)) for probe in STANDARD}

    def expect(probe: Probe) -> bool:
        return passes[probe]

    return Case(f"by chance {number} {resources}", tuple(resources), expect, STANDARD)
