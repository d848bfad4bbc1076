"""The wire format: round trips, values that do not fit, and buffers that lie."""

import errno
import os
import sys
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    wire = codec.attribute_u8(1, 200) + codec.attribute_u32(3, 2**32 - 1)
    wire += (
        codec.attribute(2, (60_000).to_bytes(2, sys.byteorder))
        + codec.attribute_text(4, "eth0")
        + codec.attribute_text(5, "\udcff")
    )
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


@pytest.mark.parametrize(
    "build",
    [
        lambda: routes.replace_message(routes.Route("10.0.0.0/8", ifindex=1, metric=2**32)),
        lambda: routes.replace_message(routes.Route("10.0.0.0/8", ifindex=1, protocol=256)),
        lambda: routes.replace_message(
            routes.Route("10.0.0.0/8", nexthops=(routes.NextHop("10.1.1.1", 1),) * 20_000)
        ),
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
