"""The wire format: round trips, agreement with pyroute2, and buffers that lie."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from tortie.core.errors import KernelError
from tortie.linux import addresses, codec, links, monitor, neighbours, routes
from tortie.linux.codec import Frame, Message

pytestmark = pytest.mark.unit

attribute_sets = st.dictionaries(st.integers(0, codec._TYPE_MASK), st.binary(max_size=40), max_size=8)


@given(attribute_sets)
def test_attributes_survive_the_wire(given_set: dict[int, bytes]) -> None:
    wire = b"".join(codec.attribute(kind, data) for kind, data in given_set.items())
    assert len(wire) % 4 == 0
    assert codec.attributes(wire) == given_set
    assert codec.attributes(codec.nested(7, wire)) == {7: wire}


def test_numbers_and_texts_survive_the_wire() -> None:
    wire = codec.attribute_u8(1, 200) + codec.attribute_u16(2, 60_000) + codec.attribute_u32(3, 2**32 - 1)
    wire += codec.attribute_text(4, "eth0") + codec.attribute_text(5, "\udcff")
    found = codec.attributes(wire)
    assert (codec.read_u8(found[1]), codec.read_u16(found[2]), codec.read_u32(found[3])) == (
        200,
        60_000,
        2**32 - 1,
    )
    assert (codec.read_text(found[4]), codec.read_text(found[5])) == ("eth0", "\udcff")
    assert codec.read_int(b"\xff\xff\xff\xff") == -1


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=33)), max_size=5))
def test_frames_survive_the_wire(bodies: list[tuple[int, bytes]]) -> None:
    wire = b"".join(codec.frame(Message(k, 0, b, "x", "y"), i, 4) for i, (k, b) in enumerate(bodies))
    assert [(f.kind, f.sequence, f.body) for f in codec.frames(wire)] == [
        (kind, i, body) for i, (kind, body) in enumerate(bodies)
    ]


DECODERS: list[Callable[[bytes], object]] = [
    codec.attributes,
    lambda data: list(codec.frames(data)),
    lambda data: codec.acknowledgement(Frame(codec.NLMSG_ERROR, 0x300, 1, 1, data)),
    lambda data: codec.acknowledgement(Frame(codec.NLMSG_DONE, 0x200, 1, 1, data)),
    routes.decode,
    links.decode,
    addresses.decode,
    neighbours.decode,
    lambda data: monitor.decode(Frame(24, 0, 0, 0, data)),
]


def real_bodies() -> list[bytes]:
    """Well-formed bodies of every kind, to be cut and bent."""
    hop = routes.NextHop("fe80::1", 3, 2, True)
    route = routes.Route("fd00::/64", nexthops=(hop, hop), mtu=1400, src="fd00::1", table=1000)
    vxlan = links.Vxlan(7, "10.0.0.1", 2, group="239.0.0.1", l2miss=True, gbp=True, metadata=True)
    return [
        routes.replace_message(route).body,
        links.create_vxlan("vx", vxlan, mac="02:00:00:00:00:01").body,
        addresses.add(3, "fd00::1/64", nodad=True).body,
        neighbours.replace(3, "10.0.0.1", "02:00:00:00:00:01").body,
        neighbours.replace_forwarding(3, "02:00:00:00:00:01", "10.0.0.1").body,
    ]


bent = st.sampled_from(real_bodies()).flatmap(
    lambda body: st.tuples(
        st.just(body),
        st.integers(0, len(body)),
        st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255))),
    )
)


def bend(body: bytes, cut: int, pokes: list[tuple[int, int]]) -> bytes:
    data = bytearray(body)
    for position, value in pokes:
        data[position] = value
    return bytes(data[:cut])


@pytest.mark.parametrize("decode", DECODERS)
@given(data=st.one_of(st.binary(max_size=200), bent.map(lambda t: bend(*t))))
def test_a_lying_buffer_raises_nothing_but_kernel_error(
    decode: Callable[[bytes], object], data: bytes
) -> None:
    try:
        decode(data)
    except KernelError as err:
        assert err.operation == "decode"


@pytest.mark.parametrize("decode", [routes.decode, links.decode, addresses.decode, neighbours.decode])
def test_an_empty_buffer_is_an_error(decode: Callable[[bytes], object]) -> None:
    with pytest.raises(KernelError):
        decode(b"")


def test_every_real_body_is_understood() -> None:
    decoders = [routes.decode, links.decode, addresses.decode, neighbours.decode, neighbours.decode]
    for decode, body in zip(decoders, real_bodies(), strict=True):
        assert decode(body) is not None


@given(st.ip_addresses())
def test_addresses_survive_packing(address: object) -> None:
    packed = codec.pack_address(str(address))
    assert ip_address(codec.unpack_address(packed)) == address
    assert len(packed) == (4 if codec.family_of(str(address)) == 2 else 16)


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.1/8", "::g", "fe80::1%eth0", "10.0.0.1\0", "1 2", "x:y"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(KernelError, match="is not an IP address"):
        codec.pack_address(text)


@pytest.mark.parametrize(
    "text", ["", "02:00:00:00:00", "02:00:00:00:00:0g", "0200.0000.0001", "2:0:0:0:0:1", " 2:00:00:00:00:01"]
)
def test_what_is_no_mac_is_refused(text: str) -> None:
    with pytest.raises(KernelError, match="is not a MAC address"):
        codec.pack_mac(text)


def test_an_extended_acknowledgement_is_read_capped_and_whole() -> None:
    told = codec.attribute(1, b"Nexthop has invalid gateway.\0")
    request = codec.HEADER.pack(20, 24, 5, 9, 0) + b"abcd"
    number = (-errno.ENETUNREACH).to_bytes(4, "little", signed=True)
    capped = Frame(
        codec.NLMSG_ERROR, codec.NLM_F_CAPPED | codec.NLM_F_ACK_TLVS, 9, 1, number + request[:16] + told
    )
    whole = Frame(codec.NLMSG_ERROR, codec.NLM_F_ACK_TLVS, 9, 1, number + request + told)
    for frame in (capped, whole):
        assert codec.acknowledgement(frame) == (errno.ENETUNREACH, "Nexthop has invalid gateway.")
    error = codec.refusal(Message(24, 0, b"", "replace", "route 10.0.0.0/8"), *codec.acknowledgement(capped))
    assert str(error) == "replace route 10.0.0.0/8: Network is unreachable (Nexthop has invalid gateway)"
    assert (error.errno, error.operation, error.what) == (errno.ENETUNREACH, "replace", "route 10.0.0.0/8")


# --- routes as values ---------------------------------------------------------------------------


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
    "mtu": lambda route: replace(route, mtu=route.mtu ^ 1),
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


@pytest.mark.parametrize(
    "build",
    [
        lambda: routes.replace_message(U("10.0.0.0/8", ifindex=1, metric=2**32)),
        lambda: routes.replace_message(U("10.0.0.0/8", ifindex=1, protocol=256)),
        lambda: routes.replace_message(U("10.0.0.0/8", nexthops=(HOP("10.1.1.1", 1),) * 20_000)),
        lambda: routes.delete_message(routes.RouteKey("10.0.0.0/8", 254, -1, 0)),
        lambda: links.create_bridge("b", mtu=2**32),
        lambda: links.create_vxlan("v", links.Vxlan(-1)),
        lambda: links.create_vxlan("v", links.Vxlan(1, port=65_536)),
        lambda: links.change(2**31, up=True),
        lambda: addresses.add(1, "10.0.0.1/32", scope=256),
        lambda: addresses.add(1, "10.0.0.1"),
        lambda: addresses.add(1, "10.0.0.1/33"),
        lambda: neighbours.replace(2**31, "10.0.0.1", "02:00:00:00:00:01"),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_refused(build: Callable[[], Message]) -> None:
    with pytest.raises(KernelError) as caught:
        build()
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("name", ["a", "cali0123456789a", "eth0.100", "été", "a@b"])
def test_valid_interface_names(name: str) -> None:
    assert links.valid_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\nb", "a\0", "à", "x" * 16, "é" * 8, "\ud800"]
)
def test_invalid_interface_names(name: str) -> None:
    assert not links.valid_name(name)
    with pytest.raises(KernelError, match="is not an interface name"):
        links.create_bridge(name)


def test_strerror_is_the_errnos_own_text() -> None:
    error = codec.refusal(Message(0, 0, b"", "delete", "link x"), errno.ENODEV, "")
    assert error.text == os.strerror(errno.ENODEV)
