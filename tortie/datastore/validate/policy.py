"""Policies, their staged forms, tiers, profiles and network sets."""

from typing import Any, TypeVar

from msgspec import structs

from tortie.datastore.types.policy import (
    GlobalNetworkPolicy,
    NetworkPolicy,
    Profile,
    Rule,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
)
from tortie.datastore.validate.addresses import cidr
from tortie.datastore.validate.fields import (
    Check,
    Problems,
    is_empty,
    listing,
    mapping,
    number,
    one_of,
    struct,
)
from tortie.datastore.validate.formats import label_value, name, no_global, qualified_name
from tortie.datastore.validate.rule import canonical_rule, rule

P = TypeVar("P", NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy)

TIER_LABEL = "projectcalico.org/tier"
DEFAULT_TIER = "default"
DEFAULT_TIER_ORDER = 1_000_000
BUILT_IN_TIERS = {  # name -> (order, default action), neither of which can be changed
    DEFAULT_TIER: (DEFAULT_TIER_ORDER, "Deny"),
    "kube-admin": (1_000, "Pass"),
    "kube-baseline": (10_000_000, "Pass"),
}
MAX_RULES = 1024  # the schema's limit per direction

# --- defaults -----------------------------------------------------------------------------------


def policy_defaults(policy: P) -> P:
    """Tier, types, the tier's label, a staged policy's action; ports and protocols as Calico writes them."""
    spec: Any = policy.spec
    tier = spec.tier or DEFAULT_TIER
    changes: dict[str, Any] = {
        "tier": tier,
        "ingress": tuple(map(canonical_rule, spec.ingress)),
        "egress": tuple(map(canonical_rule, spec.egress)),
        "types": spec.types or _types(spec.ingress, spec.egress),
    }
    if hasattr(spec, "stagedAction"):
        changes["stagedAction"] = spec.stagedAction or "Set"
        if spec.stagedAction == "Delete":
            changes["types"] = ()
    policy = structs.replace(policy, spec=structs.replace(spec, **changes))
    return policy.with_metadata(labels=policy.labels | {TIER_LABEL: tier})


def policy_read_defaults(policy: P) -> P:
    """What readers see: the tier's label, also where an old Calico did not write it."""
    if TIER_LABEL in policy.labels:
        return policy
    return policy.with_metadata(labels=policy.labels | {TIER_LABEL: DEFAULT_TIER})


def _types(ingress: tuple[Rule, ...], egress: tuple[Rule, ...]) -> tuple[str, ...]:
    """A policy without rules applies to ingress: it denies what comes in."""
    if not egress:
        return ("Ingress",)
    return ("Ingress", "Egress") if ingress else ("Egress",)


def tier_defaults(tier: Tier) -> Tier:
    spec = tier.spec
    order = DEFAULT_TIER_ORDER if spec.order is None else spec.order
    return structs.replace(
        tier, spec=structs.replace(spec, order=order, defaultAction=spec.defaultAction or "Deny")
    )


def profile_defaults(profile: Profile) -> Profile:
    spec = structs.replace(
        profile.spec,
        ingress=tuple(map(canonical_rule, profile.spec.ingress)),
        egress=tuple(map(canonical_rule, profile.spec.egress)),
    )
    return structs.replace(profile, spec=spec)


# --- policies -----------------------------------------------------------------------------------

_rules = listing(rule, most=MAX_RULES)
_policy_selector = no_global("global() can only be used in an EntityRule namespaceSelector")
_SPEC: dict[str, Check] = {
    "tier": name,
    "order": number,
    "ingress": _rules,
    "egress": _rules,
    "selector": _policy_selector,
    "serviceAccountSelector": _policy_selector,
    "types": listing(one_of("Ingress", "Egress")),
    "performanceHints": listing(one_of("AssumeNeededOnEveryNode"), unique=True),
}


def _types_once(problems: Problems, path: str, spec: Any) -> None:
    for repeated in sorted({kind for kind in spec.types if spec.types.count(kind) > 1}):
        problems.add(f"{path}.types", repeated, f"'{repeated}' type specified more than once")


