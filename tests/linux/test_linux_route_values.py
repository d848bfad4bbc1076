"""Routes as values: their wire form, agreement with pyroute2, and when two are the same."""

from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from tortie.core.errors import KernelError
from tortie.linux import codec, routes

pytestmark = pytest.mark.unit


def networks(family: int) -> st.SearchStrategy[str]:
    bits = 32 if family == 4 else 128

    def cidr(packed: int, prefix: int) -> str:
        packed &= ~((1 << (bits - prefix)) - 1)
        return f"{codec.unpack_address(packed.to_bytes(bits // 8, 'big'))}/{prefix}"

    return st.builds(cidr, st.integers(0, 2**bits - 1), st.integers(0, bits))


def hosts(family: int) -> st.SearchStrategy[str]:
    size = 4 if family == 4 else 16
    return st.binary(min_size=size, max_size=size).map(codec.unpack_address)


indices = st.integers(1, 2**31 - 1)


def route_values(family: int) -> st.SearchStrategy[routes.Route]:
    gateways = st.one_of(hosts(family), hosts(6))
    hop = st.builds(routes.NextHop, gateways, indices, st.integers(1, 256), st.booleans())
    common = {
        "scope": st.integers(0, 255), "protocol": st.integers(0, 255), "metric": st.integers(0, 2**32 - 1),
        "table": st.integers(1, 2**32 - 1), "tos": st.integers(0, 255), "src": st.none() | hosts(family),
        "mtu": st.integers(0, 2**32 - 1),
    }  # fmt: skip
    plain = st.builds(
        routes.Route, networks(family), ifindex=st.none() | indices, gateway=st.none() | gateways,
        onlink=st.booleans(), type=st.just(routes.RouteType.UNICAST), **common,
    )  # fmt: skip
    multipath = st.builds(
        routes.Route, networks(family), nexthops=st.lists(hop, min_size=2, max_size=4).map(tuple), **common
    )
    nowhere = st.builds(
        routes.Route, networks(family), type=st.sampled_from(sorted(routes._WITHOUT_INTERFACE)), **common
    )
    return st.one_of(plain, multipath, nowhere)


any_route = st.one_of(route_values(4), route_values(6))


@given(any_route)
def test_a_route_survives_the_wire(route: routes.Route) -> None:
    assert routes.decode(routes.replace_message(route).body) == route


@given(any_route)
def test_pyroute2_reads_what_we_write(route: routes.Route) -> None:
    message = rtmsg(codec.frame(routes.replace_message(route), 1, 4))
    message.decode()
    address = message.get_attr("RTA_DST") or ("::" if ":" in route.dst else "0.0.0.0")
    assert ip_address(address) == ip_address(route.dst.split("/")[0])
    assert message["dst_len"] == int(route.dst.split("/")[1])
    assert (message.get_attr("RTA_TABLE") or message["table"]) == route.table
    assert (message["proto"], message["scope"], message["type"]) == (route.protocol, route.scope, route.type)
    assert (message.get_attr("RTA_PRIORITY") or 0) == route.metric
    assert message["tos"] == route.tos
    metrics = message.get_attr("RTA_METRICS")
    assert (metrics.get_attr("RTAX_MTU") if metrics else 0) == route.mtu
    if not route.nexthops:
        assert message.get_attr("RTA_OIF") == route.ifindex
    else:
        found = message.get_attr("RTA_MULTIPATH")
        assert [(h["oif"], h["hops"] + 1, bool(h["flags"] & 4)) for h in found] == [
            (h.ifindex, h.weight, h.onlink) for h in route.nexthops
        ]


@given(any_route)
def test_sameness_is_reflexive_and_survives_what_the_kernel_does(route: routes.Route) -> None:
    assert routes.same(route, route)
    assert routes.same(route, routes.normalise(route))
    assert routes.normalise(routes.normalise(route)) == routes.normalise(route)
    assert routes.normalise(route).key == route.key


CHANGES: dict[str, Callable[[routes.Route], routes.Route]] = {
    "protocol": lambda route: replace(route, protocol=route.protocol ^ 1),
    "table": lambda route: replace(route, table=route.table ^ 1),
    "tos": lambda route: replace(route, tos=route.tos ^ 4),
    "mtu": lambda route: replace(route, mtu=1 if route.mtu > 1 else 2),
    "metric": lambda route: replace(route, metric=route.metric + 5000),
}


