"""What felix's tests on a node share: the node, felix as a process, felix's driver alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.felix.driver_lab import Felix
from tests.felix.node_lab import Node
from tests.felix.process_lab import FelixProcess, basics
from tests.netns_lab import Namespace
from tests.support.etcd import Etcd


@pytest.fixture
def node(make_netns: Callable[[], Namespace]) -> Node:
    return Node(make_netns)


@pytest.fixture
def felix(node: Node, etcd: Etcd, tmp_path: Path) -> Iterator[FelixProcess]:
    """Not started; its datastore has the profile `open`."""
    process = FelixProcess(node, etcd, tmp_path)
    basics(process, "open")
    yield process
    process.close()


@pytest.fixture(params=["iptables", "nftables"])
def dataplane(request: pytest.FixtureRequest) -> str:
    """Which one enforces: what felix does for packets is the same."""
    return str(request.param)


@pytest.fixture
def make_felix(node: Node, dataplane: str) -> Iterator[Callable[..., Felix]]:
    """Makes drivers, with any options; one after another, as if felix started anew."""
    made: list[Felix] = []

    def make(**options: Any) -> Felix:
        made.append(Felix(node, **{"nftables": dataplane == "nftables", **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()
