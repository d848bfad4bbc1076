"""Every mode of pools in two networks that know no pod: who reaches whom, what is on the wire, and what
is left when a mode is changed while pods talk."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tortie.lab.cluster import Lab, LabNode, wait_until
from tortie.lab.traffic import Stream
from tortie.lab.wire import Capture

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

V4, V6 = "default-ipv4-ippool", "default-ipv6-ippool"
NODES = {"a": "node-1", "b": "node-2", "c": "node-3"}  # pod -> its node; node-3 is behind the router


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two nodes in a network and one in another, with both families; a pod on each."""
    lab = Lab(tmp_path_factory.mktemp("lab"), 3, ipv6=True, remote=1, agent_env=ENV)
    try:
        lab.up()
        for pod, node in NODES.items():
            lab.add_pod(pod, node)
        yield lab
    finally:
        lab.down()


ENV = {"CALICO_IPV4POOL_VXLAN": "Always", "CALICO_IPV6POOL_VXLAN": "Always"}


def test_x(lab: Lab) -> None:
    import time
    time.sleep(4)
    for n in lab.nodes.values():
        print(n.box.output("sh", "-c", "ip route; ip -6 route; ip -d link show vxlan.calico;ip -d link show vxlan-v6.calico; ip a; bridge fdb show; ip neigh; cat /var/lib/calico/mtu"))
        print(n.log.read_text()[-3000:])
    addresses = {a for p in lab.pods.values() for a in p.addresses}
    with Capture(addresses) as capture:
        print(lab.matrix())
        print(lab.matrix(version=6))
    print(capture.seen)
    assert 0
