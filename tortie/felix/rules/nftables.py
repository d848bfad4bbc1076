"""Renders the intermediate form for nftables: rules with Calico's hash comments, base chains, verdict maps.

One table `calico` per family holds what iptables has in four: the chain cali-FORWARD of the filter table is
`filter-cali-FORWARD`, and the kernel's chain FORWARD is a base chain of our own, `filter-FORWARD`. So nothing
here can touch, or be touched by, anybody else's rules. Text and hashes are Calico's (policy sheet 0 and 5.11;
felix/nftables/renderer.go), but for what its users would not want:
- hardly any rule holds a set of its own (`tcp dport { 80, 443 }`): the kernel's time to make one grows with
  their number, so that 10,000 of them take half a minute. There is a rule for each port or range instead;
- interface names are always quoted, as one may be called like a word of the language;
- an interface filter in iptables' words, `eth+`, means the same here;
- a negated ICMP type and code excludes that pair, where Calico asks that both differ;
- "not translated" is asked of the one bit and holds for untracked packets too; Calico's `ct status != dnat`
  compares the whole field and is always true.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from tortie.felix.rules import ir, names
from tortie.felix.rules.iptables import Features
from tortie.felix.rules.profiles import expendable
from tortie.linux.nft_table import Base, Chain, Content, Key, Map, Rule

TABLE = "calico"  # in the families ip and ip6

_COMMENT_MAX = 128  # NFTNL_UDATA_COMMENT_MAXLEN
_LOG_PREFIX_MAX = 127  # NF_LOG_PREFIXLEN is 128 with its NUL
_UNSAFE = re.compile(r"[^\w @%+=:,./-]", re.ASCII)
_UNSAFE_INTERFACE = re.compile(r"[^\w.:@+=,-]", re.ASCII)
_HASH_LENGTH = 16
_MAX_LINES = 32  # that one rule may become: two sides with a full list of ports each would be too many
_APPENDS = "*appends*"  # what sets the hashes of a base chain's last rules apart from its first

_FILTER, _DSTNAT, _SRCNAT, _MANGLE, _RAW = 0, -100, 110, -150, -300
# Calico puts source translation behind kube-proxy's, whose priority is the usual 100.

# Calico has four more that are always empty, and that every packet would go through.
BASE_CHAINS: dict[tuple[str, str], Base] = {  # (table, kernel chain) -> how its base chain is hooked
    (ir.FILTER, "INPUT"): Base("filter", "input", _FILTER),
    (ir.FILTER, "FORWARD"): Base("filter", "forward", _FILTER),
    (ir.FILTER, "OUTPUT"): Base("filter", "output", _FILTER),
    (ir.NAT, "PREROUTING"): Base("nat", "prerouting", _DSTNAT),
    (ir.NAT, "OUTPUT"): Base("nat", "output", _SRCNAT),
    (ir.NAT, "POSTROUTING"): Base("nat", "postrouting", _SRCNAT),
    (ir.MANGLE, "PREROUTING"): Base("filter", "prerouting", _MANGLE),
    (ir.MANGLE, "POSTROUTING"): Base("filter", "postrouting", _MANGLE),
    (ir.RAW, "PREROUTING"): Base("filter", "prerouting", _RAW),
    (ir.RAW, "OUTPUT"): Base("filter", "output", _RAW),
}


def chain_key(table: str, name: str) -> Key:
    return "chain", f"{table}-{names.long_chain(name)}"


def map_key(table: str, name: str) -> Key:
    return "map", f"{table}-{names.long_chain(name)}"


def expendable_chain(name: str) -> bool:
    """Whether a chain the kernel refuses may be replaced by a drop; nat has no drop."""
    table, _, chain = name.partition("-")
    return table != ir.NAT and expendable(chain)


def render_chain(chain: ir.Chain, table: str, version: int, features: Features) -> dict[Key, Content]:
    """One of our own chains for IP `version`, and the map it looks into, if it does."""
    key = chain_key(table, chain.name)
    rendered: dict[Key, Content] = {
        key: Chain(_render(chain.rules, key[1], _Words(version, table, key[1], features)))
    }
    for rule in chain.rules:
        if isinstance(rule.action, ir.Dispatch):
            elements = {_name(interface): chain_key(table, to)[1] for interface, to in rule.action.chains}
            rendered[map_key(table, chain.name)] = Map(frozenset(elements.items()))
    return rendered


def render_hook(hook: ir.Hook, table: str, name: str, features: Features) -> Chain:
    """One of the base chains; its text and hashes are the same for all families."""
    seed = f"{table}-{name}"
    words = _Words(4, table, seed, features)
    rules = _render(hook.first, seed, words) + _render(hook.last, seed + _APPENDS, words)
    return Chain(rules, BASE_CHAINS[table, name])


@dataclass(frozen=True, slots=True)
class _Words:
    """What a rule's text depends on besides the rule; `chain` is the nftables name of where it stands."""

    version: int
    table: str
    chain: str
    features: Features
    transport: str = "th"  # the protocol that a rule's ports are of

    @property
    def ip(self) -> str:
        return "ip" if self.version == 4 else "ip6"


