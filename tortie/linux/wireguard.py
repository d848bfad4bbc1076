"""WireGuard devices: reading them, and the messages that change them and their peers.

Format: linux/wireguard.h (generic netlink). What the kernel does, and this file is built around:
- It works out the public key from the private one, so that nobody here computes with curves; the private
  key is written once and never read into a value.
- A message holds 64 KiB at most, a peer can have more allowed IPs than that. It is then written in pieces,
  and a dump gives it in pieces, which follow each other.
- An allowed IP belongs to one peer: given to another, it leaves the one that had it.
- A peer with the device's own public key is ignored without a word.
"""

import errno
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from socket import AF_INET, AF_INET6
from struct import Struct

from tortie.core.errors import KernelError
from tortie.linux import codec, genetlink
from tortie.linux.codec import (
    Message,
    attribute,
    attribute_text,
    attribute_u8,
    attribute_u32,
    attributes,
    nested,
    pack_address,
    read_u8,
    read_u16,
    read_u32,
    unpack_address,
)
from tortie.linux.netlink import NetlinkSocket

KIND = "wireguard"  # of link, and the name of the netlink family
KEY_SIZE = 32  # bytes

_GET_DEVICE, _SET_DEVICE = 0, 1  # WG_CMD_…
_VERSION = 1  # WG_GENL_VERSION
_IFNAME, _PRIVATE_KEY, _PUBLIC_KEY, _LISTEN_PORT, _FWMARK, _PEERS = 2, 3, 4, 6, 7, 8  # WGDEVICE_A_…
_PEER_KEY, _PEER_FLAGS, _ENDPOINT, _KEEPALIVE, _ALLOWED_IPS = 1, 3, 4, 5, 9  # WGPEER_A_…
_REMOVE, _REPLACE_ALLOWED, _UPDATE_ONLY = 1, 2, 4  # WGPEER_F_…
_FAMILY, _ADDRESS, _LENGTH = 1, 2, 3  # WGALLOWEDIP_A_…

_U16 = Struct("=H")
_SOCKADDR = Struct("=H2s4s8x")  # family, port in network order, address
_SOCKADDR6 = Struct("=H2sI16sI")  # family, port in network order, flow, address, scope
_ALLOWED_AT_ONCE = 256  # allowed IPs of one peer in a message: 10 KiB in IPv6
_MESSAGE_BYTES = 32 * 1024  # of peers in one message; an attribute's length ends at 64 KiB


