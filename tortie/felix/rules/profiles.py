"""The chains of profiles and policies: one for each direction, `cali-pri-…` and `cali-pro-…`."""

from tortie.felix.calc.model import Policy, Profile
from tortie.felix.rules import names
from tortie.felix.rules.ir import Chain
from tortie.felix.rules.policy import Owner, rule_chain_rules
from tortie.felix.rules.settings import Settings


def profile_chains(profile: Profile, version: int, table: str, settings: Settings) -> tuple[Chain, Chain]:
    """Inbound and outbound."""
    owner = Owner(profile.name, "pro", profile.name, profile=True)
    inbound = rule_chain_rules(
        profile.inbound,
        version=version,
        table=table,
        ingress=True,
        settings=settings,
        owner=owner,
        comment=f"Profile {profile.name} ingress",
    )
    outbound = rule_chain_rules(
        profile.outbound,
        version=version,
        table=table,
        ingress=False,
        settings=settings,
        owner=owner,
        comment=f"Profile {profile.name} egress",
    )
    return (
        Chain(names.chain(names.PROFILE_IN, profile.name), inbound),
        Chain(names.chain(names.PROFILE_OUT, profile.name), outbound),
    )


def policy_chains(policy: Policy, version: int, table: str, settings: Settings) -> tuple[Chain, ...]:
    """Inbound and outbound; staged policies have no chains."""
    ident = policy.id
    if ident.staged:
        return ()
    owner = Owner(
        ident.text,
        ident.text.split("/")[0],
        ident.name,
        ident.namespace,
        policy.tier,
        untracked=policy.stage == "untracked",
    )
    who = f"{ident.kind} {ident.namespace + '/' if ident.namespace else ''}{ident.name}"
    inbound = rule_chain_rules(
        policy.inbound,
        version=version,
        table=table,
        ingress=True,
        settings=settings,
        owner=owner,
        comment=f"{who} ingress",
    )
    outbound = rule_chain_rules(
        policy.outbound,
        version=version,
        table=table,
        ingress=False,
        settings=settings,
        owner=owner,
        comment=f"{who} egress",
    )
    return (
        Chain(names.chain(names.POLICY_IN, ident.text), inbound),
        Chain(names.chain(names.POLICY_OUT, ident.text), outbound),
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
