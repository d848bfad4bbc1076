"""Routing rules by source: `30000: from 10.0.0.1 lookup 65539`, which a host with several uplinks needs.

Whatever leaves from one of its addresses then leaves by the interface that has it. Rules that ask for
anything else, such as a mark (iprules), have no value here and are never touched.
"""

from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from struct import Struct

from tortie.linux import codec
from tortie.linux.codec import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    attribute,
    attribute_u32,
    attributes,
    read_u32,
)
from tortie.linux.netlink import NetlinkSocket

_NEW, _DELETE, _GET = 32, 33, 34  # RTM_…RULE
_HEAD = Struct("=BBBBBxxBI")  # family, dst_len, src_len, tos, table, action, flags
_TO_TABLE = 1  # FR_ACT_TO_TBL
_SOURCE, _PRIORITY, _TABLE = 2, 6, 15  # FRA_…
# What says nothing about packets: FRA_SUPPRESS_PREFIXLEN, FRA_PROTOCOL, and the padding.
_HARMLESS = frozenset((14, 18, 21))


@dataclass(frozen=True, slots=True)
class SourceRule:
    """`source` is a bare address."""

    source: str
    table: int
    priority: int

    def __str__(self) -> str:
        return f"{self.priority}: from {self.source} lookup {self.table}"


@codec.encoder("routing rule")
def add(rule: SourceRule) -> Message:
    """EEXIST if there is the very same."""
    return Message(_NEW, NLM_F_CREATE | NLM_F_EXCL, _body(rule), "add", f"rule {rule}")


@codec.encoder("routing rule")
def delete(rule: SourceRule) -> Message:
    """ENOENT means that it was gone."""
    return Message(_DELETE, 0, _body(rule), "delete", f"rule {rule}")


def _body(rule: SourceRule) -> bytes:
    source = codec.pack_address(rule.source)
    family = AF_INET6 if ":" in rule.source else AF_INET
    short = rule.table if rule.table < 256 else 0
    head = _HEAD.pack(family, 0, len(source) * 8, 0, short, _TO_TABLE, 0)
    numbers = attribute_u32(_PRIORITY, rule.priority) + attribute_u32(_TABLE, rule.table)
    return head + attribute(_SOURCE, source) + numbers


@codec.decoder("routing rule")
def decode(body: bytes) -> SourceRule | None:
    """None for a rule that is no single address's."""
    family, dst, src, tos, short, action, flags = _HEAD.unpack_from(body)
    found = attributes(body, _HEAD.size)
    single = {AF_INET: 32, AF_INET6: 128}.get(family)
    if src != single or dst or tos or flags or action != _TO_TABLE or _PRIORITY not in found:
        return None
    if found.keys() - {_SOURCE, _PRIORITY, _TABLE} - _HARMLESS:
        return None
    table = read_u32(found[_TABLE]) if _TABLE in found else short
    return SourceRule(codec.unpack_address(found[_SOURCE]), table, read_u32(found[_PRIORITY]))


def dump(netlink: NetlinkSocket) -> list[SourceRule]:
    """Those of both families. Raises KernelError."""
    found = []
    for family in (AF_INET, AF_INET6):
        message = Message(_GET, 0, _HEAD.pack(family, 0, 0, 0, 0, 0, 0), "dump", "rules")
        found += [decode(answer.body) for answer in netlink.dump(message) if answer.kind == _NEW]
    return [rule for rule in found if rule is not None]
