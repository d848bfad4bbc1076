"""The chains that always exist: from the kernel's own chains to the dispatch trees.

They decide nothing about single endpoints. Together with the dispatch trees' end rules they are what
denies traffic of workloads that felix does not know, so they are complete before any endpoint is.
(Reference: policy sheet 5.2, 5.3; felix/rules/static.go. For a host without OpenStack, IPVS, eBPF.)
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from tortie.felix.calc.model import version_of
from tortie.felix.rules import ir, names, nat
from tortie.felix.rules.ir import (
    Chain,
    Conntrack,
    Dnatted,
    Goto,
    Hook,
    Icmp,
    InSet,
    Interface,
    Jump,
    LocalAddress,
    Net,
    Ports,
    Protocol,
    Rule,
)
from tortie.felix.rules.settings import Failsafe, Settings, verb

_IPIP, _UDP, _ICMPV6 = 4, 17, 58
# Multicast listener query, report and done; router solicitation; neighbour solicitation and
# advertisement: without these a router is none, so no policy may forbid them.
_ROUTER_ICMPV6 = (130, 131, 132, 133, 135, 136)
_NEIGHBOUR_ICMPV6 = (133, 134, 135, 136)  # solicitations and advertisements of RFC 4861
_ACCEPTED_BY_POLICY = "Policy explicitly accepted packet."
_ACCEPTED_BY_HOST = "Host endpoint policy accepted packet."


def hooks(settings: Settings) -> dict[tuple[str, str], Hook]:
    """(table, kernel chain) -> our rules in it."""
    marks = settings.marks
    forwarded = (
        Rule((ir.all_set(marks.accept),), settings.filter_allow, (_ACCEPTED_BY_POLICY,)),
        Rule(action=ir.set_bits(marks.accept)),  # tells mangle POSTROUTING that this was forwarded
    )
    return {
        (ir.RAW, "PREROUTING"): _jump(names.PREROUTING),
        (ir.RAW, "OUTPUT"): _jump(names.OUTPUT),
        (ir.MANGLE, "PREROUTING"): _jump(names.PREROUTING),
        (ir.MANGLE, "POSTROUTING"): _jump(names.POSTROUTING),
        (ir.NAT, "PREROUTING"): _jump(names.PREROUTING),
        (ir.NAT, "OUTPUT"): _jump(names.OUTPUT),
        # Behind kube-proxy's: it must clear its mark before we translate.
        (ir.NAT, "POSTROUTING"): Hook(last=(Rule(action=Jump(names.POSTROUTING)),)),
        (ir.FILTER, "INPUT"): _jump(names.INPUT),
        (ir.FILTER, "FORWARD"): Hook(first=(Rule(action=Jump(names.FORWARD)),), last=forwarded),
        (ir.FILTER, "OUTPUT"): _jump(names.OUTPUT),
    }


def _jump(chain: str) -> Hook:
    return Hook(first=(Rule(action=Jump(chain)),))


def chains(version: int, settings: Settings, idle: Collection[str] = ()) -> dict[str, list[Chain]]:
    """Table -> its static chains.

    `idle`: chains that are empty. Every packet would be led there in vain, and then asked what was found, so
    the rules for that are left out; of a chain that then has none its hook may be (Tortie's own: Calico's
    packets go through all of it).
    """
    return {
        ir.RAW: [
            _raw_prerouting(version, settings, idle),
            _raw_output(version, settings, idle),
            _wireguard_mark(settings),
            *_failsafes(ir.RAW, version, settings),
        ],
        ir.MANGLE: [
            _mangle_prerouting(settings, idle),
            _mangle_postrouting(settings, idle),
            *_failsafes(ir.MANGLE, version, settings),
        ],
        ir.NAT: nat.static_chains(version, settings),
        ir.FILTER: [
            _input(version, settings, idle),
            _workload_to_host(version, settings),
            _forward(settings, idle),
            _output(version, settings, idle),
            *_failsafes(ir.FILTER, version, settings),
        ],
    }


def _from_workload(settings: Settings, action: ir.Action, *also: ir.Match) -> Iterator[Rule]:
    for prefix in settings.workload_prefixes:
        yield Rule((Interface("in", prefix, prefix=True), *also), action)


def _to_workload(settings: Settings, action: ir.Action) -> Iterator[Rule]:
    for prefix in settings.workload_prefixes:
        yield Rule((Interface("out", prefix, prefix=True),), action)


def _unless(idle: Collection[str], chain: str, *rules: Rule) -> tuple[Rule, ...]:
    """Rules that lead to a chain, prepare for it or act on what it found."""
    return () if chain in idle else rules


# --- raw ----------------------------------------------------------------------------------------


def _raw_prerouting(version: int, settings: Settings, idle: Collection[str]) -> Chain:
    """Before connection tracking: no workload may use a source address that is not routed to it.

    Calico marks what comes from workloads and then asks for the mark; to ask for the interface each time is
    the same and costs a packet less.
    """
    marks = settings.marks
    rules = [Rule(action=ir.clear_bits(marks.cleared))]
    if settings.wireguard and settings.wireguard_host_encryption:
        rules.append(Rule(action=Jump(names.WIREGUARD_MARK)))
    rules += _vxlan_untracked(version, settings)
    rules += _unless(idle, names.RPF_SKIP, *_from_workload(settings, Jump(names.RPF_SKIP)))
    rules += _from_workload(settings, settings.deny(ir.RAW), ir.ReversePathFailed())
    rules += _unless(
        idle,
        names.FROM_HOST_DISPATCH,
        *_from_workload(settings, ir.RETURN),
        Rule(action=Jump(names.FROM_HOST_DISPATCH)),
        Rule((ir.all_set(marks.accept),), ir.ACCEPT),
    )
    return Chain(names.PREROUTING, tuple(rules))


def _raw_output(version: int, settings: Settings, idle: Collection[str]) -> Chain:
    accepted = ir.all_set(settings.marks.accept)
    rules = [
        Rule(action=ir.clear_bits(settings.marks.cleared)),
        *_unless(idle, names.TO_HOST_DISPATCH, Rule(action=Jump(names.TO_HOST_DISPATCH))),
        *_vxlan_untracked(version, settings),
        *_unless(idle, names.TO_HOST_DISPATCH, Rule((accepted,), ir.ACCEPT)),
    ]
    return Chain(names.OUTPUT, tuple(rules))


def _vxlan_untracked(version: int, settings: Settings) -> list[Rule]:
    """VXLAN uses other source ports on the way back: tracking would see flows without an answer."""
    if version not in settings.vxlan:
        return []
    return [Rule((Protocol("udp"), ir.Port(settings.vxlan_port)), ir.NO_TRACK)]


def rpf_skip_chain(spoofing: Iterable[tuple[str, str]], version: int) -> Chain:
    """`spoofing`: (interface, prefix) that a workload may send from besides its own addresses."""
    mine = sorted(pair for pair in spoofing if version_of(pair[1]) == version)
    rules = [Rule((Interface("in", name), Net("src", prefix)), ir.ACCEPT) for name, prefix in mine]
    return Chain(names.RPF_SKIP, tuple(rules))


def _wireguard_mark(settings: Settings) -> Chain:
    """What arrives from a tunnel's underlay is marked, so that the reverse path check lets it pass."""
    if not settings.marks.wireguard:
        return Chain(names.WIREGUARD_MARK)
    own = ("lo", *settings.wireguard_devices)
    rules = [Rule((Interface("in", device),), ir.RETURN) for device in own]
    rules += _from_workload(settings, ir.RETURN)
    rules.append(Rule(action=ir.set_bits(settings.marks.wireguard)))
    return Chain(names.WIREGUARD_MARK, tuple(rules))


