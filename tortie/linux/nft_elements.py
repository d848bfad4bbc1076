"""Changes the members of nftables sets, by netlink: one transaction for all sets of a table.

nft itself reads all sets before it adds one member to any of them, to check what the kernel checks anyway: a
tenth of a second and more where there are 50,000. The kernel needs some microseconds. So sets are made and
deleted by nft, and filled here. (Format: linux/netfilter/nf_tables.h, nfnetlink.h.)

The kernel takes a transaction as a whole or leaves everything as it was.
"""

import errno
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError

from tortie.core.errors import KernelError
from tortie.linux.codec import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLMSG_ERROR,
    Message,
    acknowledgement,
    attribute,
    attribute_text,
    frame,
    frames,
    nested,
)
from tortie.linux.ipsets import SetType

_NETLINK_NETFILTER = 12
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 16, 17
_NEW, _DELETE = _NFTABLES << 8 | 12, _NFTABLES << 8 | 14  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_…
_ELEMENT, _KEY, _FLAGS, _VALUE = 1, 1, 3, 1  # NFTA_LIST_ELEM, NFTA_SET_ELEM_…, NFTA_DATA_VALUE
_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_FAMILY_HEADER = Struct(">BBH")  # struct nfgenmsg: family, version, resource (big-endian)
_BIG32 = Struct(">I")
_PORT_KEY = Struct(">BxxxHxx")  # each part of a key takes a multiple of four bytes
_AT_ONCE = 500  # members in one message: an attribute holds 64 KiB, and a member takes up to 96 bytes
_SO_SNDBUFFORCE = 32
_BUFFER = 256 * 1024 * 1024  # bytes a transaction may have: several million members
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11


@dataclass(frozen=True, slots=True)
class Change:
    """Of one set. Deletions come first: a network may take the place of those inside it."""

    type: SetType
    add: Collection[str]
    delete: Collection[str]


def change(version: int, table: str, changes: Mapping[str, Change]) -> dict[str, str]:
    """Carry out the changes (by set name) in this thread's network namespace; blocks, some µs a member.

    A set whose change is refused fails, and the others are tried without it. Returns why, by set.
    Raises KernelError if netlink itself does not work.
    """
    failed: dict[str, str] = {}
    messages: dict[str, list[Message]] = {}
    for name, one in changes.items():
        try:
            messages[name] = list(_messages(version, table, name, one))
        except (OSError, ValueError, StructError) as err:
            failed[name] = f"not a member of {one.type}: {err}"
    while messages:
        refused = _transact([(name, message) for name, own in messages.items() for message in own])
        if not refused:
            break
        failed |= {name: refused[name] for name in messages if name in refused}
        if "" in refused:  # the transaction as such
            return failed | dict.fromkeys(messages, refused[""])
        messages = {name: own for name, own in messages.items() if name not in refused}
    return failed


# --- messages -----------------------------------------------------------------------------------


def _messages(version: int, table: str, name: str, one: Change) -> Iterator[Message]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    head = _FAMILY_HEADER.pack(family, 0, 0) + attribute_text(_TABLE, table) + attribute_text(_SET, name)
    for kind, flags, members in ((_DELETE, 0, one.delete), (_NEW, NLM_F_CREATE, one.add)):
        ordered = sorted(members)
        for start in range(0, len(ordered), _AT_ONCE):
            elements = b"".join(_elements(one.type, ordered[start : start + _AT_ONCE]))
            yield Message(kind, flags, head + nested(_ELEMENTS, elements), "write", f"set {name}")


def _elements(kind: SetType, members: Iterable[str]) -> Iterator[bytes]:
    for member in members:
        if kind == "hash:ip":
            yield _element(_packed(member))
        elif kind == "hash:ip,port":
            address, _, rest = member.partition(",")
            protocol, _, port = rest.partition(":")
            yield _element(_packed(address) + _PORT_KEY.pack(_number(protocol), int(port)))
        else:
            first, after = span(member)
            yield _element(first)
            if after is not None:
                yield _element(after, _INTERVAL_END)


def _number(protocol: str) -> int:
    return _PROTOCOLS[protocol] if protocol in _PROTOCOLS else int(protocol)


def _element(key: bytes, flags: int = 0) -> bytes:
    value = nested(_KEY, attribute(_VALUE, key))
    return nested(_ELEMENT, value + attribute(_FLAGS, _BIG32.pack(flags)) if flags else value)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def span(net: str) -> tuple[bytes, bytes | None]:
    """The first address of a network, and the one after its last; None if there is none. Pure.

    Raises OSError or ValueError for what is no network.
    """
    address, _, length = net.partition("/")
    first = _packed(address)
    width = len(first) * 8
    after = int.from_bytes(first) + (1 << (width - int(length or width)))
    return first, None if after >> width else after.to_bytes(len(first))


# --- the transaction ------------------------------------------------------------------------------


def _transact(owned: list[tuple[str, Message]]) -> dict[str, str]:
    """Send messages with the set each is about. Why it was refused, by set ("": as a whole); empty if not."""
    wire = [_boundary(_BATCH_BEGIN, 1)]
    for number, (_, message) in enumerate(owned):
        last = number == len(owned) - 1  # one answer at the least is wanted, and the refusals come anyway
        wire.append(frame(message, number + 2, NLM_F_ACK if last else 0))
    wire.append(_boundary(_BATCH_END, len(owned) + 2))
    refused: dict[str, str] = {}
    for sequence, number, told in _answers(b"".join(wire)):
        if number:
            index = sequence - 2
            name = owned[index][0] if 0 <= index < len(owned) else ""
            refused.setdefault(name, told or os.strerror(number))
    return refused


def _boundary(kind: int, sequence: int) -> bytes:
    body = _FAMILY_HEADER.pack(socket.AF_UNSPEC, 0, _NFTABLES)
    return frame(Message(kind, 0, body, "write", "sets"), sequence, 0)


def _answers(wire: bytes) -> list[tuple[int, int, str]]:
    """(sequence, errno or 0, what the kernel said) of each; they are all there when the kernel is done."""
    found: list[tuple[int, int, str]] = []
    try:
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_NETLINK, flags, _NETLINK_NETFILTER) as door:
            door.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
            for option in (_CAP_ACK, _EXT_ACK):
                door.setsockopt(_SOL_NETLINK, option, 1)
            door.bind((0, 0))
            door.sendto(wire, (0, 0))
            while True:
                try:
                    datagram = door.recv(65536)
                except BlockingIOError:
                    break
                found += [
                    (one.sequence, *acknowledgement(one))
                    for one in frames(datagram)
                    if one.kind == NLMSG_ERROR
                ]
    except OSError as err:
        raise KernelError("write", "sets", err.errno or 0, err.strerror or str(err)) from err
    return found or [(0, errno.ENOBUFS, "the answer was lost")]
