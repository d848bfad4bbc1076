"""The truth table's cases that Kubernetes can say, as plain NetworkPolicies among kubelets' pods."""

from collections.abc import Iterator

import pytest

from tests.kube.kube_place import KubePlace
from tests.policy.kubernetes import native_cases
from tests.policy.stage import Stage
from tortie.lab.kube import KubeLab

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1800)]

CELLS = 6  # cases at a time: 30 pods


@pytest.fixture
def stage(cluster: KubeLab) -> Iterator[Stage]:
    place = KubePlace(cluster)
    try:
        with Stage(place, CELLS, hosts=False, versions=(4,)) as stage:
            yield stage
    finally:
        place.clear()


def test_every_case_is_enforced_as_specified(stage: Stage) -> None:
    cases = list(native_cases())
    assert len(cases) >= 30
    wrong = stage.play(cases)
    assert not wrong, "\n".join([f"{len(wrong)} probes went otherwise:", *wrong[:200]])