@dataclass(frozen=True, slots=True)
class Peer:
    """`endpoint` '': where it is, is not known. `keepalive`: seconds, 0: none. `allowed`: canonical CIDRs."""

    endpoint: str = ""
    port: int = 0
    keepalive: int = 0
    allowed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Device:
    """`public_key`: base64, '' for a device without a key. `peers`: public key -> peer."""

    port: int = 0
    mark: int = 0
    public_key: str = ""
    peers: dict[str, Peer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeerChange:
    """What is to be done to one peer; what is None stays.

    `replace`: `allowed` is all it is to have, else what it gets in addition. `update_only`: only if it is
    there.
    """

    key: str
    remove: bool = False
    update_only: bool = False
    replace: bool = False
    endpoint: tuple[str, int] | None = None
    keepalive: int | None = None
    allowed: tuple[str, ...] = ()


def key_bytes(key: str) -> bytes:
    """Raises KernelError if `key` is not 32 bytes in base64."""
    try:
        raw = b64decode(key, validate=True)
    except ValueError:  # also what is not ASCII
        raw = b""
    if len(raw) != KEY_SIZE:
        raise KernelError("encode", "WireGuard key", errno.EINVAL, "not 32 bytes in base64")
    return raw


# --- changes ------------------------------------------------------------------------------------


@codec.encoder("WireGuard device")
def set_device(
    family: int,
    name: str,
    *,
    private_key: bytes | None = None,
    port: int | None = None,
    mark: int | None = None,
) -> Message:
    """Set what is given. `family`: what genetlink.family_id() says."""
    body = _head(_SET_DEVICE, name)
    if private_key is not None:
        body += attribute(_PRIVATE_KEY, private_key)
    if port is not None:
        body += attribute(_LISTEN_PORT, _U16.pack(port))
    if mark is not None:
        body += attribute_u32(_FWMARK, mark)
    return Message(family, 0, body, "set up", f"WireGuard device {name}")


@codec.encoder("WireGuard peers")
def set_peers(
    family: int, name: str, changes: Iterable[PeerChange]
) -> list[tuple[Message, tuple[PeerChange, ...]]]:
    """As few messages as will do, in the order of `changes`; with each what it is about."""
    batches: list[tuple[Message, tuple[PeerChange, ...]]] = []
    for pieces in _batches([piece for change in changes for piece in _pieces(change)]):
        peers = nested(_PEERS, *(nested(0, encoded) for _, encoded in pieces))
        message = Message(
            family, 0, _head(_SET_DEVICE, name) + peers, "change peers of", f"WireGuard device {name}"
        )
        batches.append((message, tuple(change for change, _ in pieces)))
    return batches


def _pieces(change: PeerChange) -> Iterator[tuple[PeerChange, bytes]]:
    """Only the first says what is to become of the peer, the others add to it."""
    first, rest = change.allowed[:_ALLOWED_AT_ONCE], change.allowed[_ALLOWED_AT_ONCE:]
    yield change, _encode_peer(replace(change, allowed=first))
    for start in range(0, len(rest), _ALLOWED_AT_ONCE):
        more = rest[start : start + _ALLOWED_AT_ONCE]
        yield change, _encode_peer(PeerChange(change.key, update_only=True, allowed=more))


def _batches(pieces: Sequence[tuple[PeerChange, bytes]]) -> Iterator[Sequence[tuple[PeerChange, bytes]]]:
    start = size = 0
    for index, (_, encoded) in enumerate(pieces):
        if index > start and size + len(encoded) > _MESSAGE_BYTES:
            yield pieces[start:index]
            start, size = index, 0
        size += len(encoded)
    if start < len(pieces):
        yield pieces[start:]


def _encode_peer(change: PeerChange) -> bytes:
    flags = _REMOVE * change.remove | _REPLACE_ALLOWED * change.replace | _UPDATE_ONLY * change.update_only
    body = attribute(_PEER_KEY, key_bytes(change.key)) + attribute_u32(_PEER_FLAGS, flags)
    if change.endpoint is not None:
        body += attribute(_ENDPOINT, _pack_endpoint(*change.endpoint))
    if change.keepalive is not None:
        body += attribute(_KEEPALIVE, _U16.pack(change.keepalive))
    if change.allowed:
        body += nested(_ALLOWED_IPS, *(nested(0, _encode_allowed(cidr)) for cidr in change.allowed))
    return body


def _encode_allowed(cidr: str) -> bytes:
    address, _, length = cidr.partition("/")
    packed = pack_address(address)
    family = AF_INET if len(packed) == 4 else AF_INET6
    return (
        attribute(_FAMILY, _U16.pack(family))
        + attribute(_ADDRESS, packed)
        + attribute_u8(_LENGTH, int(length))
    )


def _pack_endpoint(address: str, port: int) -> bytes:
    packed, big = pack_address(address), port.to_bytes(2, "big") if 0 <= port < 0x10000 else b""
    if not big:
        raise ValueError(f"port {port}")
    if len(packed) == 4:
        return _SOCKADDR.pack(AF_INET, big, packed)
    return _SOCKADDR6.pack(AF_INET6, big, 0, packed, 0)


def _head(command: int, name: str) -> bytes:
    return genetlink.HEADER.pack(command, _VERSION) + attribute_text(_IFNAME, name)


# --- reading ------------------------------------------------------------------------------------


def get_device(family: int, name: str) -> Message:
    """A dump: the answers are decode()'s."""
    return Message(family, 0, _head(_GET_DEVICE, name), "read", f"WireGuard device {name}")


@codec.decoder("WireGuard device")
def decode(bodies: Iterable[bytes]) -> Device:
    """One device from all messages of a dump; only the first says what is not about peers."""
    device = Device()
    peers: dict[str, Peer] = {}
    for number, body in enumerate(bodies):
        found = attributes(body, genetlink.HEADER.size)
        if number == 0:
            device = Device(
                read_u16(found.get(_LISTEN_PORT, b"\0\0")),
                read_u32(found.get(_FWMARK, b"\0\0\0\0")),
                _key_text(found.get(_PUBLIC_KEY, b"")),
            )
        for encoded in _each(found.get(_PEERS, b"")):
            key, peer = _decode_peer(encoded)
            before = peers.get(key)
            peers[key] = peer if before is None else replace(before, allowed=before.allowed | peer.allowed)
    return replace(device, peers=peers)


def _each(data: bytes) -> Iterator[bytes]:
    """The elements of a list, which all have the same type or are numbered."""
    offset = 0
    while offset + 4 <= len(data):
        size = read_u16(data[offset : offset + 2])
        if size < 4 or offset + size > len(data):
            raise ValueError(f"element of {size} bytes at {offset} of {len(data)}")
        yield data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def _decode_peer(data: bytes) -> tuple[str, Peer]:
    found = attributes(data)
    address, port = _unpack_endpoint(found.get(_ENDPOINT, b""))
    allowed = frozenset(_decode_allowed(attributes(one)) for one in _each(found.get(_ALLOWED_IPS, b"")))
    keepalive = read_u16(found.get(_KEEPALIVE, b"\0\0"))
    return _key_text(found.get(_PEER_KEY, b"")), Peer(address, port, keepalive, allowed)


def _decode_allowed(found: dict[int, bytes]) -> str:
    if _ADDRESS not in found or _LENGTH not in found:
        raise ValueError("allowed IP without an address or a length")
    return f"{unpack_address(found[_ADDRESS])}/{read_u8(found[_LENGTH])}"


def _unpack_endpoint(data: bytes) -> tuple[str, int]:
    if not data:
        return "", 0
    if read_u16(data) == AF_INET:
        _, port, address = _SOCKADDR.unpack(data)
    else:
        _, port, _, address, _ = _SOCKADDR6.unpack(data)
    return unpack_address(address), int.from_bytes(port, "big")


def _key_text(raw: bytes) -> str:
    return b64encode(raw).decode() if any(raw) else ""


# --- the door -----------------------------------------------------------------------------------


class Wireguard:
    """The kernel's WireGuard, opened when it is first needed: most nodes have none."""

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None
        self._family = 0

    def read(self, name: str) -> Device:
        """Raises KernelError; ENODEV if there is no such device, EOPNOTSUPP if it is of another kind."""
        door = self._door()
        return decode([answer.body for answer in door.dump(get_device(self._family, name))])

    def set_device(
        self, name: str, *, private_key: bytes | None = None, port: int | None = None, mark: int | None = None
    ) -> None:
        """Raises KernelError."""
        door = self._door()
        door.execute(set_device(self._family, name, private_key=private_key, port=port, mark=mark))

    def set_peers(self, name: str, changes: Iterable[PeerChange]) -> dict[str, str]:
        """Returns the kernel's reason for each key whose change it refused. Raises KernelError."""
        door = self._door()
        batches = set_peers(self._family, name, changes)
        failed: dict[str, str] = {}
        for error, (_, about) in zip(door.request([one for one, _ in batches]), batches, strict=True):
            if error is not None:
                failed.update((change.key, str(error)) for change in about)
        return failed

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _door(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = genetlink.open_socket()
        if not self._family:
            self._family = genetlink.family_id(self._socket, KIND)
        return self._socket
