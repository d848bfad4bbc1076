"""Routes in a real kernel: every shape as `ip` and pyroute2 see it, filters, events of one batch."""

import errno
from collections.abc import Callable
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute

from tests.netns_lab import Namespace, eventually
from tortie.core.errors import KernelError
from tortie.linux import links, routes
from tortie.linux.routes import NextHop, Route, RouteKey, RouteType, delete_message, replace_message

pytestmark = pytest.mark.kernel


class Node:
    """A namespace with two running interfaces a and b; a has 10.0.0.1/24."""

    def __init__(self, ns: Namespace) -> None:
        self.ns = ns
        self.a, _ = ns.veth("a", "a-peer")
        self.b, _ = ns.veth("b", "b-peer")
        ns.run("ip", "address", "add", "10.0.0.1/24", "dev", "a")
        ns.run("ip", "address", "add", "fd99::1/64", "dev", "a", "nodad")
        eventually(lambda: any(one.dst == "fd99::1/128" for one in routes.dump(ns.netlink)))

    def put(self, *wanted: Route) -> None:
        self.ns.netlink.execute(*(replace_message(route) for route in wanted))

    def found(self, key: RouteKey) -> list[Route]:
        return [route for route in routes.dump(self.ns.netlink) if route.key == key]


@pytest.fixture
def node(netns: Namespace) -> Node:
    return Node(netns)


Shape = Callable[[Node], Route]

SHAPES: dict[str, Shape] = {
    "workload": lambda n: Route("10.2.0.5/32", ifindex=n.a, scope=253, metric=1024),
    "workload by CNI, no metric": lambda n: Route("10.2.0.6/32", ifindex=n.a, scope=253),
    "block by gateway": lambda n: Route("10.5.0.0/26", gateway="10.0.0.9", ifindex=n.a, protocol=186),
    "gateway finds its interface": lambda n: Route("10.5.1.0/26", gateway="10.0.0.9"),
    "onlink, gateway not on the link": lambda n: Route(
        "10.5.2.0/26", gateway="192.0.2.1", ifindex=n.a, onlink=True, protocol=80
    ),
    "vxlan": lambda n: Route("10.5.3.0/26", gateway="10.5.3.1", ifindex=n.b, onlink=True, mtu=1450),
    "blackhole": lambda n: Route("10.3.0.0/26", type=RouteType.BLACKHOLE, protocol=80),
    "unreachable": lambda n: Route("10.3.1.0/26", type=RouteType.UNREACHABLE, metric=7),
    "prohibit": lambda n: Route("10.3.2.0/26", type=RouteType.PROHIBIT),
    "throw in a table": lambda n: Route("10.3.3.0/26", type=RouteType.THROW, table=1),
    "large table": lambda n: Route("10.3.4.0/26", ifindex=n.a, scope=253, table=70_000),
    "local": lambda n: Route(
        "10.3.5.1/32", type=RouteType.LOCAL, ifindex=n.a, scope=routes.SCOPE_HOST, table=routes.TABLE_LOCAL
    ),
    "preferred source": lambda n: Route("10.5.4.0/26", gateway="10.0.0.9", ifindex=n.a, src="10.0.0.1"),
    "type of service": lambda n: Route("10.5.5.0/26", ifindex=n.a, scope=253, tos=16),
    "default": lambda n: Route("0.0.0.0/0", gateway="10.0.0.9", ifindex=n.a, metric=9),
    "IPv4 over IPv6": lambda n: Route("10.5.6.0/26", gateway="fe80::9", ifindex=n.a),
    "multipath": lambda n: Route(
        "10.6.0.0/26", nexthops=(NextHop("10.0.0.9", n.a, 3), NextHop("192.0.2.9", n.b, 1, onlink=True))
    ),
    "multipath of one": lambda n: Route("10.6.1.0/26", nexthops=(NextHop("10.0.0.9", n.a),)),
    "multipath without gateways": lambda n: Route(
        "10.6.2.0/26", nexthops=(NextHop(None, n.a), NextHop(None, n.b, 2)), scope=253
    ),
    "an MTU too large": lambda n: Route("10.6.3.0/26", ifindex=n.a, mtu=70_000),
    "v6 workload": lambda n: Route("fd02::5/128", ifindex=n.a, scope=253, metric=1024),
    "v6 workload by CNI, no metric": lambda n: Route("fd02::6/128", ifindex=n.a, scope=253),
    "v6 block by gateway": lambda n: Route("fd05::/122", gateway="fd99::9", ifindex=n.a, protocol=186),
    "v6 by link-local gateway": lambda n: Route("fd05:1::/122", gateway="fe80::9", ifindex=n.a, metric=512),
    "v6 onlink": lambda n: Route("fd05:2::/122", gateway="2001:db8::1", ifindex=n.a, onlink=True),
    "v6 vxlan": lambda n: Route("fd05:3::/122", gateway="fd05:3::", ifindex=n.b, onlink=True, mtu=1430),
    "v6 blackhole": lambda n: Route("fd03::/122", type=RouteType.BLACKHOLE, protocol=80),
    "v6 unreachable": lambda n: Route("fd03:1::/122", type=RouteType.UNREACHABLE, metric=7),
    "v6 prohibit": lambda n: Route("fd03:2::/122", type=RouteType.PROHIBIT),
    "v6 throw in a table": lambda n: Route("fd03:3::/122", type=RouteType.THROW, table=1),
    "v6 large table": lambda n: Route("fd03:4::/122", ifindex=n.a, table=70_000),
    "v6 preferred source": lambda n: Route("fd05:4::/122", gateway="fd99::9", ifindex=n.a, src="fd99::1"),
    "v6 default": lambda n: Route("::/0", gateway="fe80::9", ifindex=n.a),
    "v6 multipath": lambda n: Route(
        "fd06::/122", nexthops=(NextHop("fd99::9", n.a, 3), NextHop("2001:db8::9", n.b, 1, onlink=True))
    ),
    "v6 multipath of one": lambda n: Route("fd06:1::/122", nexthops=(NextHop("fd99::9", n.a),)),
}


