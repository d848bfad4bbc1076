"""The lab of the cluster tier: one per module, three nodes, real everything."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster_bgp import Peers
from tortie.core.speaker import Speaker
from tortie.lab.cluster import Lab, wait_until


@pytest.fixture(scope="module")
def lab(speaker: Speaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three ready nodes and no pods."""
    lab = Lab(tmp_path_factory.mktemp("lab"), 3, speakers=(speaker,))
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


@pytest.fixture
def pods(lab: Lab) -> Iterator[Lab]:
    """The lab with four pods that reach each other: a and d on node-1, b on node-2, c on node-3."""
    try:
        for name, node in [("a", "node-1"), ("b", "node-2"), ("c", "node-3"), ("d", "node-1")]:
            lab.add_pod(name, node, labels={"app": name})
        wait_until(lambda: all(a.ok for a in lab.matrix().values()), "the pods to reach each other", 120)
        yield lab
    finally:  # else one test's failure would be that of all after it
        for name in list(lab.pods):
            lab.delete_pod(name)


@pytest.fixture
def peers(lab: Lab) -> Iterator[Peers]:
    """BGPPeers for one test."""
    peers = Peers(lab)
    yield peers
    peers.clear()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path
