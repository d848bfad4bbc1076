"""A real Kubernetes for the whole run, with our network installed by the manifest."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.kubernetes import programs
from tortie.lab import kube
from tortie.lab.cluster import wait_until
from tortie.lab.kube import KubeLab
from tortie.lab.kubedemo import WEB, reached


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeLab]:
    """Three ready nodes and no pods but the system's; the parameter is another mode than `node`."""
    programs(*kube.PROGRAMS)
    cluster = KubeLab(tmp_path_factory.mktemp("kube"), mode=getattr(request, "param", "node"))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def web(cluster: KubeLab) -> list[dict[str, Any]]:
    """Three pods of the Deployment `web`, one on each node, that reach each other."""
    cluster.apply(WEB)
    pods = cluster.wait_pods("app=web", 3)
    wait_until(lambda: reached(cluster, pods), "the pods to reach each other", 120, cluster.evidence)
    return pods
