"""Addresses of services: which node announces which."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.confd.confd_cases import MASTER, cluster, configuration, node
from tortie.confd import context
from tortie.confd.services import Advertised, advertised
from tortie.confd.snapshot import Snapshot
from tortie.datastore.types.bgp import CIDRBlock
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.service import (
    SERVICE_LABEL,
    Conditions,
    Endpoint,
    EndpointSlice,
    Ingress,
    LoadBalancer,
    Service,
    ServiceSpec,
    ServiceStatus,
)

pytestmark = pytest.mark.unit

ME, OTHER = MASTER.name, "kube-node-1"
CLUSTER, EXTERNAL, BALANCED = "10.96.0.0/12", "203.0.113.0/24", "198.51.100.0/24"
RANGES = (CLUSTER, BALANCED, EXTERNAL)


def blocks(*cidrs: str) -> tuple[CIDRBlock, ...]:
    return tuple(CIDRBlock(cidr=cidr) for cidr in cidrs)


def ranges(**changes: Any) -> Any:
    given = {
        "serviceClusterIPs": blocks(CLUSTER),
        "serviceExternalIPs": blocks(EXTERNAL),
        "serviceLoadBalancerIPs": blocks(BALANCED),
    }
    return configuration(**given | changes)


def service(name: str, *balanced: str, kind: str = "LoadBalancer", **spec: Any) -> Service:
    given = {"clusterIP": "10.96.0.10", "clusterIPs": ("10.96.0.10",), "ipFamilies": ("IPv4",)}
    return Service(
        metadata=ObjectMeta(name=name, namespace="shop"),
        spec=ServiceSpec(type=kind, **given | spec),
        status=ServiceStatus(loadBalancer=LoadBalancer(ingress=tuple(Ingress(ip=ip) for ip in balanced))),
    )


def endpoints(of: str, *nodes: str, ready: bool | None = None, family: str = "IPv4") -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(name=f"{of}-{family}-{ready}", namespace="shop", labels={SERVICE_LABEL: of}),
        addressType=family,
        endpoints=tuple(Endpoint(nodeName=one, conditions=Conditions(ready=ready)) for one in nodes),
    )


def judge(
    settings: Any, services: Iterable[Service] = (), slices: Iterable[EndpointSlice] = (), me: Any = MASTER
) -> Advertised:
    snapshot: Snapshot = cluster(me, settings)
    snapshot.services = {one.metadata.name: one for one in services}
    snapshot.slices = {one.metadata.name: one for one in slices}
    problems: list[str] = []
    found = advertised(snapshot, me.name, "", problems)
    assert not problems
    return found


def test_every_node_announces_the_ranges_and_programs_none() -> None:
    found = judge(ranges())
    assert found.routes == found.unprogrammed == tuple(sorted(RANGES))
    assert found.reflected == (BALANCED, EXTERNAL)


def test_ranges_of_one_address_come_with_their_service_only() -> None:
    one = ranges(
        serviceExternalIPs=blocks("203.0.113.7/32"), serviceLoadBalancerIPs=blocks("2001:db8::7/128")
    )
    assert judge(one).routes == judge(one).unprogrammed == (CLUSTER,)
    with_service = judge(one, [service("web", externalIPs=("203.0.113.7",))])
    assert with_service.routes == (CLUSTER, "10.96.0.10/32", "203.0.113.7/32"), "even without endpoints"
    assert with_service.unprogrammed == (CLUSTER,)
    balanced = judge(one, [service("web", "2001:db8::7")])
    assert "2001:db8::7/128" in balanced.routes
    asked = judge(one, [service("web", loadBalancerIP="2001:DB8:0::7")])
    assert asked.routes == (CLUSTER, "10.96.0.10/32"), "asked for, and not given yet"
    no_balancer = judge(one, [service("web", "2001:db8::7", kind="NodePort")])
    assert no_balancer.routes == (CLUSTER,)


def test_without_aggregation_load_balancers_have_no_range() -> None:
    apart = ranges(serviceLoadBalancerAggregation="Disabled")
    assert judge(apart).routes == judge(apart).unprogrammed == (CLUSTER, EXTERNAL)
    found = judge(apart, [service("web", "198.51.100.9")], [endpoints("web", OTHER)])
    assert set(found.routes) == {"10.96.0.10/32", CLUSTER, "198.51.100.9/32", EXTERNAL}
    lonely = judge(apart, [service("web", "198.51.100.9")], [endpoints("web", OTHER, ready=False)])
    assert lonely.routes == (CLUSTER, EXTERNAL)


@pytest.mark.parametrize(
    ("changes", "slices"),
    [
        ({}, [endpoints("web", ME)]),
        ({"externalTrafficPolicy": "Local"}, []),
        ({"externalTrafficPolicy": "Local"}, [endpoints("web", OTHER)]),  # not on this node
        ({"externalTrafficPolicy": "Local"}, [endpoints("web", ME, ready=False)]),
        ({"externalTrafficPolicy": "Local"}, [endpoints("web", ME, family="IPv6")]),
        ({"externalTrafficPolicy": "Local"}, [endpoints("other", ME)]),
        ({"externalTrafficPolicy": "Local", "clusterIP": "None"}, [endpoints("web", ME)]),
        ({"externalTrafficPolicy": "Local", "kind": "ExternalName"}, [endpoints("web", ME)]),
    ],
)
def test_what_is_not_announced_by_itself(changes: dict[str, Any], slices: list[EndpointSlice]) -> None:
    found = judge(ranges(), [service("web", "198.51.100.9", **changes)], slices)
    assert found.routes == tuple(sorted(RANGES))


@pytest.mark.parametrize("ready", [None, True])
def test_a_local_service_is_announced_where_its_endpoints_are(ready: bool | None) -> None:
    web = service(
        "web", "198.51.100.9", externalTrafficPolicy="Local", externalIPs=("203.0.113.7", "8.8.8.8")
    )
    found = judge(ranges(), [web], [endpoints("web", OTHER), endpoints("web", ME, ready=ready)])
    single = {"10.96.0.10/32", "198.51.100.9/32", "203.0.113.7/32"}
    assert set(found.routes) == {*RANGES, *single}, "no address outside the ranges"
    assert found.unprogrammed == tuple(sorted(RANGES))


def test_cluster_addresses_need_a_cluster_range() -> None:
    web = service("web", externalTrafficPolicy="Local")
    found = judge(ranges(serviceClusterIPs=()), [web], [endpoints("web", ME)])
    assert found.routes == (BALANCED, EXTERNAL)


def test_an_excluded_node_announces_nothing_and_programs_nothing_either() -> None:
    label = {"node.kubernetes.io/exclude-from-external-load-balancers": "true"}
    me = node(ME, "10.192.0.2/16", labels=label)
    web = service("web", "198.51.100.9", externalTrafficPolicy="Local")
    found = judge(ranges(), [web], [endpoints("web", ME)], me)
    assert (found.routes, found.unprogrammed) == ((), tuple(sorted(RANGES)))
    almost = node(ME, "10.192.0.2/16", labels=dict.fromkeys(label, "True"))
    assert judge(ranges(), me=almost).routes


def test_two_services_with_one_address() -> None:
    pair = [service(name, "198.51.100.9", externalTrafficPolicy="Local") for name in ("one", "two")]
    both = judge(ranges(), pair, [endpoints("one", ME), endpoints("two", ME)])
    left = judge(ranges(), pair, [endpoints("two", ME)])
    assert "198.51.100.9/32" in both.routes and left.routes == both.routes
    assert "198.51.100.9/32" not in judge(ranges(), pair, []).routes


def test_the_environment_takes_the_place_of_cluster_ranges() -> None:
    snapshot = cluster(MASTER, ranges())
    assert advertised(snapshot, ME, "10.200.0.1/16", []).routes[0] == "10.200.0.0/16"
    problems: list[str] = []
    wrong = cluster(MASTER, ranges(serviceExternalIPs=blocks("", "no network")))
    assert advertised(wrong, ME, "", problems).routes == (CLUSTER, BALANCED)
    assert problems == ["BGPConfiguration default: serviceExternalIPs: 'no network' is not an address"]


def test_the_agent_is_told() -> None:
    made = context.build(cluster(MASTER, ranges()), ME, cluster_ips="10.200.0.0/16").config
    assert made.services == made.service_ranges == ("10.200.0.0/16", BALANCED, EXTERNAL)
    assert made.reflected_ranges == (BALANCED, EXTERNAL)
