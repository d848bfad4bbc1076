"""The chains of one endpoint: what a packet to or from it goes through.

A chain ends in a verdict or returns with the accept mark set; whoever jumped here goes on to the
endpoint at the packet's other side, and accepts only after both agreed. The order of rules is Calico's
(policy sheet 5.4; felix/rules/endpoints.go): established traffic first, then the tiers in order, then
the profiles, then a drop.
"""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tortie.felix.calc.model import HostEndpoint, PolicyRef, QoS, Tier, Workload
from tortie.felix.rules import ir, names
from tortie.felix.rules.ir import Chain, Conntrack, Jump, Ports, Protocol, Rule
from tortie.felix.rules.settings import Settings, verb

Kind = Literal["normal", "forward", "pre-dnat", "untracked"]

_ESTABLISHED = Conntrack(("RELATED", "ESTABLISHED"))
_GROUP_STRIDE = 5  # jumps between two looks at the verdict in a policy group's chain, Calico's number
_UDP, _IPIP = 17, 4


@dataclass(frozen=True, slots=True)
class _Spec:
    """What tells one kind of endpoint chain from another. `ingress`: towards the endpoint's owner."""

    prefix: str
    ingress: bool
    kind: Kind
    table: str
    allow: ir.Accept | ir.Return
    failsafe: str = ""
    from_workload: bool = False


def workload_chains(workload: Workload, settings: Settings) -> list[Chain]:
    """`cali-tw-…` and `cali-fw-…`, for the filter table of either IP version."""
    allow = settings.filter_allow
    to = _Spec(names.TO_WORKLOAD, True, "normal", ir.FILTER, allow)
    origin = _Spec(names.FROM_WORKLOAD, False, "normal", ir.FILTER, allow, from_workload=True)
    return [
        _chain(spec, workload.interface, workload.tiers, workload.profiles, settings, workload.qos)
        for spec in (to, origin)
    ]


def rate_chain(workload: Workload, settings: Settings) -> Chain | None:
    """`cali-tr-…`, which keeps what a workload gets within its packet rate; None without one.

    Calico has these rules in `cali-tw-…`. Packets of standing connections do not come that far when they
    are from another workload of this node, whose own chain accepts them.
    """
    qos = workload.qos
    if qos is None or not qos.ingress_packets:
        return None
    rules = _packet_rate("ingress", qos.ingress_packets, qos.ingress_burst, settings)
    return Chain(names.chain(names.WORKLOAD_RATE, workload.interface), tuple(rules))


def host_filter_chains(endpoint: HostEndpoint, interface: str, settings: Settings) -> list[Chain]:
    """Traffic of the host itself (`cali-th-`, `cali-fh-`) and forwarded (`cali-thfw-`, `cali-fhfw-`)."""
    allow = settings.filter_allow
    to = _Spec(names.TO_HOST, False, "normal", ir.FILTER, allow, names.FAILSAFE_OUT)
    origin = _Spec(names.FROM_HOST, True, "normal", ir.FILTER, allow, names.FAILSAFE_IN)
    forward_to = _Spec(names.TO_HOST_FORWARD, False, "forward", ir.FILTER, allow)
    forward_from = _Spec(names.FROM_HOST_FORWARD, True, "forward", ir.FILTER, allow)
    return [
        _chain(to, interface, endpoint.tiers, endpoint.profiles, settings),
        _chain(origin, interface, endpoint.tiers, endpoint.profiles, settings),
        _chain(forward_to, interface, endpoint.forward_tiers, (), settings),
        _chain(forward_from, interface, endpoint.forward_tiers, (), settings),
    ]


def host_mangle_chains(endpoint: HostEndpoint, interface: str, settings: Settings) -> list[Chain]:
    """Egress of host traffic that was translated, and ingress before translation where policy asks for it."""
    to = _Spec(names.TO_HOST, False, "normal", ir.MANGLE, ir.RETURN, names.FAILSAFE_OUT)
    chains = [_chain(to, interface, endpoint.tiers, endpoint.profiles, settings)]
    if endpoint.pre_dnat_tiers:
        spec = _Spec(names.FROM_HOST, True, "pre-dnat", ir.MANGLE, settings.mangle_allow, names.FAILSAFE_IN)
        chains.append(_chain(spec, interface, endpoint.pre_dnat_tiers, (), settings))
    return chains


