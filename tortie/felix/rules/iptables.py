"""Renders the intermediate form as iptables-restore text, with Calico's hash comments.

Each rule carries the comment `cali:<hash>`; the hash covers the rule and all before it in its chain,
so that comparing hashes compares chains. Text and hashes are those of Calico (policy sheet 0 and
5.6; felix/iptables/renderer.go, felix/generictables/rules.go), so an upgrade from Calico rewrites
only what differs. Nothing but what is rendered here ever reaches a ruleset line, and every free text
in it (comments, log prefixes) is made harmless here.

Comments stand behind the other matches, where Calico has them in front: the kernel asks one after another,
each at a cost, and comments always match. Nobody minds where they are.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tortie.felix.rules import ir, names
from tortie.linux.iptables import Hooked, Own, RuleText

_COMMENT_MAX = 255  # XT_MAX_COMMENT_LEN with its NUL; Calico cuts at 256, which iptables refuses
_LOG_PREFIX_MAX = 29  # struct xt_log_info
_UNSAFE = re.compile(r"[^\w @%+=:,./-]", re.ASCII)
_HASH_LENGTH = 16
_APPENDS = "*appends*"  # what sets the hashes of a kernel chain's last rules apart from its first


@dataclass(frozen=True, slots=True)
class Features:
    """What this host's iptables and kernel can do, as far as it changes the text."""

    masquerade_random: bool = True
    snat_random: bool = True


def render_chain(chain: ir.Chain, version: int, features: Features) -> Own:
    """The content of one of our own chains for IP `version`."""
    return Own(_render(chain.rules, chain.name, version, features))


def render_hook(hook: ir.Hook, chain: str, version: int, features: Features) -> Hooked:
    """Our part of one of the kernel's chains."""
    first = _render(hook.first, chain, version, features)
    last = _render(hook.last, chain + _APPENDS, version, features)
    return Hooked(first, last)


def _render(rules: Sequence[ir.Rule], seed: str, version: int, features: Features) -> tuple[RuleText, ...]:
    digest = hashlib.sha224(seed.encode()).digest()
    rendered: list[RuleText] = []
    for rule in rules:
        comments = [_remark(_comment(text)) for text in rule.comments]
        matches = [_MATCHES[type(match)](match, version) for match in rule.matches]
        action = [] if rule.action is None else [_ACTIONS[type(rule.action)](rule.action, features)]
        text = " ".join([f"-A {seed} HASH", *comments, *matches, *action])
        digest = hashlib.sha224(digest + text.encode()).digest()
        visible = base64.urlsafe_b64encode(digest)[:_HASH_LENGTH].decode()
        shown = " ".join([*matches, _remark(f"cali:{visible}"), *comments, *action])
        rendered.append(RuleText(visible, shown))
    return tuple(rendered)


def _remark(text: str) -> str:
    return f'-m comment --comment "{text}"'


def _comment(text: str) -> str:
    return _UNSAFE.sub("_", text)[:_COMMENT_MAX]


# --- matches: match, IP version -> text ---------------------------------------------------------


def _not(match: Any) -> str:
    return "! " if match.negate else ""


def _mark(match: ir.Mark, _version: int) -> str:
    return f"-m mark {_not(match)}--mark {_bits(match.value)}/{match.mask:#x}"


def _bits(value: int) -> str:
    return f"{value:#x}" if value else "0"


def _interface(match: ir.Interface, _version: int) -> str:
    return f"--{match.direction}-interface {match.name}{'+' if match.prefix else ''}"


def _net(match: ir.Net, _version: int) -> str:
    return f"{_not(match)}{'--source' if match.side == 'src' else '--destination'} {match.cidr}"


def _set(match: ir.InSet, version: int) -> str:
    side = f"{match.side},{match.side}" if match.ports else match.side
    return f"-m set {_not(match)}--match-set {names.ip_set(version, match.id)} {side}"


def _ports(match: ir.Ports, _version: int) -> str:
    option = "--source-ports" if match.side == "src" else "--destination-ports"
    text = ",".join(str(low) if low == high else f"{low}:{high}" for low, high in match.ranges)
    return f"-m multiport {_not(match)}{option} {text}"


