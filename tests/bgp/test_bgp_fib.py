"""From paths to kernel routes: next hops, tunnels, ownership, own paths."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tortie.bgp.bestpath import Choice
from tortie.bgp.config import Block, Config, Local, Peer, Pool
from tortie.bgp.fib import Fib, Interfaces
from tortie.bgp.filters import Filter, Rule
from tortie.bgp.local import local_paths
from tortie.bgp.nexthop import Resolver, Way
from tortie.bgp.prefix import network
from tortie.bgp.route import Path, Source
from tortie.linux.routes import NextHop, Route, RouteType

pytestmark = pytest.mark.unit

_ETH0, _ETH1, _TUNL0 = 2, 3, 9
_CONNECTED = Route("10.0.0.0/24", ifindex=_ETH0, scope=253, protocol=2)
_CONNECTED6 = Route("fd09::/64", ifindex=_ETH0, protocol=2, metric=256)
_DEFAULT = Route("0.0.0.0/0", gateway="10.0.0.254", ifindex=_ETH0)


def _resolver(*routes: Route) -> Resolver:
    resolver = Resolver()
    resolver.replace([_CONNECTED, _CONNECTED6, *routes])
    return resolver


# --- next hops ----------------------------------------------------------------------------------


def test_a_neighbour_on_the_link() -> None:
    assert _resolver().way("10.0.0.9") == Way("10.0.0.9", _ETH0, 0)
    assert _resolver().way("fd09::9") == Way("fd09::9", _ETH0, 256)
    assert _resolver().way("10.1.0.9") is None


def test_behind_a_gateway() -> None:
    resolver = _resolver(_DEFAULT, Route("10.1.0.0/16", gateway="10.0.0.253", metric=50))
    assert resolver.way("172.16.0.1") == Way("10.0.0.254", _ETH0, 0)
    assert resolver.way("10.1.0.1") == Way("10.0.0.253", _ETH0, 50), "the gateway has no interface of its own"


def test_the_longest_prefix_and_then_the_lowest_metric() -> None:
    narrow = Route("10.0.0.128/25", ifindex=_ETH1, metric=20)
    narrower = Route("10.0.0.128/25", ifindex=_ETH0, metric=10)
    resolver = _resolver(narrow, narrower)
    assert resolver.way("10.0.0.129") == Way("10.0.0.129", _ETH0, 10)
    resolver.change(narrower, gone=True)
    assert resolver.way("10.0.0.129") == Way("10.0.0.129", _ETH1, 20)


def test_an_unreachable_route_is_no_way() -> None:
    assert _resolver(Route("10.0.0.9/32", type=RouteType.UNREACHABLE)).way("10.0.0.9") is None


def test_gateways_that_lead_to_each_other() -> None:
    loop = [Route("10.1.0.0/16", gateway="10.2.0.1"), Route("10.2.0.0/16", gateway="10.1.0.1")]
    assert _resolver(*loop).way("10.1.0.9") is None


def test_link_local_next_hops_need_an_interface() -> None:
    assert _resolver().way("fe80::1") is None
    assert _resolver().way("fe80::1", _ETH1) == Way("fe80::1", _ETH1, 0)


def test_changes_are_told_apart_from_repetitions() -> None:
    resolver = _resolver()
    assert not resolver.change(_CONNECTED)
    assert resolver.change(_DEFAULT) and not resolver.change(_DEFAULT)
    assert resolver.change(_DEFAULT, gone=True) and not resolver.change(_DEFAULT, gone=True)
    assert not resolver.change(Route("10.0.0.1/32", type=RouteType.LOCAL, table=255))
    assert not resolver.replace([_CONNECTED, _CONNECTED6])
    assert resolver.replace([_CONNECTED]) and resolver.way("fd09::9") is None


@given(
    st.lists(
        st.tuples(st.integers(0, 15), st.integers(28, 32), st.integers(0, 3), st.integers(1, 4)), max_size=12
    ),
    st.integers(0, 15),
)
def test_lookup_beside_a_search_of_all_routes(entries: list[tuple[int, int, int, int]], address: int) -> None:
    routes = {
        (route := Route(str(network(f"10.0.0.{low}/{length}")), ifindex=index, metric=metric)).key: route
        for low, length, metric, index in entries
    }
    resolver = Resolver()
    for route in routes.values():
        resolver.change(route)
    target = f"10.0.0.{address}"
    fitting = [route for route in routes.values() if network(route.dst).contains(network(target))]
    expected = max(fitting, key=lambda r: (network(r.dst).length, -r.metric), default=None)
    found = resolver.way(target)
    assert (found and found.ifindex) == (expected and expected.ifindex)


# --- kernel routes ------------------------------------------------------------------------------

_CONFIG = Config(
    local=Local(
        name="n", router_id="10.0.0.1", as_number=1, addresses=("10.0.0.1",), subnets=("10.0.0.0/24",)
    ),
    pools=(
        Pool(cidr="192.168.0.0/16"),
        Pool(cidr="10.80.0.0/16", programmed=False),
        Pool(cidr="10.81.0.0/16", tunnel="always"),
        Pool(cidr="10.82.0.0/16", tunnel="cross-subnet"),
        Pool(cidr="fd00:168::/48"),
    ),
    blocks=(Block(cidr="192.168.1.0/26"), Block(cidr="10.80.1.0/26")),
    excluded_next_hops=("10.0.0.66",),
)


def _learned(*next_hops: str) -> Choice:
    paths = tuple(Path(source=Source.BGP, next_hop=hop, peer=hop) for hop in next_hops)
    return Choice(paths[0], paths, "only path")


def _route(prefix: str, choice: Choice, tunnel: bool = True) -> Route | str:
    interfaces = Interfaces({"eth0": _ETH0} | ({"tunl0": _TUNL0} if tunnel else {}), {"10.0.0.1": _ETH0})
    found = dict(Fib(_CONFIG).routes([prefix], choice, _resolver(_DEFAULT), interfaces))
    return found[prefix]


_OWN = Choice(Path(source=Source.STATIC), (), "")
_KERNEL = Path(source=Source.KERNEL, interface="eth0")
_OWNERS = Choice(_KERNEL, (_KERNEL,), "only path")
_HOP = NextHop("10.0.0.9", _ETH0, onlink=True)


def _via(prefix: str, gateway: str, ifindex: int = _ETH0) -> Route:
    return Route(prefix, gateway=gateway, ifindex=ifindex, onlink=True, protocol=186)


@pytest.mark.parametrize(
    ("prefix", "choice", "expected"),
    [
        ("192.168.2.0/26", _learned("10.0.0.9"), _via("192.168.2.0/26", "10.0.0.9")),
        ("192.168.0.0/16", _learned("10.0.0.9"), _via("192.168.0.0/16", "10.0.0.9")),
        ("192.168.2.0/26", _learned("172.16.0.9"), _via("192.168.2.0/26", "10.0.0.254")),
        ("fd00:168::/122", _learned("fd09::9"), _via("fd00:168::/122", "fd09::9")),
        ("192.168.0.0/15", _learned("10.0.0.9"), "outside all pools"),
        ("0.0.0.0/0", _learned("10.0.0.9"), "outside all pools"),
        ("fd00:168::/122", _learned("fd0a::9"), "next hop fd0a::9 unreachable"),
        ("10.80.2.0/26", _learned("10.0.0.9"), "not programmed by BGP"),
        ("192.168.2.0/26", _learned("10.0.0.66"), "next hop reached by WireGuard"),
        ("10.81.2.0/26", _learned("10.0.0.9"), _via("10.81.2.0/26", "10.0.0.9", _TUNL0)),
        ("10.82.2.0/26", _learned("10.0.0.9"), _via("10.82.2.0/26", "10.0.0.9")),
        ("10.82.2.0/26", _learned("172.16.0.9"), _via("10.82.2.0/26", "172.16.0.9", _TUNL0)),
        ("192.168.1.0/26", _OWN, Route("192.168.1.0/26", type=RouteType.BLACKHOLE, protocol=186)),
        ("10.80.1.0/26", _OWN, "not programmed by BGP"),
        (
            "192.168.2.5/32",
            Choice(Path(source=Source.WORKLOAD), (), ""),
            "route of a local workload",
        ),
        ("192.168.2.6/32", Choice(Path(source=Source.LEAVING), (), ""), "route of a local workload"),
        ("192.168.2.0/24", _OWNERS, "route of the host's owner"),
        ("10.81.2.0/24", _OWNERS, "route of the host's owner"),  # not through the tunnel
    ],
)
def test_which_route_a_prefix_gets(prefix: str, choice: Choice, expected: Route | str) -> None:
    assert _route(prefix, choice) == expected


def test_a_tunnel_that_is_not_there_yet() -> None:
    assert _route("10.81.2.0/26", _learned("10.0.0.9"), tunnel=False) == "no interface tunl0"


def test_several_next_hops() -> None:
    found = _route("192.168.2.0/26", _learned("10.0.0.9", "10.0.0.8", "172.16.0.9", "172.16.0.8"))
    assert isinstance(found, Route)
    assert set(found.nexthops) == {
        _HOP,
        NextHop("10.0.0.8", _ETH0, onlink=True),
        NextHop("10.0.0.254", _ETH0, onlink=True),
    }, "two of them go by the same gateway"


def test_the_narrowest_pool_counts() -> None:
    config = replace(_CONFIG, pools=(*_CONFIG.pools, Pool(cidr="192.168.64.0/18", programmed=False)))
    interfaces = Interfaces({}, {})
    found = dict(
        Fib(config).routes(
            ["192.168.64.0/26", "192.168.2.0/26"], _learned("10.0.0.9"), _resolver(), interfaces
        )
    )
    assert found["192.168.64.0/26"] == "not programmed by BGP" and isinstance(found["192.168.2.0/26"], Route)


def test_link_local_next_hops_are_on_the_sessions_link() -> None:
    peer = Peer(address="fe80::9", kind="node", local_as=1, peer_as=2, local_address="fd09::1")
    config = replace(_CONFIG, peers=(peer,))
    path = Path(source=Source.BGP, next_hop="fe80::9", peer="fe80::9")
    interfaces = Interfaces({}, {"fd09::1": _ETH1})
    found = dict(Fib(config).routes(["fd00:168::/122"], Choice(path, (path,), ""), _resolver(), interfaces))
    assert found["fd00:168::/122"] == _via("fd00:168::/122", "fe80::9", _ETH1)


# --- own paths ----------------------------------------------------------------------------------


def _local(*routes: Route, heard_all: bool = True, **changes: Any) -> dict[str, Path]:
    interfaces = Interfaces({"cali1": 7, "eth0": _ETH0}, {})
    return dict(local_paths(replace(_CONFIG, **changes), routes, interfaces, heard_all))


_BLOCKS = {cidr: Path(source=Source.STATIC) for cidr in ("192.168.1.0/26", "10.80.1.0/26")}
_POD = Route("192.168.7.5/32", ifindex=7, scope=253)
_FOREIGN = Route("192.168.7.0/26", gateway="10.0.0.9", ifindex=_ETH0, protocol=80)


def test_blocks_and_pods() -> None:
    assert _local() == _BLOCKS
    assert _local(_POD) == _BLOCKS | {_POD.dst: Path(source=Source.WORKLOAD, interface="cali1")}


def test_metrics_become_preferences() -> None:
    assert _local(Route(_POD.dst, ifindex=7, metric=512))[_POD.dst].metric == 512
    both = _local(Route(_POD.dst, ifindex=7, metric=1024), Route(_POD.dst, ifindex=7, metric=512))
    assert both[_POD.dst].metric == 512
    assert _local(normal_metric=2000)["192.168.1.0/26"].metric == 2000


@pytest.mark.parametrize(("metric", "source"), [(0, Source.WORKLOAD), (512, Source.WORKLOAD),
                                                (1024, Source.WORKLOAD), (1025, Source.LEAVING)])  # fmt: skip
def test_a_metric_behind_the_normal_one_says_that_a_pod_moves_away(metric: int, source: Source) -> None:
    path = _local(Route(_POD.dst, ifindex=7, metric=metric))[_POD.dst]
    assert (path.source, path.metric) == (source, metric or 1024)


def test_routes_through_gateways_only_once_all_peers_were_heard() -> None:
    assert _local(_FOREIGN, heard_all=False) == _BLOCKS
    assert _local(_FOREIGN)[_FOREIGN.dst] == Path(source=Source.KERNEL, interface="eth0")


@pytest.mark.parametrize(
    "route",
    [
        Route("172.16.0.0/26", ifindex=7),  # outside pools
        Route("192.168.7.0/26", ifindex=7, protocol=2),  # the kernel's
        Route("192.168.7.0/26", gateway="10.0.0.9", ifindex=_ETH0, protocol=12),  # BIRD's leftover
        Route("192.168.7.0/26", gateway="10.0.0.9", ifindex=_ETH0, protocol=186),
        Route("192.168.7.0/26", type=RouteType.BLACKHOLE, protocol=80),
    ],
)
def test_what_is_not_ours_to_tell(route: Route) -> None:
    assert _local(route) == _BLOCKS


def test_a_block_of_one_address_is_there_when_its_pod_is() -> None:
    assert "192.168.1.1/32" not in _local(blocks=(Block(cidr="192.168.1.1/32"),))


def test_a_filter_may_tell_of_the_hosts_own_routes() -> None:
    default = Route("0.0.0.0/0", gateway="10.0.0.254", ifindex=_ETH0, protocol=4)
    subnet = Route("10.0.0.0/24", ifindex=_ETH0, protocol=2, scope=253)
    bridge = Route("192.168.9.0/24", ifindex=7, protocol=2, scope=253)  # cali1: never told
    exporting = (Filter(name="f", export4=(Rule(accept=True),)),)
    assert _local(default, subnet) == _BLOCKS
    assert _local(default, subnet, bridge, filters=exporting) == _BLOCKS | {
        default.dst: Path(source=Source.KERNEL, interface="eth0"),
        subnet.dst: Path(source=Source.DIRECT, interface="eth0"),
    }
    assert subnet.dst not in _local(subnet, filters=exporting, ignored_interfaces=("eth*",))