# --- mangle -------------------------------------------------------------------------------------


def _mangle_prerouting(settings: Settings, idle: Collection[str]) -> Chain:
    accepted = ir.all_set(settings.marks.accept)
    allow = settings.mangle_allow
    rules = _unless(
        idle,
        names.FROM_HOST_DISPATCH,
        Rule((Conntrack(("RELATED", "ESTABLISHED")),), allow),
        Rule((accepted,), allow),
        Rule(action=Jump(names.FROM_HOST_DISPATCH)),
        Rule((accepted,), allow, (_ACCEPTED_BY_HOST,)),
    )
    return Chain(names.PREROUTING, rules)


def _mangle_postrouting(settings: Settings, idle: Collection[str]) -> Chain:
    """Host traffic that was translated meets its policy here, when its true destination is known."""
    accepted = ir.all_set(settings.marks.accept)
    leaving = (
        InSet("src", names.DSCP_SOURCES),
        InSet("dst", names.ALL_POOLS, negate=True),
        InSet("dst", names.THIS_HOST, negate=True),
    )
    to_egress_dscp = Rule(leaving, Jump(names.EGRESS_DSCP), ("set dscp for traffic leaving cluster.",))
    rules = (
        *_unless(idle, names.EGRESS_DSCP, to_egress_dscp),
        *_unless(
            idle,
            names.TO_HOST_DISPATCH,
            Rule((accepted,), ir.RETURN),
            Rule(action=ir.clear_bits(settings.marks.cleared)),
            Rule((Dnatted(),), Jump(names.TO_HOST_DISPATCH)),
            Rule((accepted,), ir.RETURN, (_ACCEPTED_BY_HOST,)),
        ),
    )
    return Chain(names.POSTROUTING, rules)


