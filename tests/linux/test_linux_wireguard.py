"""WireGuard's messages: what goes out is what was meant, in pieces that fit; what comes in is read whole."""

import os
import sys
from base64 import b64encode
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.netns_lab import Namespace
from tortie.core.errors import KernelError
from tortie.linux import genetlink, links, wireguard
from tortie.linux.codec import Frame, Message, attribute, attribute_u32, attributes, frame, nested, read_u32
from tortie.linux.wireguard import Device, Peer, PeerChange

pytestmark = pytest.mark.unit

FAMILY, NAME = 30, "wireguard.cali"
_LIST = 0x8000 | wireguard._PEERS

keys = st.binary(min_size=32, max_size=32).filter(any).map(lambda raw: b64encode(raw).decode())
cidrs = st.one_of(
    st.builds(
        lambda a, b, n: f"10.{a}.{b}.0/{n}", st.integers(0, 255), st.integers(0, 255), st.integers(24, 32)
    ),
    st.builds(lambda a, n: f"fd00:{a + 1:x}::/{n}", st.integers(0, 0xFFFE), st.integers(32, 128)),
)
endpoints = st.one_of(st.just("172.16.0.9"), st.just("fd16::9"))
peers = st.builds(
    Peer,
    endpoint=endpoints,
    port=st.integers(1, 65535),
    keepalive=st.integers(0, 65535),
    allowed=st.frozensets(cidrs, max_size=40),
)


def body_of(device: dict[int, bytes], peer_list: bytes = b"") -> bytes:
    """A message as the kernel writes it."""
    head = genetlink.HEADER.pack(0, 1)
    return head + b"".join(attribute(kind, data) for kind, data in device.items()) + peer_list


def set_up(wanted: dict[str, Peer]) -> list[bytes]:
    """The bodies that make a device without peers have these."""
    made = wireguard.set_peers(
        FAMILY,
        NAME,
        [
            PeerChange(
                key,
                False,
                False,
                True,
                (peer.endpoint, peer.port),
                peer.keepalive,
                tuple(sorted(peer.allowed)),
            )
            for key, peer in wanted.items()
        ],
    )
    return [message.body for message, _ in made]


@given(st.dictionaries(keys, peers, max_size=5))
def test_what_is_written_of_peers_is_what_is_read(wanted: dict[str, Peer]) -> None:
    """The two directions have the same form but for the flags, which readers leave out."""
    assert wireguard.decode(set_up(wanted)).peers == wanted


def test_a_peer_with_very_many_allowed_ips_goes_in_pieces_that_fit() -> None:
    many = frozenset(f"fd00:{number:x}::/64" for number in range(1, 5001))
    key = b64encode(bytes(range(32))).decode()
    bodies = set_up({key: Peer("fd16::9", 51821, 25, many)})
    assert len(bodies) > 1
    assert all(len(frame(Message(FAMILY, 0, body, "", ""), 1, 0)) < 0xFFFF for body in bodies)
    assert wireguard.decode(bodies).peers == {key: Peer("fd16::9", 51821, 25, many)}
    flags = [
        read_u32(attributes(one)[wireguard._PEER_FLAGS])
        for body in bodies
        for one in wireguard._each(attributes(body, genetlink.HEADER.size)[wireguard._PEERS])
    ]
    replace, update_only = wireguard._REPLACE_ALLOWED, wireguard._UPDATE_ONLY
    assert flags == [replace] + [update_only] * (len(flags) - 1), (
        "only the first piece throws away what was there"
    )


def test_a_failure_is_told_of_every_peer_of_its_message() -> None:
    changes = [PeerChange(b64encode(os.urandom(32)).decode(), remove=True) for _ in range(1000)]
    batches = wireguard.set_peers(FAMILY, NAME, changes)
    assert len(batches) > 1
    assert [change for _, about in batches for change in about] == changes


