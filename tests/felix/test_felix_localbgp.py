"""Which workloads are BGP peers, and the address that they peer with."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.netns_lab import Namespace
from tortie.datastore.keys import ResourceKey
from tortie.datastore.syncer import Update
from tortie.datastore.types.bgp import BGPConfiguration, BGPConfigurationSpec, BGPPeer, BGPPeerSpec
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node
from tortie.felix.calc.model import Workload, WorkloadId
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.localbgp import LocalBGP
from tortie.linux import addresses, links

_NODE = Node(metadata=ObjectMeta(name="here", labels={"rack": "1"}))
_ONE, _TWO = (
    Workload(WorkloadId("k8s", f"default/w{n}", "eth0"), f"cali{n}", (f"10.0.0.{n}/32",)) for n in (1, 2)
)


def _told(local: LocalBGP, kind: str, name: str, value: Any) -> None:
    namespace = "default" if kind == "WorkloadEndpoint" else ""
    local.take(Update("deleted" if value is None else "updated", ResourceKey(kind, name, namespace), value))


def _peer(local: LocalBGP, name: str, **spec: str) -> None:
    _told(local, "BGPPeer", name, BGPPeer(metadata=ObjectMeta(name=name), spec=BGPPeerSpec(**spec)))  # type: ignore[arg-type]


def _endpoint(local: LocalBGP, number: int, node: str = "here", interface: str = "", **labels: str) -> None:
    meta = ObjectMeta(name=f"w{number}", namespace="default", labels=labels)
    spec = WorkloadEndpointSpec(node=node, interfaceName=interface or f"cali{number}")
    _told(local, "WorkloadEndpoint", f"w{number}", WorkloadEndpoint(metadata=meta, spec=spec))


def _peering(local: LocalBGP, v4: str, v6: str = "") -> None:
    spec = BGPConfigurationSpec(localWorkloadPeeringIPV4=v4, localWorkloadPeeringIPV6=v6)
    _told(
        local, "BGPConfiguration", "default", BGPConfiguration(metadata=ObjectMeta(name="default"), spec=spec)
    )


def _noted(local: LocalBGP) -> dict[str, str]:
    local.note([_ONE, _TWO], _NODE)
    return dict(local.peers)


@pytest.mark.unit
def test_the_first_that_is_for_this_node_and_selects() -> None:
    local = LocalBGP("here", {}, ("cali",))
    _endpoint(local, 1, color="red")
    _endpoint(local, 2, color="blue")
    _endpoint(local, 3, node="elsewhere", color="red")
    _peer(local, "b", localWorkloadSelector="color == 'red'", nodeSelector="rack == '1'")
    _peer(local, "c", localWorkloadSelector="has(color)", node="elsewhere")
    assert _noted(local) == {"cali1": "b"}
    _peer(local, "a", localWorkloadSelector="has(color)")
    assert _noted(local) == {"cali1": "a", "cali2": "a"}
    _told(local, "BGPPeer", "a", None)
    _endpoint(local, 1, color="green")
    _endpoint(local, 2, color="red")
    assert _noted(local) == {"cali2": "b"}
    _peer(local, "b", peerIP="10.0.0.9")
    assert _noted(local) == {}


@pytest.mark.kernel
def test_its_address_is_on_their_interfaces_only(make_netns: Callable[[], Namespace]) -> None:
    ns = make_netns()
    for name in ("cali1", "cali2"):
        ns.veth(name, f"far{name[-1]}")
    seen = Interfaces()
    local = LocalBGP("here", {}, ("cali",))
    _endpoint(local, 1, color="red")
    _endpoint(local, 2, color="blue")
    _peer(local, "p", localWorkloadSelector="color == 'red'")

    def set_up() -> dict[str, set[str]]:
        seen.reread(links.dump(ns.netlink), addresses.dump(ns.netlink), 0.0)
        seen.settle(1000.0)
        _noted(local)
        local.set_addresses(ns.netlink, seen, [_ONE, _TWO])
        found: dict[str, set[str]] = {"cali1": set(), "cali2": set()}
        for one in ns.ip("addr"):
            for address in one["addr_info"]:
                if one["ifname"] in found and not address["local"].startswith("fe80:"):
                    found[one["ifname"]].add(f"{address['local']}/{address['prefixlen']}")
        return found

    assert set_up() == {"cali1": set(), "cali2": set()}
    _peering(local, "10.255.0.1", "fd00:255::1")
    assert set_up() == {"cali1": {"10.255.0.1/32", "fd00:255::1/128"}, "cali2": set()}
    _endpoint(local, 1)
    _endpoint(local, 2, color="red")
    _peering(local, "10.255.0.2")
    assert set_up() == {"cali1": set(), "cali2": {"10.255.0.2/32"}}
    _told(local, "BGPPeer", "p", None)
    assert set_up() == {"cali1": set(), "cali2": set()}


@pytest.mark.kernel
def test_an_endpoint_on_an_interface_of_the_host_costs_it_no_address(
    make_netns: Callable[[], Namespace],
) -> None:
    ns = make_netns()
    ns.veth("eth0", "far")
    ns.sh("ip address add 2001:db8::7/64 dev eth0 nodad")
    ns.sh("ip address add 10.0.0.7/24 dev eth0 scope link")
    seen = Interfaces()
    seen.reread(links.dump(ns.netlink), addresses.dump(ns.netlink), 0.0)
    seen.settle(1000.0)
    local = LocalBGP("here", {}, ("cali",))
    _endpoint(local, 1, interface="eth0")
    local.set_addresses(ns.netlink, seen, [])
    held = {one.address for one in addresses.dump(ns.netlink) if not one.address.startswith("fe80:")}
    assert {"2001:db8::7", "10.0.0.7"} <= held