# --- filter -------------------------------------------------------------------------------------


def _input(version: int, settings: Settings, idle: Collection[str]) -> Chain:
    marks, allow = settings.marks, settings.filter_allow
    accepted = ir.all_set(marks.accept)
    rules = [
        *_tunnels_in(version, settings),
        *_from_workload(settings, Goto(names.WORKLOAD_TO_HOST)),
        *_unless(
            idle,
            names.FROM_HOST_DISPATCH,
            Rule((accepted,), allow),
            Rule(action=ir.clear_bits(marks.cleared)),
            Rule(action=Jump(names.FROM_HOST_DISPATCH)),
            Rule((accepted,), allow, (_ACCEPTED_BY_HOST,)),
        ),
    ]
    return Chain(names.INPUT, tuple(rules))


def _tunnels_in(version: int, settings: Settings) -> Iterator[Rule]:
    """Tunnelled packets are taken from nodes of the cluster and from nobody else."""
    allow, deny, local = settings.filter_allow, settings.filter_deny, LocalAddress("dst")
    if version == 4 and settings.ipip:
        known = (Protocol(_IPIP), InSet("src", names.ALL_HOSTS), local)
        yield Rule(known, allow, ("Allow IPIP packets from Calico hosts",))
        yield Rule((Protocol(_IPIP),), deny, (f"{verb(deny)} IPIP packets from non-Calico hosts",))
    if version in settings.vxlan:
        port = (Protocol(_UDP), Ports("dst", ((settings.vxlan_port, settings.vxlan_port),)))
        allowed = (*port, InSet("src", names.ALL_VXLAN), local)
        yield Rule(allowed, allow, (f"Allow IPv{version} VXLAN packets from allowed hosts",))
        refuse = ir.DROP if version == 4 else deny
        comment = f"{verb(refuse)} IPv{version} VXLAN packets from non-allowed hosts"
        yield Rule((*port, local), refuse, (comment,))
    if version in settings.wireguard:  # the device checks its peers by itself
        comment = f"Allow incoming IPv{version} Wireguard packets"
        yield Rule((*_wireguard_port(version, settings), local), allow, (comment,))


def _wireguard_port(version: int, settings: Settings) -> tuple[ir.Match, ...]:
    port = settings.wireguard_port(version)
    return Protocol(_UDP), Ports("dst", ((port, port),))


def _workload_to_host(version: int, settings: Settings) -> Chain:
    rules: list[Rule] = []
    if version == 6:
        for kind in _ROUTER_ICMPV6:
            rules.append(Rule((Protocol(_ICMPV6), Icmp(6, kind)), settings.filter_allow))
    rules.append(Rule(action=Jump(names.FROM_WORKLOAD_DISPATCH)))
    rules.append(Rule((), settings.endpoint_to_host, ("Configured DefaultEndpointToHostAction",)))
    return Chain(names.WORKLOAD_TO_HOST, tuple(rules))


def _forward(settings: Settings, idle: Collection[str]) -> Chain:
    """The packets of limited workloads are counted before anything accepts them.

    Without host endpoints no mark is set yet; what a workload's chains ask for they clear themselves.
    """
    marks = settings.marks
    from_host, unmarked = names.FROM_FORWARD_DISPATCH, (ir.all_clear(marks.accept),)
    to_rates = _to_workload(settings, Jump(names.WORKLOAD_RATE_DISPATCH))
    rules = [
        *_unless(idle, from_host, Rule(action=ir.clear_bits(marks.cleared & ~marks.accept))),
        *_unless(idle, names.WORKLOAD_RATE_DISPATCH, *to_rates),
        *_unless(idle, from_host, Rule(unmarked, Jump(from_host))),
    ]
    for prefix in settings.workload_prefixes:
        rules.append(Rule((Interface("in", prefix, prefix=True),), Jump(names.FROM_WORKLOAD_DISPATCH)))
        rules.append(Rule((Interface("out", prefix, prefix=True),), Jump(names.TO_WORKLOAD_DISPATCH)))
    for chain in (names.TO_FORWARD_DISPATCH, names.CIDR_BLOCK):
        rules += _unless(idle, chain, Rule(action=Jump(chain)))
    return Chain(names.FORWARD, tuple(rules))