def ip_view(node: Node, route: Route) -> dict[str, Any]:
    """The route as `ip` shows it, the keys that matter only."""
    family = "-6" if route.family == AF_INET6 else "-4"
    shown = node.ns.ip("-N", "-d", family, "route", "show", "table", str(route.table), "exact", route.dst)
    assert len(shown) == 1, shown
    return dict(shown[0])


def expected_by_ip(node: Node, route: Route) -> dict[str, Any]:
    """What `ip` should show of a wish: the plainest translation of Route into ip's words."""
    route = routes.normalise(route)
    names = {node.a: "a", node.b: "b"}
    dst = route.dst.removesuffix("/32" if route.family == AF_INET else "/128")
    out: dict[str, Any] = {"type": str(int(route.type))}
    out["dst"] = "default" if dst in ("0.0.0.0/0", "::/0") else dst
    out["protocol"] = str(route.protocol)
    out["scope"] = {0: "0", 253: "253", 254: "254"}[route.scope]
    if route.metric:
        out["metric"] = route.metric
    if route.tos:
        out["tos"] = f"0x{route.tos:02x}"
    if route.src:
        out["prefsrc"] = route.src
    if route.mtu:
        out["metrics"] = [{"mtu": route.mtu}]
    if route.nexthops:
        out["nexthops"] = [
            {"gateway": hop.gateway, "dev": names[hop.ifindex or 0], "weight": hop.weight,
             "flags": ["onlink"] if hop.onlink else []} for hop in route.nexthops
        ]  # fmt: skip
        for hop in out["nexthops"]:
            if hop["gateway"] is None:
                del hop["gateway"]
    elif route.type in (RouteType.UNICAST, RouteType.LOCAL):
        if route.gateway and ":" in route.gateway and route.family == AF_INET:
            out["via"] = {"family": "inet6", "host": route.gateway}
        elif route.gateway:
            out["gateway"] = route.gateway
        out["dev"] = "a" if route.ifindex is None else names[route.ifindex]
    elif route.family == AF_INET6:
        out["dev"] = "lo"
    out["flags"] = ["onlink"] if route.onlink else []
    return out


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_in_the_kernel_as_wished(node: Node, name: str) -> None:
    route = SHAPES[name](node)
    node.put(route)
    (actual,) = node.found(route.key)
    assert routes.same(route, actual)
    if route.ifindex is not None or route.type in routes._WITHOUT_INTERFACE:
        assert actual == routes.normalise(route)
    shown, expected = ip_view(node, route), expected_by_ip(node, route)
    for view in (shown, expected):
        view.get("nexthops", []).sort(key=lambda hop: str(hop["dev"]))
    assert {key: shown.get(key) for key in expected} == expected
    assert shown.keys() - expected.keys() <= {"table", "pref"}
    node.ns.netlink.execute(delete_message(route.key))
    assert node.found(route.key) == []