def _render(rules: Sequence[ir.Rule], seed: str, words: _Words) -> tuple[Rule, ...]:
    return hashed(seed, ((body, rule.comments) for rule in rules for body in _bodies(rule, words)))


def hashed(seed: str, bodies: Iterable[tuple[str, Sequence[str]]]) -> tuple[Rule, ...]:
    """The rules of one chain, from the text of each and what is to be told to people."""
    digest = hashlib.sha224(seed.encode()).digest()
    rules: list[Rule] = []
    for body, comments in bodies:
        digest = hashlib.sha224(digest + body.encode()).digest()
        visible = base64.urlsafe_b64encode(digest)[:_HASH_LENGTH].decode()
        rules.append(Rule(visible, f'{body} comment "{_comment(visible, comments)}"'))
    return tuple(rules)


def _comment(ident: str, comments: Sequence[str]) -> str:
    """Every comment gets an equal share of the little room there is."""
    text = f"cali:{ident};"
    share = (_COMMENT_MAX - len(text)) // len(comments) - 1 if comments else 0
    return " ".join([text, *(_UNSAFE.sub("_", comment)[:share] for comment in comments)])


def _bodies(rule: ir.Rule, words: _Words) -> Iterator[str]:
    """The rule's text: several lines where one cannot ask the question, of which a packet matches one."""
    words = _with_transport(rule, words)
    limit, statement = "", ""
    if rule.action is not None:
        limit, statement = _ACTIONS[type(rule.action)](rule.action, words)
    lookup = isinstance(rule.action, ir.Dispatch)  # `vmap` is the key and the verdict in one
    ending = [limit, "" if lookup or rule.action is None else "counter", statement]
    for matches in _lines(rule, words, limited=bool(limit)):
        yield " ".join(filter(None, [*matches, *ending])) or "continue"


def _lines(rule: ir.Rule, words: _Words, limited: bool) -> Iterator[tuple[str, ...]]:
    """The matches of each line. What shares one rate limit must stay in one, and so must too many."""
    choices = [_alternatives(match, words) for match in rule.matches]
    limited = limited or any(isinstance(match, ir.RateLimit) for match in rule.matches)
    if limited or prod(map(len, choices)) > _MAX_LINES:
        choices = [
            [_ports(match, words)] if isinstance(match, ir.Ports) else found
            for match, found in zip(rule.matches, choices, strict=True)
        ]
    return product(*choices)


def _alternatives(match: ir.Match, words: _Words) -> list[str]:
    """One of these must hold, and no two can."""
    if isinstance(match, ir.Ports) and not match.negate:
        return [f"{words.transport} {_port(match.side)} {text}" for text in _ranges(match)]
    if isinstance(match, ir.Dnatted) and match.negate:
        # The connection's status is not asked of packets without one, which are not translated either.
        return [_dnatted(match, words), "ct state invalid,untracked"]
    if isinstance(match, ir.Icmp) and match.negate and match.code is not None:
        word = _icmp_word(match)
        return [f"{word} type != {match.type}", f"{word} type {match.type} {word} code != {match.code}"]
    return [_MATCHES[type(match)](match, words)]