def _output(version: int, settings: Settings, idle: Collection[str]) -> Chain:
    """What the host sends to its own workloads is not policed."""
    marks, allow = settings.marks, settings.filter_allow
    accepted = ir.all_set(marks.accept)
    to_host = names.TO_HOST_DISPATCH
    rules = [
        *_unless(idle, to_host, Rule((accepted,), allow), *_to_workload(settings, ir.RETURN)),
        *_tunnels_out(version, settings),
        *_unless(
            idle,
            to_host,
            Rule(action=ir.clear_bits(marks.cleared)),
            Rule((Dnatted(negate=True),), Jump(to_host)),
            Rule((accepted,), allow, (_ACCEPTED_BY_HOST,)),
        ),
    ]
    return Chain(names.OUTPUT, tuple(rules))


def _tunnels_out(version: int, settings: Settings) -> Iterator[Rule]:
    allow, local = settings.filter_allow, LocalAddress("src")
    if version == 4 and settings.ipip:
        matches = (Protocol(_IPIP), InSet("dst", names.ALL_HOSTS), local)
        yield Rule(matches, allow, ("Allow IPIP packets to other Calico hosts",))
    if version in settings.vxlan:
        port = Ports("dst", ((settings.vxlan_port, settings.vxlan_port),))
        comment = f"Allow IPv{version} VXLAN packets to other allowed hosts"
        yield Rule((Protocol(_UDP), port, local, InSet("dst", names.ALL_VXLAN)), allow, (comment,))
    if version in settings.wireguard:
        comment = f"Allow outgoing IPv{version} Wireguard packets"
        yield Rule((*_wireguard_port(version, settings), local), allow, (comment,))


def cidr_block_chain(cidrs: Iterable[str], version: int, settings: Settings) -> Chain:
    """Packets to service addresses that no one translated would be sent back and forth for ever."""
    action = settings.service_loop
    if action is None:
        return Chain(names.CIDR_BLOCK)
    mine = sorted(cidr for cidr in cidrs if version_of(cidr) == version)
    return Chain(names.CIDR_BLOCK, tuple(Rule((Net("dst", cidr),), action) for cidr in mine))


def egress_dscp_chain(marking: Iterable[tuple[str, int]], version: int) -> Chain:
    """`marking`: (address of a workload as CIDR, the DSCP value its packets leave the cluster with)."""
    mine = sorted(pair for pair in marking if version_of(pair[0]) == version)
    return Chain(names.EGRESS_DSCP, tuple(Rule((Net("src", net),), ir.SetDscp(value)) for net, value in mine))


# --- failsafes ----------------------------------------------------------------------------------


def _failsafes(table: str, version: int, settings: Settings) -> tuple[Chain, Chain]:
    """Ports that no host policy can close. In raw the answers of the opposite ones pass as well.

    Neighbour discovery neither: it is to IPv6 what ARP, which policy never sees, is to IPv4, and without it
    no other failsafe is worth anything. (Calico leaves it to the user's policies.)
    """
    neighbours = [_neighbour(kind) for kind in _NEIGHBOUR_ICMPV6] if version == 6 else []
    inward = neighbours + [_failsafe(one, "dst", "src") for one in _of(settings.failsafe_in, version)]
    outward = neighbours + [_failsafe(one, "dst", "dst") for one in _of(settings.failsafe_out, version)]
    if table == ir.RAW:
        inward += [_failsafe(one, "src", "src") for one in _of(settings.failsafe_out, version)]
        outward += [_failsafe(one, "src", "dst") for one in _of(settings.failsafe_in, version)]
    return Chain(names.FAILSAFE_IN, tuple(inward)), Chain(names.FAILSAFE_OUT, tuple(outward))


def _neighbour(kind: int) -> Rule:
    return Rule((Protocol(_ICMPV6), Icmp(6, kind)), ir.ACCEPT, ("Neighbour discovery",))


def _of(failsafes: Sequence[Failsafe], version: int) -> Iterator[Failsafe]:
    return (one for one in failsafes if not one.net or version_of(one.net) == version)


def _failsafe(one: Failsafe, port_side: ir.Side, net_side: ir.Side) -> Rule:
    matches: tuple[ir.Match, ...] = (Protocol(one.protocol), Ports(port_side, ((one.port, one.port),)))
    if one.net:
        matches = (*matches, Net(net_side, one.net))
    return Rule(matches, ir.ACCEPT)
