"""Routing rules: those that send packets to a table by their mark, as `ip rule` shows them.

    99: not from all fwmark 0x200000/0x200000 lookup 1

A rule that asks for anything else (addresses, interfaces, ports …) has no value here and is never touched.
"""

import errno
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from struct import Struct

from tortie.core.errors import KernelError
from tortie.linux import codec
from tortie.linux.codec import NLM_F_CREATE, NLM_F_EXCL, Message, attribute_u32, attributes, read_u32
from tortie.linux.netlink import NetlinkSocket, gone

_NEW, _DELETE, _GET = 32, 33, 34  # RTM_…RULE
_HEAD = Struct("=BBBBBxxBI")  # family, dst_len, src_len, tos, table, action, flags
_TO_TABLE = 1  # FR_ACT_TO_TBL
_INVERT = 2  # FIB_RULE_INVERT
_PRIORITY, _MARK, _TABLE, _MASK = 6, 10, 15, 16  # FRA_…
# What says nothing about packets: FRA_SUPPRESS_PREFIXLEN, FRA_PROTOCOL, and the padding.
_HARMLESS = frozenset((14, 18, 21))
_NONE = 0xFFFFFFFF  # FRA_SUPPRESS_PREFIXLEN: not said


@dataclass(frozen=True, slots=True)
class Rule:
    """`invert`: for packets whose mark, under the mask, is another one."""

    version: int
    priority: int
    table: int
    mark: int
    mask: int
    invert: bool = False

    def __str__(self) -> str:
        mark = f"fwmark {self.mark:#x}/{self.mask:#x}"
        return f"{self.priority}: {'not ' * self.invert}from all {mark} lookup {self.table}"


@codec.encoder("routing rule")
def add(rule: Rule) -> Message:
    """EEXIST if there is the very same."""
    return Message(_NEW, NLM_F_CREATE | NLM_F_EXCL, _body(rule), "add", f"rule {rule}")


@codec.encoder("routing rule")
def delete(rule: Rule) -> Message:
    """ENOENT means that it was gone."""
    return Message(_DELETE, 0, _body(rule), "delete", f"rule {rule}")


def _body(rule: Rule) -> bytes:
    family = AF_INET if rule.version == 4 else AF_INET6
    short = rule.table if rule.table < 256 else 0
    head = _HEAD.pack(family, 0, 0, 0, short, _TO_TABLE, _INVERT if rule.invert else 0)
    numbers = ((_PRIORITY, rule.priority), (_TABLE, rule.table), (_MARK, rule.mark), (_MASK, rule.mask))
    return head + b"".join(attribute_u32(kind, value) for kind, value in numbers)


@codec.decoder("routing rule")
def decode(body: bytes) -> Rule | None:
    """None for a rule that this file has no words for."""
    family, dst, src, tos, short, action, flags = _HEAD.unpack_from(body)
    found = attributes(body, _HEAD.size)
    if family not in (AF_INET, AF_INET6) or dst or src or tos or action != _TO_TABLE or flags & ~_INVERT:
        return None
    if found.keys() - {_PRIORITY, _MARK, _TABLE, _MASK} - _HARMLESS or _MARK not in found:
        return None
    if 14 in found and read_u32(found[14]) != _NONE:
        return None
    return Rule(
        4 if family == AF_INET else 6,
        read_u32(found[_PRIORITY]) if _PRIORITY in found else 0,
        read_u32(found[_TABLE]) if _TABLE in found else short,
        read_u32(found[_MARK]),
        read_u32(found[_MASK]) if _MASK in found else _NONE,
        bool(flags & _INVERT),
    )


def dump(netlink: NetlinkSocket, version: int) -> list[Rule]:
    """The rules of one IP version that can be said here. Raises KernelError."""
    family = AF_INET if version == 4 else AF_INET6
    message = Message(_GET, 0, _HEAD.pack(family, 0, 0, 0, 0, 0, 0), "dump", "rules")
    found = (decode(answer.body) for answer in netlink.dump(message) if answer.kind == _NEW)
    return [rule for rule in found if rule is not None]


class RuleTarget:
    """reconcile.Target[Rule, bool] for the rules of one IP version that `owns` says are ours."""

    def __init__(self, netlink: NetlinkSocket, version: int, owns: Callable[[Rule], bool]) -> None:
        self._netlink, self._version, self._owns = netlink, version, owns

    async def read(self) -> Mapping[Rule, bool]:
        return {rule: True for rule in dump(self._netlink, self._version) if self._owns(rule)}

    async def apply(self, update: Mapping[Rule, bool], delete_: Collection[Rule]) -> Mapping[Rule, str]:
        """What is new first: a rule that changes leaves no moment without one."""
        failed: dict[Rule, str] = {}
        steps = [(rule, add(rule)) for rule in update] + [(rule, delete(rule)) for rule in delete_]
        for (rule, message), error in zip(
            steps, self._netlink.request([message for _, message in steps]), strict=True
        ):
            if error is not None and not _done_before(message, error):
                failed[rule] = str(error)
        return failed

    def same(self, desired: bool, actual: bool) -> bool:
        return desired == actual


def _done_before(message: Message, error: KernelError) -> bool:
    return error.errno == errno.EEXIST if message.kind == _NEW else gone(error)