def _icmp(match: ir.Icmp, _version: int) -> str:
    module, option = ("icmp", "--icmp-type") if match.version == 4 else ("icmp6", "--icmpv6-type")
    code = "" if match.code is None else f"/{match.code}"
    return f"-m {module} {_not(match)}{option} {match.type}{code}"


def _local(match: ir.LocalAddress, _version: int) -> str:
    limit = " --limit-iface-out" if match.of_interface else ""
    return f"-m addrtype {_not(match)}--{match.side}-type LOCAL{limit}"


def _rate(match: ir.RateLimit, _version: int) -> str:
    return f"-m limit --limit {match.rate}" + (f" --limit-burst {match.burst}" if match.burst else "")


_MATCHES: dict[type, Callable[[Any, int], str]] = {  # kind of match -> its text
    ir.Mark: _mark,
    ir.Interface: _interface,
    ir.Protocol: lambda match, _: f"{_not(match)}-p {match.protocol}",
    ir.Net: _net,
    ir.InSet: _set,
    ir.Ports: _ports,
    ir.Port: lambda match, _: f"--dport {match.port}",
    ir.Icmp: _icmp,
    ir.Conntrack: lambda match, _: f"-m conntrack --ctstate {','.join(match.states)}",
    ir.Dnatted: lambda match, _: f"-m conntrack {_not(match)}--ctstate DNAT",
    ir.ReversePathFailed: lambda match, _: "-m rpfilter --invert --validmark",
    ir.LocalAddress: _local,
    ir.RateLimit: _rate,
}


# --- actions: action, features -> text ----------------------------------------------------------


def _set_mark(action: ir.SetMark, _features: Features) -> str:
    return f"--jump MARK --set-mark {_bits(action.value)}/{action.mask:#x}"


def _masquerade(action: ir.Masquerade, features: Features) -> str:
    ports = f" --to-ports {action.ports}" if action.ports else ""
    return f"--jump MASQUERADE{ports}" + (" --random-fully" if features.masquerade_random else "")


def _snat(action: ir.Snat, features: Features) -> str:
    return f"--jump SNAT --to-source {action.target}" + (" --random-fully" if features.snat_random else "")


def _log(action: ir.Log, _features: Features) -> str:
    prefix = _UNSAFE.sub("_", action.prefix)[: _LOG_PREFIX_MAX - 2]
    return f'--jump LOG --log-prefix "{prefix}: " --log-level 5'


def _within_rate(action: ir.MarkWithinRate, _features: Features) -> str:
    mark = f"--jump MARK --set-mark {action.mark:#x}/{action.mark:#x}"
    return f"-m limit --limit {action.rate}/sec --limit-burst {action.burst} {mark}"


def _above_connections(action: ir.ResetAboveConnections, _features: Features) -> str:
    return (
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN "
        f"-m connlimit --connlimit-above {action.count} --connlimit-mask 0 "
        "-j REJECT --reject-with tcp-reset"
    )


_ACTIONS: dict[type, Callable[[Any, Features], str]] = {  # kind of action -> its text
    ir.Accept: lambda _, __: "--jump ACCEPT",
    ir.Drop: lambda _, __: "--jump DROP",
    ir.Reject: lambda _, __: "--jump REJECT",
    ir.Return: lambda _, __: "--jump RETURN",
    ir.Jump: lambda action, _: f"--jump {action.chain}",
    ir.Goto: lambda action, _: f"--goto {action.chain}",
    ir.SetMark: _set_mark,
    ir.NoTrack: lambda _, __: "--jump NOTRACK",
    ir.Masquerade: _masquerade,
    ir.Snat: _snat,
    ir.Dnat: lambda action, _: f"--jump DNAT --to-destination {action.address}",
    ir.Log: _log,
    ir.SetDscp: lambda action, _: f"--jump DSCP --set-dscp {action.value}",
    ir.MarkWithinRate: _within_rate,
    ir.ResetAboveConnections: _above_connections,
}
