"""Addresses, networks, ports and protocols of the datastore in the one form used inside felix.

Addresses are written as the kernel's tools print them, so that what is wished for and what is read back
compare as text. Everything here refuses what it does not understand: what passes may go into a ruleset.
"""

import re
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from tortie.core.errors import FieldError, ValidationError

_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}", re.ASCII)
_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", re.ASCII)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
PROTOCOL_NAMES = frozenset(("tcp", "udp", "icmp", "icmpv6", "sctp", "udplite"))
PORT_PROTOCOLS = {"tcp": "tcp", "udp": "udp", "sctp": "sctp", 6: "tcp", 17: "udp", 132: "sctp"}


def refuse(field: str, value: object, reason: str) -> ValidationError:
    return ValidationError([FieldError(field, value, reason)])


def address(text: str, field: str = "address") -> str:
    """Raises ValidationError, as everything here."""
    family = AF_INET6 if ":" in text else AF_INET
    try:
        return inet_ntop(family, inet_pton(family, text))
    except (OSError, ValueError) as err:
        raise refuse(field, text, "invalid IP address") from err


def cidr(text: str, field: str = "CIDR") -> str:
    """A network without host bits, always with its prefix length; a bare address is one of itself."""
    left, slash, length = text.partition("/")
    family, bits = (AF_INET6, 128) if ":" in left else (AF_INET, 32)
    try:
        packed = inet_pton(family, left)
    except (OSError, ValueError) as err:
        raise refuse(field, text, "invalid CIDR") from err
    if not slash:
        return f"{inet_ntop(family, packed)}/{bits}"
    if not _NUMBER.fullmatch(length) or int(length) > bits:
        raise refuse(field, text, "invalid CIDR")
    host_bits = bits - int(length)
    network = int.from_bytes(packed, "big") >> host_bits << host_bits
    return f"{inet_ntop(family, network.to_bytes(len(packed), 'big'))}/{length}"


def single(net: str) -> str:
    """The address of a /32 or /128; other networks as they are. What ipset prints."""
    return net.removesuffix("/128") if ":" in net else net.removesuffix("/32")


def address_of(net: str) -> str:
    return net.partition("/")[0]


def is_single(net: str) -> bool:
    return net.endswith("/128") if ":" in net else net.endswith("/32")


def contains(net: str, other: str) -> bool:
    """Whether the network holds the address or network `other`; both canonical or plain."""
    return network(net).holds(network(other))


class Network(NamedTuple):
    """A canonical network as numbers, where many are compared."""

    bits: int  # of an address: tells the families apart
    value: int
    length: int

    def holds(self, other: "Network") -> bool:
        shift = self.bits - self.length
        same = self.bits == other.bits and self.length <= other.length
        return same and self.value >> shift == other.value >> shift


def network(net: str) -> Network:
    address, _, length = net.partition("/")
    family, bits = (AF_INET6, 128) if ":" in net else (AF_INET, 32)
    return Network(bits, int.from_bytes(inet_pton(family, address), "big"), int(length or bits))


def halves(net: str) -> tuple[str, ...]:
    """A network as an IP set of networks can hold it: the whole address space only as two halves."""
    if net == "0.0.0.0/0":
        return "0.0.0.0/1", "128.0.0.0/1"
    return ("::/1", "8000::/1") if net == "::/0" else (net,)


def interface(text: str, field: str = "interfaceName") -> str:
    """Stricter than the kernel: no `+` (a wildcard to iptables), no quotes, nothing unprintable."""
    if not _INTERFACE.fullmatch(text) or text in (".", ".."):
        raise refuse(field, text, "invalid interface name")
    return text


def mac(text: str, field: str = "mac") -> str:
    if not _MAC.fullmatch(text):
        raise refuse(field, text, "invalid MAC address")
    return text.replace("-", ":").lower()


def small_number(text: str) -> int | None:
    """A plain decimal number of at most five digits."""
    return int(text) if _NUMBER.fullmatch(text) else None


def protocol(value: int | str, field: str = "protocol") -> int | str:
    """A number from 1 to 255, or a known name in lower case; a number may come as text."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        if value.lower() not in PROTOCOL_NAMES:
            raise refuse(field, value, "invalid protocol")
        return value.lower()
    if not 1 <= int(value) <= 255:
        raise refuse(field, value, "invalid protocol number")
    return int(value)


def ports(value: int | str, field: str = "ports") -> tuple[int, int] | str:
    """A range of ports, or the name of a named port."""
    text = str(value)
    low, colon, high = text.partition(":")
    if _NUMBER.fullmatch(low) and (not colon or _NUMBER.fullmatch(high)):
        found = int(low), int(high or low)
        if not 0 <= found[0] <= found[1] <= 65535:
            raise refuse(field, value, "invalid port range")
        return found
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", text, re.ASCII):
        raise refuse(field, value, "invalid port name")
    return text