def host_raw_chains(endpoint: HostEndpoint, interface: str, settings: Settings) -> list[Chain]:
    """Untracked policy, before connection tracking; nothing without such policy."""
    if not endpoint.untracked_tiers:
        return []
    to = _Spec(names.TO_HOST, False, "untracked", ir.RAW, ir.ACCEPT, names.FAILSAFE_OUT)
    origin = _Spec(names.FROM_HOST, True, "untracked", ir.RAW, ir.ACCEPT, names.FAILSAFE_IN)
    return [_chain(spec, interface, endpoint.untracked_tiers, (), settings) for spec in (to, origin)]


# --- one chain ----------------------------------------------------------------------------------


def _chain(
    spec: _Spec,
    interface: str,
    tiers: Sequence[Tier],
    profiles: Sequence[str],
    settings: Settings,
    qos: QoS | None = None,
) -> Chain:
    rules = [
        *_egress_packets(spec, settings, qos),
        *_conntrack(spec, settings),
        *_connection_limit(spec, qos),
        *([Rule(action=Jump(spec.failsafe))] if spec.failsafe else []),
        Rule(action=ir.clear_bits(settings.marks.accept | settings.marks.passed)),
        *_encapsulated(spec, settings),
        *(rule for tier in tiers for rule in _tier(spec, tier, settings)),
    ]
    if spec.kind == "forward" and not tiers:
        accept = ir.set_bits(settings.marks.accept)
        rules.append(Rule((), accept, ("Allow forwarded traffic by default",)))
        rules.append(Rule((), ir.RETURN, ("Return for accepted forward traffic",)))
    if spec.kind == "normal":
        rules += _profiles(spec, profiles, settings)
    return Chain(names.chain(spec.prefix, interface), tuple(rules))


def _egress_packets(spec: _Spec, settings: Settings, qos: QoS | None) -> Iterator[Rule]:
    if spec.from_workload and qos is not None and qos.egress_packets:
        yield from _packet_rate("egress", qos.egress_packets, qos.egress_burst, settings)


def _packet_rate(way: str, rate: int, burst: int, settings: Settings) -> Iterator[Rule]:
    bit = settings.marks.scratch0
    clear = Rule((), ir.clear_bits(bit), (f"Clear {way} packet rate limit mark",))
    yield clear
    within = ir.MarkWithinRate(rate, burst, bit)
    yield Rule((), within, (f"Mark packets within {way} packet rate limit",))
    unmarked = ir.Mark(bit, bit, negate=True)
    yield Rule((unmarked,), ir.DROP, (f"Drop packets over {way} packet rate limit",))
    yield clear


def _conntrack(spec: _Spec, settings: Settings) -> Iterator[Rule]:
    if spec.kind == "untracked":
        return
    if spec.allow != ir.ACCEPT:
        yield Rule((_ESTABLISHED,), ir.set_bits(settings.marks.accept))
    yield Rule((_ESTABLISHED,), spec.allow)
    if settings.drop_invalid:
        yield Rule((Conntrack(("INVALID",)),), settings.deny(spec.table))


def _connection_limit(spec: _Spec, qos: QoS | None) -> Iterator[Rule]:
    count = 0 if qos is None else qos.ingress_connections if spec.ingress else qos.egress_connections
    if count:
        way = "ingress" if spec.ingress else "egress"
        yield Rule((), ir.ResetAboveConnections(count), (f"Reject connections over {way} connection limit",))


def _encapsulated(spec: _Spec, settings: Settings) -> Iterator[Rule]:
    """A workload that wraps packets itself could go around its egress policy."""
    if not spec.from_workload:
        return
    deny = settings.filter_deny
    if not settings.allow_vxlan_from_workloads:
        port = Ports("dst", ((settings.vxlan_port, settings.vxlan_port),))
        comment = f"{verb(deny)} VXLAN encapped packets originating in workloads"
        yield Rule((Protocol(_UDP), port), deny, (comment,))
    if not settings.allow_ipip_from_workloads:
        comment = f"{verb(deny)} IPinIP encapped packets originating in workloads"
        yield Rule((Protocol(_IPIP),), deny, (comment,))


