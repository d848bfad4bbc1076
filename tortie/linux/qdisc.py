"""Limits on what interfaces carry: token buckets, and the redirection that lets them limit what comes in.

A token bucket (tbf) holds back what an interface sends. What an interface receives is redirected to an
ifb device, which sends it on: its bucket limits that. (linux/pkt_sched.h, linux/pkt_cls.h; tc-tbf(8).)
"""

from dataclasses import dataclass
from struct import Struct

from tortie.linux import codec
from tortie.linux.codec import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    attribute,
    attribute_text,
    attribute_u32,
    attributes,
    nested,
    read_text,
)
from tortie.linux.netlink import NetlinkSocket

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER = 44
_ROOT, _INGRESS_PARENT = 0xFFFFFFFF, 0xFFFFFFF1  # TC_H_ROOT, TC_H_INGRESS
_INGRESS = 0xFFFF0000  # the handle of every ingress qdisc
HANDLE = 0xCA110000  # of our buckets; those of the CNI plugin `bandwidth` have 1:

_TCMSG = Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_RATE = Struct("=BBHhHI")  # cell_log, linklayer, overhead, cell_align, mpu, bytes/s
_LIMITS = Struct("=III")  # limit, buffer, mtu; the rest of struct tc_tbf_qopt
_U64 = Struct("=Q")
_SELECTOR = Struct("=BBBxHHhhI")  # struct tc_u32_sel
_KEY = Struct("=IIii")  # struct tc_u32_key: mask, value, offset, offset mask
_MIRRED = Struct("=IIiiiiI")  # struct tc_mirred: index, capabilities, action, counts, what to do, ifindex
_KIND, _OPTIONS = 1, 2
_PARMS, _RATE64, _PRATE64, _BURST, _PBURST = 1, 4, 5, 6, 7
_CLASS, _SEL, _ACT = 1, 5, 7  # of u32
_MIRRED_PARMS = 2
_ETHERNET = 1  # linklayer: the kernel computes transmission times by itself
_TICK = 64  # ns, in which buckets are told (PSCHED_SHIFT)
_MOST = 0xFFFFFFFF
_EVERY_PROTOCOL = 0x0300  # ETH_P_ALL in network byte order
_STOLEN, _REDIRECT = 4, 1  # TC_ACT_STOLEN, TCA_EGRESS_REDIR


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: bytes/s, and bytes; `limit` is what may wait. Peak rate 0: no second bucket."""

    rate: int
    burst: int
    limit: int
    peak_rate: int = 0
    peak_burst: int = 0

    def near(self, other: "Bucket") -> bool:
        """The same but for rounding: the kernel keeps bursts as times."""
        exact = (self.rate, self.limit, self.peak_rate) == (other.rate, other.limit, other.peak_rate)
        return (
            exact
            and _near(self.burst, other.burst, self.rate)
            and _near(self.peak_burst, other.peak_burst, self.peak_rate)
        )


def _near(one: int, other: int, rate: int) -> bool:
    return abs(one - other) <= max(one // 100, 2 * _TICK * rate // 10**9 + 2)


def longest(rate: int) -> int:
    """The biggest burst in bytes that the kernel can tell us of: 2^32 ticks of sending."""
    return min(_MOST, rate * _TICK * _MOST // 10**9)


@dataclass(frozen=True, slots=True)
class Qdisc:
    """A queueing discipline; `bucket` is None for every kind but tbf."""

    ifindex: int
    kind: str
    handle: int
    parent: int
    bucket: Bucket | None = None


@codec.encoder("qdisc")
def replace_bucket(ifindex: int, bucket: Bucket) -> Message:
    """At the root of an interface, in the place of whatever is there."""
    rates = _rate(bucket.rate) + _rate(bucket.peak_rate)
    options = [attribute(_PARMS, rates + _LIMITS.pack(bucket.limit, 0, 0))]
    options.append(attribute_u32(_BURST, bucket.burst))
    if bucket.rate > _MOST:
        options.append(attribute(_RATE64, _U64.pack(bucket.rate)))
    if bucket.peak_rate:
        options.append(attribute_u32(_PBURST, bucket.peak_burst))
    if bucket.peak_rate > _MOST:
        options.append(attribute(_PRATE64, _U64.pack(bucket.peak_rate)))
    body = _TCMSG.pack(0, ifindex, HANDLE, _ROOT, 0) + attribute_text(_KIND, "tbf")
    body += nested(_OPTIONS, *options)
    return Message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, body, "replace", f"token bucket of {ifindex}")


def delete_bucket(ifindex: int) -> Message:
    """Ours only; ENOENT or EINVAL if there is another one, or none."""
    body = _TCMSG.pack(0, ifindex, HANDLE, _ROOT, 0)
    return Message(RTM_DELQDISC, 0, body, "delete", f"token bucket of {ifindex}")


def add_ingress(ifindex: int) -> Message:
    """Where what comes in can be redirected from; EEXIST if there is one."""
    body = _TCMSG.pack(0, ifindex, _INGRESS, _INGRESS_PARENT, 0) + attribute_text(_KIND, "ingress")
    return Message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body, "create", f"ingress qdisc of {ifindex}")


def delete_ingress(ifindex: int) -> Message:
    """With every redirection; ENOENT or EINVAL if there is none."""
    body = _TCMSG.pack(0, ifindex, _INGRESS, _INGRESS_PARENT, 0)
    return Message(RTM_DELQDISC, 0, body, "delete", f"ingress qdisc of {ifindex}")


@codec.encoder("filter")
def redirect(ifindex: int, target: int) -> Message:
    """All that comes in at `ifindex` goes to `target`, which sends it on to where it was going."""
    gen = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _REDIRECT, target)
    action = nested(1, attribute_text(1, "mirred"), nested(2, attribute(_MIRRED_PARMS, gen)))
    everything = _SELECTOR.pack(1, 0, 1, 0, 0, 0, 0, 0) + _KEY.pack(0, 0, 0, 0)
    body = _TCMSG.pack(0, ifindex, 0, _INGRESS, 1 << 16 | _EVERY_PROTOCOL) + attribute_text(_KIND, "u32")
    body += nested(
        _OPTIONS, attribute_u32(_CLASS, 0x10001), attribute(_SEL, everything), nested(_ACT, action)
    )
    return Message(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, body, "create", f"redirection of {ifindex}")


def dump(netlink: NetlinkSocket) -> list[Qdisc]:
    """Those of every interface. Raises KernelError."""
    request = Message(RTM_GETQDISC, 0, _TCMSG.pack(0, 0, 0, 0, 0), "dump", "qdiscs")
    return [decode(answer.body) for answer in netlink.dump(request)]


@codec.decoder("qdisc")
def decode(body: bytes) -> Qdisc:
    """From an RTM_NEWQDISC body."""
    _, ifindex, handle, parent, _ = _TCMSG.unpack_from(body)
    found = attributes(body, _TCMSG.size)
    kind = read_text(found.get(_KIND, b""))
    bucket = _bucket(attributes(found[_OPTIONS])) if kind == "tbf" and _OPTIONS in found else None
    return Qdisc(ifindex, kind, handle, parent, bucket)


def _bucket(found: dict[int, bytes]) -> Bucket:
    parms = found[_PARMS]
    rate, peak_rate = (_RATE.unpack_from(parms, offset)[-1] for offset in (0, _RATE.size))
    limit, buffer, mtu = _LIMITS.unpack_from(parms, 2 * _RATE.size)
    if _RATE64 in found:
        (rate,) = _U64.unpack(found[_RATE64])
    if _PRATE64 in found:
        (peak_rate,) = _U64.unpack(found[_PRATE64])
    return Bucket(rate, _bytes(buffer, rate), limit, peak_rate, _bytes(mtu, peak_rate))


def _rate(rate: int) -> bytes:
    return _RATE.pack(0, _ETHERNET, 0, 0, 0, min(rate, _MOST))


def _bytes(ticks: int, rate: int) -> int:
    return ticks * _TICK * rate // 10**9