@pytest.mark.parametrize("name", SHAPES)
def test_writing_again_changes_nothing(node: Node, name: str) -> None:
    route = SHAPES[name](node)
    node.put(route, route)
    before = node.found(route.key)
    node.put(route)
    assert node.found(route.key) == before and len(before) == 1


def pyroute2_view(family: int) -> set[tuple[object, ...]]:
    with IPRoute() as ipr:
        found = list(ipr.get_routes(family=family))
    seen: set[tuple[object, ...]] = set()
    for message in found:
        empty = "0.0.0.0" if family == AF_INET else "::"
        hops = message.get_attr("RTA_MULTIPATH") or []
        gateways = [hop.get_attr("RTA_GATEWAY") for hop in hops] or [message.get_attr("RTA_GATEWAY")]
        metrics = message.get_attr("RTA_METRICS")
        mtu = metrics.get_attr("RTAX_MTU") if metrics else None
        seen.add(
            (
                f"{message.get_attr('RTA_DST') or empty}/{message['dst_len']}",
                message.get_attr("RTA_TABLE") or message["table"],
                message.get_attr("RTA_PRIORITY") or 0,
                message["tos"], message["proto"], message["scope"], message["type"],
                message.get_attr("RTA_PREFSRC"), mtu or 0,
                tuple(ip_address(gateway) for gateway in gateways if gateway),
            )
        )  # fmt: skip
    return seen


def our_view(found: list[Route]) -> set[tuple[object, ...]]:
    return {
        (
            route.dst, route.table, route.metric, route.tos, route.protocol, route.scope, int(route.type),
            route.src, route.mtu,
            tuple(
                ip_address(hop.gateway) for hop in route.hops
                if hop.gateway and (":" in hop.gateway) == (route.family == AF_INET6)
            ),
        )
        for route in found
    }  # fmt: skip


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_pyroute2_and_we_see_the_same_kernel(node: Node, family: int) -> None:
    node.put(*(shape(node) for shape in SHAPES.values()))
    found = routes.dump(node.ns.netlink, family)
    theirs = node.ns.call(pyroute2_view, family)
    assert len(theirs) > 15 and our_view(found) == theirs


def pyroute2_adds(commands: list[dict[str, Any]]) -> None:
    with IPRoute() as ipr:
        for command in commands:
            ipr.route("add", **command)


def test_we_read_what_pyroute2_writes(node: Node) -> None:
    commands: list[dict[str, Any]] = [
        {"dst": "10.7.0.0/26", "gateway": "10.0.0.9", "proto": 12, "priority": 77},
        {"dst": "10.7.1.0/26", "multipath": [{"gateway": "10.0.0.7", "hops": 2}, {"gateway": "10.0.0.8"}]},
        {"dst": "fd07::/64", "oif": node.b, "table": 5000, "metrics": {"mtu": 1300}},
        {"dst": "10.7.2.0/26", "type": "blackhole"},
    ]
    node.ns.call(pyroute2_adds, commands)
    ours = ("10.7.", "fd07:")  # an interface's own address may have any digits
    found = {route.dst: route for route in routes.dump(node.ns.netlink) if route.dst.startswith(ours)}
    static = routes.PROTOCOL_STATIC
    assert list(found.values()) == [
        Route("10.7.0.0/26", gateway="10.0.0.9", ifindex=node.a, protocol=12, metric=77),
        Route(
            "10.7.1.0/26",
            nexthops=(NextHop("10.0.0.7", node.a, 3), NextHop("10.0.0.8", node.a)),
            protocol=static,
        ),
        Route("10.7.2.0/26", type=RouteType.BLACKHOLE, protocol=static),
        Route("fd07::/64", ifindex=node.b, table=5000, mtu=1300, protocol=static, metric=1024),
    ]


