"""Addresses and prefixes as text in the kernel's own form, and the arithmetic on them.

Text is what ExaBGP, netlink and people use, so it is also the key of every table here. Arithmetic is
on integers: `ipaddress` costs ten times as much, and a hundred thousand prefixes pass here.
"""

from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Literal, NamedTuple

Version = Literal[4, 6]

_LENGTHS = {str(length): length for length in range(129)}  # as written, without leading zeros -> number
_KEPT = 65536  # parsed prefixes remembered, about 20 MB when full


class Network(NamedTuple):
    """A prefix in numbers; host bits of `value` are zero."""

    version: Version
    value: int
    length: int

    @property
    def bits(self) -> int:
        return 32 if self.version == 4 else 128

    def contains(self, other: "Network") -> bool:
        """Whether `other` is this prefix or lies inside."""
        if self.version != other.version or self.length > other.length:
            return False
        shift = self.bits - self.length
        return self.value >> shift == other.value >> shift

    def __str__(self) -> str:
        family = AF_INET if self.version == 4 else AF_INET6
        return f"{inet_ntop(family, self.value.to_bytes(self.bits // 8, 'big'))}/{self.length}"


def parse(text: str) -> Network:
    """A prefix from text; an address counts as a whole one, host bits are dropped (RFC 4271, 4.3).

    Raises ValueError.
    """
    address, slash, length = text.partition("/")
    version, value = number(address)
    bits = 32 if version == 4 else 128
    if not slash:
        return Network(version, value, bits)
    shift = bits - _LENGTHS.get(length, bits + 1)
    if shift < 0:
        raise ValueError(f"{text!r} is not a prefix")
    return Network(version, value >> shift << shift, bits - shift)


network = lru_cache(_KEPT)(parse)
"""parse() for what is looked at again and again; of a hundred thousand new ones it only costs more."""


@lru_cache(_KEPT)
def canonical(text: str) -> str:
    """The prefix as the kernel prints it. Raises ValueError."""
    found = str(network(text))
    return text if text == found else found  # one object for all tables


def number(address: str) -> tuple[Version, int]:
    """Version and value of an address. Raises ValueError."""
    try:
        if ":" in address:
            return 6, int.from_bytes(inet_pton(AF_INET6, address), "big")
        return 4, int.from_bytes(inet_pton(AF_INET, address), "big")
    except OSError as err:
        raise ValueError(f"{address!r} is not an address") from err


def version(text: str) -> Version:
    """4 or 6, of an address or prefix already known to be valid."""
    return 6 if ":" in text else 4


def is_link_local(address: str) -> bool:
    """fe80::/10 (RFC 4291, 2.5.6): means nothing without an interface."""
    family, value = number(address)
    return family == 6 and value >> 118 == 0xFE80 >> 6