@given(any_route, st.sampled_from(sorted(CHANGES)))
def test_any_change_is_seen(route: routes.Route, name: str) -> None:
    assert not routes.same(route, CHANGES[name](route))


U = routes.Route
HOP = routes.NextHop


@pytest.mark.parametrize(
    ("desired", "actual", "expected"),
    [
        # IPv6: metric 0 is 1024, scope is always global.
        (U("fd00::/64", ifindex=2, scope=253), U("fd00::/64", ifindex=2, metric=1024), True),
        (U("fd00::/64", ifindex=2, metric=512), U("fd00::/64", ifindex=2, metric=1024), False),
        # IPv4: neither.
        (U("10.0.0.0/8", ifindex=2, scope=253), U("10.0.0.0/8", ifindex=2), False),
        (U("10.0.0.0/8", ifindex=2), U("10.0.0.0/8", ifindex=2, metric=1024), False),
        # The kernel finds the interface of a gateway.
        (U("10.0.0.0/8", gateway="10.9.9.9"), U("10.0.0.0/8", gateway="10.9.9.9", ifindex=7), True),
        (U("10.0.0.0/8", gateway="10.9.9.9"), U("10.0.0.0/8", gateway="10.9.9.8", ifindex=7), False),
        (
            U("10.0.0.0/8", gateway="10.9.9.9", ifindex=6),
            U("10.0.0.0/8", gateway="10.9.9.9", ifindex=7),
            False,
        ),
        # A route without interface.
        (
            U("10.0.0.0/8", type=routes.RouteType.THROW, ifindex=1),
            U("10.0.0.0/8", type=routes.RouteType.THROW),
            True,
        ),
        (
            U("10.0.0.0/8", type=routes.RouteType.THROW),
            U("10.0.0.0/8", type=routes.RouteType.BLACKHOLE),
            False,
        ),
        # Multipath: one hop is none, order is free, weights count.
        (
            U("10.0.0.0/8", nexthops=(HOP("10.1.1.1", 2),)),
            U("10.0.0.0/8", gateway="10.1.1.1", ifindex=2),
            True,
        ),
        (
            U("10.0.0.0/8", nexthops=(HOP("10.1.1.1", 2), HOP("10.1.1.2", 2, 3))),
            U("10.0.0.0/8", nexthops=(HOP("10.1.1.2", 2, 3), HOP("10.1.1.1", 2))),
            True,
        ),
        (
            U("10.0.0.0/8", nexthops=(HOP("10.1.1.1"), HOP("10.1.1.2"))),
            U("10.0.0.0/8", nexthops=(HOP("10.1.1.2", 3), HOP("10.1.1.1", 2))),
            True,
        ),
        (
            U("10.0.0.0/8", nexthops=(HOP("10.1.1.1", 2), HOP("10.1.1.2", 2, 3))),
            U("10.0.0.0/8", nexthops=(HOP("10.1.1.2", 2, 1), HOP("10.1.1.1", 2))),
            False,
        ),
        (
            U("10.0.0.0/8", nexthops=(HOP("10.1.1.1", 2), HOP("10.1.1.2", 2))),
            U("10.0.0.0/8", gateway="10.1.1.1", ifindex=2),
            False,
        ),
    ],
)
def test_sameness_knows_the_kernels_ways(desired: routes.Route, actual: routes.Route, expected: bool) -> None:
    assert routes.same(desired, actual) is expected


@pytest.mark.parametrize(
    "cidr",
    ["10.0.0.1/24", "fd00::1/64", "10.0.0.0", "10.0.0.0/33", "fd00::/129", "FD00::/64", "fd00:0::/64",
     "10.0.0.0/-1", "10.0.0.0/08", "10.0.0.0/ 8", "10.0.0.0/٨", "x/8", "", "10.0.0.0/8/8"],
)  # fmt: skip
def test_a_destination_that_the_kernel_would_change_is_refused(cidr: str) -> None:
    with pytest.raises(KernelError):
        routes.replace_message(routes.Route(cidr, ifindex=1))


@pytest.mark.parametrize("weight", [0, 257])
def test_an_impossible_weight_is_refused(weight: int) -> None:
    hops = (HOP("10.1.1.1", 2, weight), HOP("10.1.1.2", 2))
    with pytest.raises(KernelError, match=f"weight {weight}"):
        routes.replace_message(U("10.0.0.0/8", nexthops=hops))