# --- filters ------------------------------------------------------------------------------------


def test_dumps_are_filtered(node: Node) -> None:
    node.put(*(shape(node) for shape in SHAPES.values()))
    everything = routes.dump(node.ns.netlink)

    def check(expected: list[Route], **filters: int) -> None:
        assert expected and routes.dump(node.ns.netlink, **filters) == expected

    check([r for r in everything if r.family == AF_INET6], family=AF_INET6)
    check([r for r in everything if r.table == 254], table=254)
    check([r for r in everything if r.table == 70_000], table=70_000)
    check([r for r in everything if r.protocol == 80], protocol=80)
    check([r for r in everything if r.protocol == 80 and r.table == 254], protocol=80, table=254)
    check([r for r in everything if any(h.ifindex == node.b for h in r.hops)], ifindex=node.b)


def test_filters_that_match_nothing(node: Node) -> None:
    assert routes.dump(node.ns.netlink, table=123) == []
    assert routes.dump(node.ns.netlink, table=123_456) == []
    assert routes.dump(node.ns.netlink, ifindex=9999) == []
    assert routes.dump(node.ns.netlink, protocol=99) == []


def test_twenty_thousand_routes(node: Node) -> None:
    wanted = [
        Route(f"10.{64 + n // 10_000}.{n // 256 % 40}.{n % 256}/32", ifindex=node.a, scope=253, protocol=80)
        for n in range(10_000)
    ]
    wanted += [Route(f"fd00::{n:x}/128", ifindex=node.a, protocol=80) for n in range(1, 10_001)]
    node.put(*wanted)
    found = {route.key: route for route in routes.dump(node.ns.netlink, protocol=80)}
    assert found.keys() == {route.key for route in wanted} and len(found) == 20_000
    assert all(routes.same(route, found[route.key]) for route in wanted)
    assert node.ns.netlink.request([delete_message(route.key) for route in wanted]) == [None] * 20_000
    assert routes.dump(node.ns.netlink, protocol=80) == []


# --- how the kernel replaces and deletes -----------------------------------------------------------


def test_ipv4_replace_takes_the_key_whatever_the_protocol(node: Node) -> None:
    node.put(Route("10.5.0.0/26", gateway="10.0.0.8", ifindex=node.a, protocol=12, metric=32))
    ours = Route("10.5.0.0/26", gateway="192.0.2.1", ifindex=node.b, onlink=True, protocol=186, metric=32)
    node.put(ours)
    assert node.found(ours.key) == [ours]
    other_metric = replace(ours, metric=33)
    node.put(other_metric)
    assert node.found(ours.key) == [ours] and node.found(other_metric.key) == [other_metric]


V6 = "fd05::/122"
V6_FORMS: dict[str, Shape] = {
    "device": lambda n: Route(V6, ifindex=n.b),
    "gateway": lambda n: Route(V6, ifindex=n.a, gateway="fd99::9"),
    "other gateway": lambda n: Route(V6, ifindex=n.b, gateway="fe80::8", protocol=186),
    "blackhole": lambda n: Route(V6, type=RouteType.BLACKHOLE, protocol=80),
    "multipath": lambda n: Route(V6, nexthops=(NextHop("fd99::9", n.a), NextHop("fe80::8", n.b))),
    "other multipath": lambda n: Route(V6, nexthops=(NextHop("fd99::7", n.a, 4), NextHop("fe80::6", n.b))),
    "three ways": lambda n: Route(V6, nexthops=tuple(NextHop(f"fe80::{i}", n.b) for i in (3, 4, 5))),
}


@pytest.mark.parametrize("after", V6_FORMS)
@pytest.mark.parametrize("before", V6_FORMS)
def test_ipv6_replace_turns_any_form_into_any_other(node: Node, before: str, after: str) -> None:
    node.put(V6_FORMS[before](node))
    wanted = V6_FORMS[after](node)
    node.put(wanted)
    (actual,) = node.found(wanted.key)
    assert routes.same(wanted, actual)


