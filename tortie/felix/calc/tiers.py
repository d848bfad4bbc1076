"""Which policies apply to which local endpoints, and in what order they are asked.

Invariant: after each call the matches are those of all known scopes and endpoints; `dirty` names the
endpoints whose tiers may have changed since it was last taken, and `reviewed` the policies that may have
begun or ceased to apply to anybody. Pure. (Reference: policy sheet 3, 6; felix/calc/policy_resolver.go.)
"""

from collections.abc import Hashable, Iterable, Mapping
from itertools import groupby
from math import inf
from typing import Literal

from tortie.datastore.selector import Match, SelectorIndex
from tortie.felix.calc.model import PolicyId, PolicyRef, Tier
from tortie.felix.calc.policies import Scope, TierTerms

Use = Literal["normal", "forward", "untracked", "pre-dnat"]
"""For which packets of an endpoint: its own, those a host only forwards, or one of the early stages."""

_MISSING = TierTerms(inf, False)
_MOST_BUILT = 1024  # a node has a few hundred endpoints; more combinations than that are of the past


class PolicyIndex:
    """Endpoints are named by any hashable key."""

    def __init__(self) -> None:
        self.dirty: set[Hashable] = set()
        self.reviewed: set[PolicyId] = set()
        self._scopes: dict[PolicyId, Scope] = {}
        self._tiers: dict[str, TierTerms] = {}
        self._index: SelectorIndex[PolicyId, Hashable] = SelectorIndex()
        self._ranks: dict[PolicyId, int] = {}  # policy -> its place among all; empty: to be counted anew
        # (use, policies in order) -> their tiers; one value for the many endpoints that share it
        self._built: dict[tuple[Use, tuple[PolicyId, ...]], tuple[Tier, ...]] = {}

    # --- what changes ---------------------------------------------------------------------------

    def update_scope(self, ident: PolicyId, scope: Scope | None) -> None:
        """Add, replace or (None) delete a policy."""
        if self._scopes.get(ident) == scope:
            return
        self.dirty.update(self._index.items_of(ident))
        if scope is None:
            del self._scopes[ident]
            self._take(self._index.delete_selector(ident))
        else:
            self._scopes[ident] = scope
            self._take(self._index.update_selector(ident, scope.selector))
            self.dirty.update(self._index.items_of(ident))
        self.reviewed.add(ident)
        self._reorder()

    def update_tier(self, name: str, terms: TierTerms | None) -> None:
        if self._tiers.get(name) == terms:
            return
        if terms is None:
            del self._tiers[name]
        else:
            self._tiers[name] = terms
        for ident, scope in self._scopes.items():
            if scope.tier == name:
                self.dirty.update(self._index.items_of(ident))
        self._reorder()

    def update_endpoint(self, key: Hashable, labels: Mapping[str, str], profiles: Iterable[str]) -> None:
        """Add or replace a local endpoint."""
        self._take(self._index.update_item(key, labels, profiles))

    def delete_endpoint(self, key: Hashable) -> None:
        self._take(self._index.delete_item(key))

    def update_profile_labels(self, name: str, labels: Mapping[str, str]) -> None:
        """Labels that every endpoint with this profile inherits; {} when it is gone."""
        self._take(self._index.update_parent(name, labels))

    def _take(self, events: Iterable[Match[PolicyId, Hashable]]) -> None:
        for ident, key, _started in events:
            self.dirty.add(key)
            self.reviewed.add(ident)

    # --- questions ------------------------------------------------------------------------------

    def scope(self, ident: PolicyId) -> Scope | None:
        return self._scopes.get(ident)

    def applies(self, ident: PolicyId) -> bool:
        """Whether a policy's rules are needed on this node; those of staged ones never are."""
        scope = self._scopes.get(ident)
        if scope is None or ident.staged:
            return False
        return scope.everywhere or bool(self._index.items_of(ident))

    def tiers_of(self, key: Hashable, use: Use = "normal") -> tuple[Tier, ...]:
        """The tiers an endpoint's packets go through, in order, each with its policies in order."""
        ranks = self._ranked()
        chosen = [ident for ident in self._index.selectors_of(key) if _is_for(self._scopes[ident], use)]
        policies = tuple(sorted(chosen, key=ranks.__getitem__))
        if (use, policies) not in self._built:
            if len(self._built) >= _MOST_BUILT:  # those in use are soon built again
                self._built.clear()
            self._built[use, policies] = tuple(self._build(policies, use))
        return self._built[use, policies]

    # --- order ----------------------------------------------------------------------------------

    def _reorder(self) -> None:
        self._ranks.clear()
        self._built.clear()

    def _ranked(self) -> dict[PolicyId, int]:
        if not self._ranks:
            ordered = sorted(self._scopes.values(), key=lambda scope: (self._turn(scope.tier), scope.turn))
            self._ranks = {scope.id: number for number, scope in enumerate(ordered)}
        return self._ranks

    def _turn(self, tier: str) -> tuple[bool, float, str]:
        """A tier that is named but not known comes after all that are."""
        return tier not in self._tiers, self._tiers.get(tier, _MISSING).order, tier

    def _build(self, policies: Iterable[PolicyId], use: Use) -> Iterable[Tier]:
        for name, group in groupby(policies, key=lambda ident: self._scopes[ident].tier):
            scopes = [self._scopes[ident] for ident in group]
            refs = {scope: PolicyRef(scope.id, scope.selector.canonical) for scope in scopes}
            # Before tracking and before translation no tier denies what its policies say nothing about.
            terms = self._tiers.get(name, _MISSING)
            yield Tier(
                name,
                terms.default_pass or use in ("untracked", "pre-dnat"),
                tuple(refs[scope] for scope in scopes if scope.ingress),
                tuple(refs[scope] for scope in scopes if scope.egress),
            )


def _is_for(scope: Scope, use: Use) -> bool:
    if use == "forward":
        return scope.stage == "normal" and scope.forward
    return scope.stage == use