def _tier(spec: _Spec, tier: Tier, settings: Settings) -> Iterator[Rule]:
    refs = tier.ingress if spec.ingress else tier.egress
    if not refs:
        return
    marks = settings.marks
    undecided, accepted = (ir.all_clear(marks.passed),), (ir.all_set(marks.accept),)
    done = Rule(accepted, ir.RETURN, ("Return if policy accepted",))
    yield Rule((), ir.clear_bits(marks.passed), (f"Start of tier {tier.name}",))
    for group in groups(refs):
        for chain in _chains_of_group(group, spec.ingress):
            yield Rule(undecided, Jump(chain))
            if spec.kind == "untracked":
                yield Rule(accepted, ir.NO_TRACK)
            yield done
    if spec.kind in ("normal", "forward"):
        yield from _end_of_tier(spec, tier, all(ref.id.staged for ref in refs), settings)


def _end_of_tier(spec: _Spec, tier: Tier, all_staged: bool, settings: Settings) -> Iterator[Rule]:
    if not all_staged and not tier.default_pass:
        deny = settings.deny(spec.table)
        comment = f"End of tier {tier.name}. {verb(deny)} if no policies passed packet"
        yield Rule((ir.all_clear(settings.marks.passed),), deny, (comment,))


def _profiles(spec: _Spec, profiles: Sequence[str], settings: Settings) -> Iterator[Rule]:
    prefix = names.PROFILE_IN if spec.ingress else names.PROFILE_OUT
    accepted = (ir.all_set(settings.marks.accept),)
    for profile in profiles:
        yield Rule(action=Jump(names.chain(prefix, profile)))
        yield Rule(accepted, ir.RETURN, ("Return if profile accepted",))
    deny = settings.deny(spec.table)
    yield Rule((), deny, (f"{verb(deny)} if no profiles matched",))


# --- policy groups ------------------------------------------------------------------------------


def groups(refs: Sequence[PolicyRef]) -> list[tuple[PolicyRef, ...]]:
    """Runs of policies with the same selector: whoever is matched by one is matched by all."""
    found: list[list[PolicyRef]] = []
    for ref in refs:
        if found and found[-1][0].selector == ref.selector:
            found[-1].append(ref)
        else:
            found.append([ref])
    return [tuple(group) for group in found]


def _chains_of_group(group: Sequence[PolicyRef], ingress: bool) -> list[str]:
    """The group's own chain, or its one policy's; none if all are staged."""
    live = [ref for ref in group if not ref.id.staged]
    if len(live) > 1:
        return [group_name(group, ingress)]
    return [policy_chain_name(ref, ingress) for ref in live]


def policy_chain_name(ref: PolicyRef, ingress: bool) -> str:
    return names.chain(names.POLICY_IN if ingress else names.POLICY_OUT, ref.id.text)


def group_name(group: Sequence[PolicyRef], ingress: bool) -> str:
    prefix = names.GROUP_IN if ingress else names.GROUP_OUT
    lines = [group[0].selector, "inbound" if ingress else "outbound", str(len(group))]
    lines += [f"{{Name: {ref.id.name}, Namespace: {ref.id.namespace}, Kind: {ref.id.kind}}}" for ref in group]
    digest = hashlib.sha3_224(
        "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    ).digest()
    return prefix + urlsafe_b64encode(digest).decode()[: names.MAX_CHAIN - len(prefix)]


def group_chains(tiers: Sequence[Tier], settings: Settings) -> list[Chain]:
    """The chains of all groups in these tiers that need one of their own."""
    chains: dict[str, Chain] = {}
    for tier in tiers:
        for refs, ingress in ((tier.ingress, True), (tier.egress, False)):
            for group in groups(refs):
                live = [ref for ref in group if not ref.id.staged]
                if len(live) > 1:
                    name = group_name(group, ingress)
                    chains[name] = Chain(name, tuple(_group_rules(live, ingress, settings)))
    return list(chains.values())


def _group_rules(live: Sequence[PolicyRef], ingress: bool, settings: Settings) -> Iterator[Rule]:
    """Every fifth jump follows a look whether there is a verdict; the others look themselves."""
    decided = settings.marks.accept | settings.marks.passed
    for index, ref in enumerate(live):
        fresh = index % _GROUP_STRIDE == 0
        if fresh and index:
            yield Rule((ir.any_set(decided),), ir.RETURN, ("Return on verdict",))
        undecided = () if fresh else (ir.all_clear(decided),)
        yield Rule(undecided, Jump(policy_chain_name(ref, ingress)))