def test_deleting_goes_by_key_alone(node: Node) -> None:
    node.put(Route("10.5.0.0/26", gateway="10.0.0.8", ifindex=node.a, protocol=12, metric=32))
    node.put(Route(V6, nexthops=(NextHop("fd99::9", node.a), NextHop("fe80::8", node.b)), protocol=12))
    keys = [RouteKey("10.5.0.0/26", 254, 32, 0), RouteKey(V6, 254, 1024, 0)]
    wrong = [key._replace(metric=key.metric + 1) for key in keys]
    for error in node.ns.netlink.request([delete_message(key) for key in wrong]):
        assert error is not None and error.errno == errno.ESRCH
    for error in node.ns.netlink.request([delete_message(key, protocol=186) for key in keys]):
        assert error is not None and error.errno == errno.ESRCH
    assert node.ns.netlink.request([delete_message(key) for key in keys]) == [None, None]
    for error in node.ns.netlink.request([delete_message(key) for key in keys]):
        assert error is not None and error.errno == errno.ESRCH
    assert not any(node.found(key) for key in keys)


@pytest.mark.parametrize("name", SHAPES)
def test_deleting_can_be_narrowed_to_the_very_route(node: Node, name: str) -> None:
    route = SHAPES[name](node)
    node.put(route)
    hop = route.hops[0] if len(route.hops) == 1 else None
    other = node.a if route.ifindex == node.b else node.b
    wrong = [delete_message(route.key, route.protocol + 1, hop)]
    if hop is not None:
        wrong.append(delete_message(route.key, route.protocol, replace(hop, ifindex=other)))
    for error in node.ns.netlink.request(wrong):
        assert error is not None and error.errno == errno.ESRCH
    node.ns.netlink.execute(delete_message(route.key, route.protocol, hop))
    assert node.found(route.key) == []


def test_deleting_from_a_table_that_is_not_there(node: Node) -> None:
    keys = [RouteKey("10.5.0.0/26", 77, 0, 0), RouteKey(V6, 77, 1024, 0)]
    for error in node.ns.netlink.request([delete_message(key) for key in keys]):
        assert error is not None and error.errno == errno.ESRCH


def test_ipv4_deletion_of_metric_0_takes_any_metric(node: Node) -> None:
    """The trap that route_target avoids; if this fails the kernel has been mended."""
    higher = Route("10.2.0.5/32", ifindex=node.a, scope=253, metric=1024)
    node.put(higher)
    node.ns.netlink.execute(delete_message(RouteKey("10.2.0.5/32", 254, 0, 0)))
    assert node.found(higher.key) == []


def test_an_interface_that_disappears_in_the_middle(node: Node) -> None:
    first, second = Route("10.2.0.5/32", ifindex=node.b), Route("10.2.0.6/32", ifindex=node.b)
    results = node.ns.netlink.request(
        [
            replace_message(first),
            links.delete("b"),
            replace_message(second),
            replace_message(Route("fd02::6/128", ifindex=node.b)),
            delete_message(first.key),
            replace_message(Route("10.2.0.7/32", ifindex=node.a)),
        ]
    )
    assert [None if error is None else error.errno for error in results] == [
        None, None, errno.ENODEV, errno.ENODEV, errno.ESRCH, None,
    ]  # fmt: skip


def test_an_interface_that_is_down_is_refused_with_its_reason(node: Node) -> None:
    node.ns.run("ip", "link", "set", "dev", "b", "down")
    for dst in ("10.2.0.5/32", "fd02::5/128"):
        with pytest.raises(KernelError) as caught:
            node.put(Route(dst, ifindex=node.b))
        assert caught.value.errno == errno.ENETDOWN


def test_foreign_kinds_of_routes_do_not_disturb_a_dump(node: Node) -> None:
    node.ns.run("ip", "-6", "route", "add", "fd08::/64", "from", "fd09::/64", "dev", "a")
    node.ns.run("ip", "nexthop", "add", "id", "7", "via", "10.0.0.9", "dev", "a")
    node.ns.run("ip", "route", "add", "10.8.0.0/24", "nhid", "7")
    node.ns.run("ip", "route", "add", "multicast", "239.0.0.0/8", "dev", "a")
    found = {route.dst: route for route in routes.dump(node.ns.netlink, table=254)}
    assert "fd08::/64" not in found, "selects by source: has no Route"
    assert found["10.8.0.0/24"].gateway == "10.0.0.9"
    assert found["239.0.0.0/8"].type is RouteType.MULTICAST
