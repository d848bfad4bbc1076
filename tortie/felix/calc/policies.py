"""Policies and tiers of the API as felix sees them. Pure conversions of single objects.

A policy is two things: its scope (to whom it applies, in what turn) and its rules. Endpoints need the first
of all policies; the second is compiled only for those that apply to an endpoint of this node.
Raises ValidationError for a scope that cannot be understood: nobody can say whom it was meant for.
(Reference: policy sheet 2.2, 3; updateprocessors/*networkpolicyprocessor.go, felix/calc/policy_sorter.go.)
"""

from dataclasses import dataclass
from math import inf

from tortie.core.errors import FieldError
from tortie.datastore.keys import ResourceKey
from tortie.datastore.selector import Selector, parse
from tortie.datastore.types import policy as v3
from tortie.felix.calc import rules
from tortie.felix.calc.model import DENY_ALL, Policy, PolicyId, Rule, Stage
from tortie.felix.calc.rules import Source, compile_rules

NAMESPACED = ("NetworkPolicy", "StagedNetworkPolicy")
GLOBAL = ("GlobalNetworkPolicy", "StagedGlobalNetworkPolicy")
KINDS = NAMESPACED + GLOBAL

_DEFAULT_TIER = "default"
_DIRECTIONS = frozenset(("ingress", "egress"))
_EVERYWHERE = "AssumeNeededOnEveryNode"  # a hint: keep the policy ready where it applies to nobody

V3Policy = v3.NetworkPolicy | v3.GlobalNetworkPolicy | v3.StagedNetworkPolicy | v3.StagedGlobalNetworkPolicy


@dataclass(frozen=True, slots=True)
class Scope:
    """To whom a policy applies, in which directions, and in what turn.

    `order`: smaller comes first; infinite where none is given. `stage`: where packets meet it; only normal
    policies ever concern workloads. `forward`: on host endpoints also for what is forwarded.
    """

    id: PolicyId
    tier: str
    order: float
    selector: Selector
    ingress: bool
    egress: bool
    stage: Stage = "normal"
    forward: bool = False
    everywhere: bool = False

    @property
    def turn(self) -> tuple[float, str]:
        """Policies of one tier are asked in this order."""
        return self.order, f"{self.id.name}/{self.id.namespace}/{self.id.kind}"


def policy_id(key: ResourceKey) -> PolicyId:
    return PolicyId(key.name, key.namespace, key.kind)


def scope(ident: PolicyId, policy: V3Policy) -> Scope | None:
    """None for a staged policy that only proposes to delete another."""
    spec = policy.spec
    if ident.staged and getattr(spec, "stagedAction", "").lower() == "delete":
        return None
    if isinstance(spec, v3.GlobalNetworkPolicySpec | v3.StagedGlobalNetworkPolicySpec):
        stage: Stage = "untracked" if spec.doNotTrack else "pre-dnat" if spec.preDNAT else "normal"
        forward = spec.applyOnForward
        selector = global_selector(spec.selector, spec.namespaceSelector, spec.serviceAccountSelector)
    else:
        stage, forward = "normal", False
        selector = namespaced_selector(spec.selector, ident.namespace, spec.serviceAccountSelector)
    types = {kind.lower() for kind in spec.types} or _DIRECTIONS
    return Scope(
        ident,
        spec.tier or _DEFAULT_TIER,
        inf if spec.order is None else spec.order,
        selector,
        ingress="ingress" in types,
        egress="egress" in types and stage != "pre-dnat",
        stage=stage,
        forward=forward,
        everywhere=_EVERYWHERE in spec.performanceHints,
    )


# --- selectors ----------------------------------------------------------------------------------


def namespaced_selector(text: str, namespace: str, service_accounts: str) -> Selector:
    own = rules.equals(rules.NAMESPACE, namespace)
    selector = rules.conjunction(_canonical(text), own)
    return parse(rules.conjunction(selector, _of_accounts(service_accounts)))


def global_selector(text: str, namespaces: str, service_accounts: str) -> Selector:
    """With namespaces or service accounts given, `all()` means all that live in one, or have one.

    Also in the policy's own selector: `all()` of some namespaces is not the hosts (policy sheet 7.14).
    """
    selector = _canonical(text)
    if namespaces:
        within = rules.prefixed(namespaces, "pcns.", "namespaceSelector")
        selector = rules.conjunction(selector, within)
        selector = rules.replace_calls(selector, {"all()": f"has({rules.NAMESPACE})"})
    if service_accounts:
        selector = rules.conjunction(selector, _of_accounts(service_accounts))
        selector = rules.replace_calls(selector, {"all()": f"has({rules.SERVICE_ACCOUNT})"})
    return parse(selector)


def _canonical(text: str) -> str:
    found = rules.parse_selector(text, "selector")
    return "" if found is None else found.canonical


def _of_accounts(text: str) -> str:
    return rules.prefixed(text, "pcsa.", "serviceAccountSelector") if text else ""


# --- rules --------------------------------------------------------------------------------------


def compile_policy(scoped: Scope, policy: V3Policy) -> tuple[Policy, dict[str, Source]]:
    """The policy as chains are made of it, and the sets its rules name, by id."""
    inbound = compile_rules(policy.spec.ingress if scoped.ingress else (), scoped.id.namespace)
    outbound = compile_rules(policy.spec.egress if scoped.egress else (), scoped.id.namespace)
    compiled = _policy(scoped, inbound.rules, outbound.rules)
    return compiled, {**inbound.sources, **outbound.sources}


def reservation(policy: V3Policy) -> str:
    """What of a policy has no effect, though it can be enforced; '' for most."""
    spec = policy.spec
    for kind in spec.types:
        if kind.lower() not in _DIRECTIONS:
            return f"has no say there: {FieldError('types', kind, 'must be Ingress or Egress')}"
    if any(rule.http is not None for rule in (*spec.ingress, *spec.egress)):
        return "is enforced without what its rules say about HTTP, which needs a proxy: they allow more"
    return ""


def denying(scoped: Scope) -> Policy:
    """In the place of a policy whose rules cannot be understood: leaving one out could open something."""
    return _policy(scoped, (DENY_ALL,), (DENY_ALL,))


def _policy(scoped: Scope, inbound: tuple[Rule, ...], outbound: tuple[Rule, ...]) -> Policy:
    return Policy(scoped.id, scoped.tier, inbound, outbound, scoped.stage, scoped.everywhere)


# --- tiers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TierTerms:
    """A tier's place among others, and what happens where none of its policies has a say."""

    order: float
    default_pass: bool


def tier_terms(tier: v3.Tier) -> TierTerms:
    """Any default action but Pass is Deny."""
    spec = tier.spec
    return TierTerms(inf if spec.order is None else spec.order, (spec.defaultAction or "").lower() == "pass")
