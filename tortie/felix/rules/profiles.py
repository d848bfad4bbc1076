"""The chains of profiles and policies: one for each direction, `cali-pri-…` and `cali-pro-…`."""

from functools import partial

from tortie.felix.calc.model import Policy, Profile
from tortie.felix.rules import names
from tortie.felix.rules.ir import Chain
from tortie.felix.rules.policy import Owner, rule_chain_rules
from tortie.felix.rules.settings import Settings


def profile_chains(profile: Profile, version: int, table: str, settings: Settings) -> tuple[Chain, Chain]:
    """Inbound and outbound."""
    name, who = profile.name, f"Profile {profile.name}"
    owner = Owner("pro", name, profile=True)
    render = partial(rule_chain_rules, version=version, table=table, settings=settings, owner=owner)
    return (
        Chain(names.chain(names.PROFILE_IN, name), render(profile.inbound, comment=f"{who} ingress")),
        Chain(names.chain(names.PROFILE_OUT, name), render(profile.outbound, comment=f"{who} egress")),
    )


def policy_chains(policy: Policy, version: int, table: str, settings: Settings) -> tuple[Chain, ...]:
    """Inbound and outbound; staged policies have no chains."""
    ident = policy.id
    if ident.staged:
        return ()
    owner = Owner(ident.text.split("/")[0], ident.name, ident.namespace, policy.tier)
    who = f"{ident.kind} {ident.namespace + '/' if ident.namespace else ''}{ident.name}"
    render = partial(rule_chain_rules, version=version, table=table, settings=settings, owner=owner)
    return (
        Chain(names.chain(names.POLICY_IN, ident.text), render(policy.inbound, comment=f"{who} ingress")),
        Chain(names.chain(names.POLICY_OUT, ident.text), render(policy.outbound, comment=f"{who} egress")),
    )


def expendable(chain: str) -> bool:
    """Whether a chain the kernel refuses may be replaced by a drop: then only its users are cut off."""
    return chain.startswith(_EXPENDABLE)


_EXPENDABLE = (
    names.POLICY_IN,
    names.POLICY_OUT,
    names.GROUP_IN,
    names.GROUP_OUT,
    names.PROFILE_IN,
    names.PROFILE_OUT,
    names.TO_WORKLOAD,
    names.FROM_WORKLOAD,
)
