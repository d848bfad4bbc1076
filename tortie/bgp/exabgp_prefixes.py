"""Prefixes on their way through ExaBGP, from an UPDATE to its helper: all of a field at once.

ExaBGP makes four objects for each prefix that it receives, and remembers them for a helper that starts
anew: 10 µs and 1 kB. Here the prefixes of one field of an UPDATE are one NLRI, a Prefixes, and what is
remembered is text. What a malformed one means is still said by ExaBGP's own decoder; so are attributes,
next hops and families.

Sessions of ours have no path identifiers (RFC 7911): they are not looked for.

replace() puts it all in place; imported by exabgp.py alone, after ExaBGP's settings were made.
"""

import os
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any

from exabgp import rib
from exabgp.bgp.message import Action
from exabgp.bgp.message.update.nlri import INET, NLRI
from exabgp.protocol.family import AFI
from exabgp.protocol.ip import NoNextHop
from exabgp.rib.incoming import IncomingRIB

from tortie.bgp.config import prefix_limit

# By prefix length: octets of the address that are sent, bits in the last of them that mean nothing, text.
_OCTETS = [(length + 7) // 8 for length in range(129)]
_HOST_BITS = [0xFF >> length % 8 if length % 8 else 0 for length in range(129)]
_LENGTHS = [f"/{length}" for length in range(129)]
_ZEROS = [bytes(count) for count in range(17)]  # by how many


class Prefixes(NLRI):  # type: ignore[misc]
    """Prefixes as text in the kernel's form, with the same action and next hop."""

    def __init__(self, afi: Any, safi: Any, action: int, texts: list[str]) -> None:
        super().__init__(afi, safi, action)
        self.texts = texts
        self.nexthop = NoNextHop

    def __repr__(self) -> str:
        return " ".join(self.texts)

    def json(self, announced: bool = True, compact: bool = False) -> str:
        return f'{{ "prefixes": "{self}" }}'

    @classmethod
    def unpack_nlri(cls, afi: Any, safi: Any, data: bytes, action: int, addpath: bool) -> tuple[Any, bytes]:
        """All of `data`, and what is left of it: nothing. Raises Notify for a prefix that is malformed."""
        texts, bad = read(data, AF_INET if afi == AFI.ipv4 else AF_INET6)
        if bad is not None:
            INET.unpack_nlri(afi, safi, data[bad:], action, addpath)
            raise RuntimeError("ExaBGP reads a prefix that is malformed")
        return cls(afi, safi, action, texts), b""


def read(data: bytes, family: int) -> tuple[list[str], int | None]:
    """Prefixes as in an UPDATE (RFC 4271, 4.3); and where one is malformed, if one is."""
    octets, lengths, host_bits, zeros = _OCTETS, _LENGTHS, _HOST_BITS, _ZEROS  # each is used for each prefix
    size = 4 if family == AF_INET else 16
    texts: list[str] = []
    at, end = 0, len(data)
    while at < end:
        length = data[at]
        after = at + 1 + octets[length] if length <= size * 8 else end + 1
        if after > end:
            return texts, at
        address = data[at + 1 : after]
        if stray := address and address[-1] & host_bits[length]:
            address = address[:-1] + bytes([address[-1] - stray])  # of no meaning (RFC 4271, 4.3)
        texts.append(inet_ntop(family, address + zeros[size - len(address)]) + lengths[length])
        at = after
    return texts, None


class Remembered:
    """A Change of ExaBGP's for one prefix; a listing makes them all at once."""

    __slots__ = ("_family", "_known", "_text")

    def __init__(self, family: Any, text: str, known: tuple[Any, Any]) -> None:
        self._family, self._text, self._known = family, text, known

    @property
    def nlri(self) -> Prefixes:
        afi, safi = self._family
        made = Prefixes(afi, safi, Action.ANNOUNCE, [self._text])
        made.nexthop = self._known[1]
        return made

    def as_dict(self) -> dict[str, Any]:
        attributes, next_hop = self._known
        afi, safi = self._family
        nlri = {
            "prefix": self._text,
            "nexthop": None if next_hop is NoNextHop else str(next_hop),
            "family": {"afi": str(afi), "safi": str(safi)},
        }
        return {"nlri": nlri, "attributes": attributes.as_dict()}


class LimitedRIB(IncomingRIB):  # type: ignore[misc]
    """What peers announced, for a helper that starts anew: no more than that itself takes."""

    limit = 0  # prefixes of one peer, 0: any number

    def update_cache(self, change: Any) -> None:
        """Each `_seen[family]` is prefix -> attributes and next hop."""
        nlri = change.nlri
        if not isinstance(nlri, Prefixes):
            return  # End-of-RIB is an NLRI to ExaBGP
        seen = self._seen.setdefault(nlri.family().afi_safi(), {})
        if nlri.action == Action.WITHDRAW:
            for text in nlri.texts:
                seen.pop(text, None)
            return
        known = change.attributes, nlri.nexthop
        if not self.limit or len(seen) + len(nlri.texts) <= self.limit:
            seen.update(dict.fromkeys(nlri.texts, known))
            return
        for text in nlri.texts:
            if len(seen) < self.limit or text in seen:
                seen[text] = known

    def cached_changes(self, families: Any = None) -> Iterator[Remembered]:
        for family in self.families if families is None else set(families).intersection(self.families):
            for text, known in self._seen.get(family, {}).items():
                yield Remembered(family, text, known)


def replace() -> None:
    LimitedRIB.limit = prefix_limit(os.environ)
    rib.IncomingRIB = LimitedRIB
    for family in ("ipv4/unicast", "ipv6/unicast"):
        NLRI.registered_nlri[family] = Prefixes