def _with_transport(rule: ir.Rule, words: _Words) -> _Words:
    for match in rule.matches:
        if isinstance(match, ir.Protocol) and not match.negate:
            transport = _TRANSPORTS.get(match.protocol, "th")
            return _Words(words.version, words.table, words.chain, words.features, transport)
    return words


_TRANSPORTS: dict[int | str, str] = {  # protocol -> the word before `sport` and `dport`
    6: "tcp",
    17: "udp",
    132: "sctp",
    136: "udplite",
    **{name: name for name in ("tcp", "udp", "sctp", "udplite")},
}
_UNNAMED: dict[int | str, int] = {"udplite": 136, "ipip": 4}  # known by name from /etc/protocols only


# --- matches: match, words -> text ----------------------------------------------------------------


def _not(match: Any) -> str:
    return "!= " if match.negate else ""


def _mark(match: ir.Mark, _words: _Words) -> str:
    return f"meta mark & {match.mask:#x} {'!=' if match.negate else '=='} {_bits(match.value)}"


def _bits(value: int) -> str:
    return f"{value:#x}" if value else "0"


def _interface(match: ir.Interface, _words: _Words) -> str:
    return f'{_direction(match.direction)} "{_name(match.name)}{"*" if match.prefix else ""}"'


def _direction(direction: str) -> str:
    return "iifname" if direction == "in" else "oifname"


def _name(interface: str) -> str:
    return _UNSAFE_INTERFACE.sub("_", interface)


def _protocol(match: ir.Protocol, _words: _Words) -> str:
    return f"meta l4proto {_not(match)}{_UNNAMED.get(match.protocol, match.protocol)}"


def _address(side: ir.Side, words: _Words) -> str:
    return f"{words.ip} {'saddr' if side == 'src' else 'daddr'}"


def _net(match: ir.Net, words: _Words) -> str:
    return f"{_address(match.side, words)} {_not(match)}{match.cidr}"


def _set(match: ir.InSet, words: _Words) -> str:
    key = _address(match.side, words)
    if match.ports:
        key += f" . meta l4proto . th {_port(match.side)}"
    return f"{key} {_not(match)}@{names.nft_set(words.version, match.id)}"


def _port(side: ir.Side) -> str:
    return "sport" if side == "src" else "dport"


def _ports(match: ir.Ports, words: _Words) -> str:
    key = f"{words.transport} {_port(match.side)}"
    if match.negate:
        return " ".join(f"{key} != {text}" for text in _ranges(match))
    return f"{key} {{ {', '.join(_ranges(match))} }}"