def test_a_device_is_read_as_the_kernel_tells_it() -> None:
    public, private = bytes(range(1, 33)), bytes(range(2, 34))
    told = {
        2: NAME.encode() + b"\0", 3: private, 4: public,
        6: (51820).to_bytes(2, sys.byteorder), 7: (0x200000).to_bytes(4, sys.byteorder),
    }  # fmt: skip
    key, other = b64encode(b"k" * 32).decode(), b64encode(b"o" * 32).decode()
    sockaddr = pack("=H2s4s8x", 2, (51820).to_bytes(2, "big"), bytes([172, 16, 0, 9]))

    def allowed(*nets: tuple[bytes, int]) -> bytes:
        one = [
            nested(0, attribute(1, b"\2\0"), attribute(2, net), attribute(3, bytes([size])))
            for net, size in nets
        ]
        return nested(9, *one)

    def peer(raw: bytes, *more: bytes) -> bytes:
        return nested(0, attribute(1, raw), *more)

    first = peer(
        b"k" * 32, attribute(4, sockaddr), attribute(5, b"\x19\0"), allowed((bytes([10, 2, 0, 0]), 26))
    )
    more = peer(b"k" * 32, allowed((bytes([10, 3, 0, 7]), 32)))
    found = wireguard.decode(
        [body_of(told, nested(wireguard._PEERS, first)), body_of({}, nested(8, more, peer(b"o" * 32)))]
    )
    assert found == Device(
        51820,
        0x200000,
        b64encode(public).decode(),
        {key: Peer("172.16.0.9", 51820, 25, frozenset(("10.2.0.0/26", "10.3.0.7/32"))), other: Peer()},
    )
    assert b64encode(private).decode() not in repr(found), "nobody needs to see it"


def test_a_device_that_was_just_made_has_nothing() -> None:
    assert wireguard.decode([body_of({2: b"wg\0", 4: bytes(32), 6: b"\0\0"})]) == Device()
    assert wireguard.decode([]) == Device()


@given(st.binary(max_size=120))
def test_nonsense_is_refused_and_nothing_else(data: bytes) -> None:
    for read in (
        lambda: wireguard.decode([data]),
        lambda: wireguard.decode([body_of({}, attribute(_LIST, data))]),
        lambda: genetlink.decode_family(Frame(16, 0, 1, 1, data)),
    ):
        try:
            read()
        except KernelError as err:
            assert err.errno


@pytest.mark.parametrize("key", ["", "!", "AAAA", "A" * 43, "ä" * 44, "A" * 44 + "\n"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(KernelError, match="not 32 bytes in base64"):
        wireguard.key_bytes(key)


def test_a_port_that_is_none_is_refused() -> None:
    change = PeerChange(b64encode(bytes(32)).decode(), endpoint=("10.0.0.1", 65536))
    with pytest.raises(KernelError, match="encode WireGuard peers"):
        wireguard.set_peers(FAMILY, NAME, [change])


def test_only_what_is_given_is_set() -> None:
    body = wireguard.set_device(FAMILY, NAME, port=51820).body
    assert attributes(body, 4).keys() == {2, 6}
    body = wireguard.set_device(FAMILY, NAME, private_key=b"p" * 32, mark=1).body
    assert attributes(body, 4) == {2: b"wireguard.cali\0", 3: b"p" * 32, 7: attribute_u32(7, 1)[4:]}


@pytest.mark.kernel
def test_a_kernel_says_whether_it_has_such_a_family(netns: Namespace) -> None:
    def numbers() -> tuple[int, int]:
        with genetlink.open_socket() as door:
            with pytest.raises(KernelError, match="find netlink family nobody: No such file"):
                genetlink.family_id(door, "nobody")
            return genetlink.family_id(door, "nlctrl"), 16

    found, expected = netns.call(numbers)
    assert found == expected


@pytest.mark.kernel
def test_where_there_is_no_wireguard_asking_for_a_device_is_refused(netns: Namespace) -> None:
    """On a kernel that has it, the device is what is missing."""
    netns.netlink.execute(links.create_bridge("br0"))
    door = wireguard.Wireguard()
    try:
        with pytest.raises(KernelError, match=r"No such file|Operation not supported"):
            netns.call(door.read, "br0")
    finally:
        door.close()