def _directions(problems: Problems, path: str, spec: Any) -> None:
    """What only means something in one direction."""
    for index, entry in enumerate(spec.egress):
        if entry.source.services is not None:
            where = f"{path}.egress[{index}].source.services"
            problems.add(where, entry.source.services.name, "not allowed in egress rule source")
        if entry.http is not None:
            problems.add(f"{path}.egress[{index}].http", None, "not allowed in egress rule")
    for index, entry in enumerate(spec.ingress):
        if entry.destination.services is not None:
            where = f"{path}.ingress[{index}].destination.services"
            problems.add(where, entry.destination.services.name, "not allowed in ingress rule destination")


def _service_namespaces(problems: Problems, path: str, spec: Any) -> None:
    """A global policy has no namespace of its own to look services up in."""
    for direction, side in (("egress", "destination"), ("ingress", "source")):
        for index, entry in enumerate(getattr(spec, direction)):
            services = getattr(entry, side).services
            if services is not None and not services.namespace:
                where = f"{path}.{direction}[{index}].{side}.services.namespace"
                problems.add(where, None, "must specify a namespace")


def _before_tracking(problems: Problems, path: str, spec: Any) -> None:
    if spec.preDNAT and spec.doNotTrack:
        problems.add(f"{path}.preDNAT", True, "preDNAT and doNotTrack cannot both be true")
    if spec.preDNAT and spec.egress:
        problems.add(f"{path}.egress", None, "preDNAT policy cannot have any egress rules")
    if spec.preDNAT and "Egress" in spec.types:
        problems.add(f"{path}.types", "Egress", "preDNAT policy cannot have 'Egress' type")
    if (spec.preDNAT or spec.doNotTrack) and not spec.applyOnForward:
        reason = "applyOnForward must be true if either preDNAT or doNotTrack is true"
        problems.add(f"{path}.applyOnForward", False, reason)


_namespaced_spec = struct(_SPEC, _types_once, _directions)
_global_spec = struct(
    _SPEC | {"namespaceSelector": _policy_selector},
    _types_once,
    _directions,
    _service_namespaces,
    _before_tracking,
)

network_policy: Check = struct({"spec": _namespaced_spec})
global_policy: Check = struct({"spec": _global_spec})


def _staged(enforced: Check) -> Check:
    """A staged deletion says nothing but which tier; any other must be as good as the real policy."""

    def check(problems: Problems, path: str, spec: Any) -> None:
        if spec.stagedAction != "Delete":
            enforced(problems, path, spec)
            return
        name(problems, f"{path}.tier", spec.tier or DEFAULT_TIER)
        for field in structs.fields(spec):
            if field.name not in ("tier", "stagedAction") and not _is_zero(getattr(spec, field.name)):
                reason = "Spec fields, except Tier, should all be zero-value if stagedAction is Delete"
                problems.add(f"{path}.{field.name}", None, reason)

    return struct({"spec": struct({"stagedAction": one_of("Set", "Delete", "Learn", "Ignore")}, check)})


def _is_zero(value: Any) -> bool:
    return is_empty(value) or value is False


staged_policy: Check = _staged(_namespaced_spec)
staged_global_policy: Check = _staged(_global_spec)

# --- tiers, profiles, sets ----------------------------------------------------------------------


def _built_in(problems: Problems, _path: str, value: Tier) -> None:
    fixed = BUILT_IN_TIERS.get(value.name)
    if fixed is None:
        return
    order, action = fixed
    # What an old Calico left out counts as the default, which is what readers see.
    filled = tier_defaults(value).spec
    if filled.defaultAction != action:
        reason = f"The '{value.name}' tier must have default action '{action}'"
        problems.add("spec.defaultAction", filled.defaultAction, reason)
    if filled.order != order:
        problems.add("spec.order", filled.order, f"{value.name} tier order must be {order}")


tier: Check = struct({"spec": struct({"order": number, "defaultAction": one_of("Deny", "Pass")})}, _built_in)

profile: Check = struct(
    {
        "spec": struct(
            {"ingress": _rules, "egress": _rules, "labelsToApply": mapping(qualified_name, label_value)}
        )
    }
)
network_set: Check = struct({"spec": struct({"nets": listing(cidr, unique=True)})})