def _ranges(match: ir.Ports) -> list[str]:
    """In order, and none overlaps another."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(match.ranges):
        if merged and low <= merged[-1][1]:
            low, high = merged[-1][0], max(high, merged.pop()[1])
        merged.append((low, high))
    return [str(low) if low == high else f"{low}-{high}" for low, high in merged]


def _icmp_word(match: ir.Icmp) -> str:
    return "icmp" if match.version == 4 else "icmpv6"


def _icmp(match: ir.Icmp, _words: _Words) -> str:
    word = _icmp_word(match)
    if match.code is None:
        return f"{word} type {_not(match)}{match.type}"
    return f"{word} type {match.type} {word} code {match.code}"


def _dnatted(match: ir.Dnatted, _words: _Words) -> str:
    return "ct status & dnat == 0" if match.negate else "ct status dnat"


def _local(match: ir.LocalAddress, _words: _Words) -> str:
    address = "saddr" if match.side == "src" else "daddr"
    return f"fib {address}{' . oif' if match.of_interface else ''} type {_not(match)}local"


def _rate(match: ir.RateLimit, _words: _Words) -> str:
    return f"limit rate {match.rate}" + (f" burst {match.burst} packets" if match.burst else "")


_MATCHES: dict[type, Callable[[Any, _Words], str]] = {  # kind of match -> its text
    ir.Mark: _mark,
    ir.Interface: _interface,
    ir.Protocol: _protocol,
    ir.Net: _net,
    ir.InSet: _set,
    ir.Ports: _ports,
    ir.Port: lambda match, words: f"{words.transport} dport {match.port}",
    ir.Icmp: _icmp,
    ir.Conntrack: lambda match, _: f"ct state {','.join(match.states).lower()}",
    ir.Dnatted: _dnatted,
    ir.ReversePathFailed: lambda match, _: "fib saddr . mark . iif oif 0",
    ir.LocalAddress: _local,
    ir.RateLimit: _rate,
}


# --- actions: action, words -> (what limits it, statement) ------------------------------------------


def _leading(word: str) -> Callable[[Any, _Words], tuple[str, str]]:
    return lambda action, words: ("", f"{word} {chain_key(words.table, action.chain)[1]}")


def _set_mark(action: ir.SetMark, _words: _Words) -> tuple[str, str]:
    kept = ~action.mask & 0xFFFFFFFF
    if action.value == action.mask:
        return "", f"meta mark set mark or {action.value:#x}"
    if not action.value:
        return "", f"meta mark set mark & {kept:#x}"
    return "", f"meta mark set mark & {kept:#x} ^ {action.value:#x}"


def _masquerade(action: ir.Masquerade, words: _Words) -> tuple[str, str]:
    ports = f" to :{action.ports}" if action.ports else ""
    return "", f"masquerade{ports}" + (" fully-random" if words.features.masquerade_random else "")


def _snat(action: ir.Snat, words: _Words) -> tuple[str, str]:
    random = " fully-random" if words.features.snat_random else ""
    return "", f"snat to {action.target}{random}"


def _log(action: ir.Log, _words: _Words) -> tuple[str, str]:
    prefix = _UNSAFE.sub("_", action.prefix)[: _LOG_PREFIX_MAX - 2]
    return "", f'log prefix "{prefix}: " level info'


def _within_rate(action: ir.MarkWithinRate, _words: _Words) -> tuple[str, str]:
    burst = f" burst {action.burst} packets" if action.burst else ""
    return f"limit rate {action.rate}/second{burst}", f"meta mark set mark or {action.mark:#x}"


def _above_connections(action: ir.ResetAboveConnections, _words: _Words) -> tuple[str, str]:
    first = "meta l4proto tcp tcp flags & (fin | syn | rst | ack) == syn"
    return f"{first} ct count over {action.count}", "reject with tcp reset"


def _dispatch(action: ir.Dispatch, words: _Words) -> tuple[str, str]:
    return "", f"{_direction(action.direction)} vmap @{words.chain}"


def _plain(statement: str) -> Callable[[Any, _Words], tuple[str, str]]:
    return lambda _action, _words: ("", statement)


_ACTIONS: dict[type, Callable[[Any, _Words], tuple[str, str]]] = {  # kind of action -> its text
    ir.Accept: _plain("accept"),
    ir.Drop: _plain("drop"),
    ir.Reject: _plain("reject"),
    ir.Return: _plain("return"),
    ir.NoTrack: _plain("notrack"),
    ir.Jump: _leading("jump"),
    ir.Goto: _leading("goto"),
    ir.Dispatch: _dispatch,
    ir.SetMark: _set_mark,
    ir.Masquerade: _masquerade,
    ir.Snat: _snat,
    ir.Dnat: lambda action, _words: ("", f"dnat to {action.address}"),
    ir.Log: _log,
    ir.SetDscp: lambda action, words: ("", f"{words.ip} dscp set {action.value}"),
    ir.MarkWithinRate: _within_rate,
    ir.ResetAboveConnections: _above_connections,
}
