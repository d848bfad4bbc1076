"""The rules that endpoints of this node need, compiled, and the IP sets these name.

Invariant: `profiles` holds what local endpoints name, `policies` what applies to one, and the member index
keeps exactly the sets that these rules name. What is missing or cannot be understood denies, and `problems`
says so. `changed_profiles` and `changed_policies` name what changed since they were last taken.
(Reference: policy sheet 6; felix/calc/active_rules_calculator.go, rule_scanner.go.)
"""

from collections import Counter
from collections.abc import Iterable

from tortie.core.errors import ValidationError
from tortie.datastore.keys import ResourceKey
from tortie.datastore.rules import DEFAULT_ALLOW, DEFAULT_ALLOW_PROFILE
from tortie.datastore.types.policy import Profile as V3Profile
from tortie.felix.calc.members import MemberIndex
from tortie.felix.calc.model import DENY_ALL, Policy, PolicyId, Profile
from tortie.felix.calc.policies import Scope, V3Policy, compile_policy, denying, reservation
from tortie.felix.calc.rules import Source, compile_rules

_DENYING = "denies everything, because it is invalid"


class ActiveRules:
    def __init__(self, index: MemberIndex, problems: dict[str, str]) -> None:
        """`problems`: object -> why it is not enforced as written; entries are added and taken away here."""
        self.profiles: dict[str, Profile] = {}
        self.policies: dict[PolicyId, Policy] = {}
        self.changed_profiles: set[str] = set()
        self.changed_policies: set[PolicyId] = set()
        self._index, self._problems = index, problems
        self._fresh: set[PolicyId] = set()  # compiled since their text last changed
        self._stored: dict[str, V3Profile] = {}  # all profiles that are stored
        self._users: Counter[str] = Counter()  # profile -> local endpoints that name it
        self._set_users: Counter[str] = Counter()  # set -> active owners of rules that name it
        self._owned: dict[str | PolicyId, dict[str, Source]] = {}  # owner -> the sets its rules name

    # --- profiles -------------------------------------------------------------------------------

    def store_profile(self, name: str, profile: V3Profile | None) -> None:
        if profile is None:
            self._stored.pop(name, None)
        else:
            self._stored[name] = profile
        self._review_profile(name)

    def use_profiles(self, gained: set[str], lost: set[str]) -> None:
        """An endpoint names other profiles than before."""
        self._users.update(gained)
        self._users.subtract(lost)
        for name in sorted(gained | lost):
            if (self._users[name] > 0) != (name in self.profiles):
                self._review_profile(name)

    def _review_profile(self, name: str) -> None:
        """Bring one profile's compiled form in line with who uses it and what is stored."""
        self._problems.pop(_where(name), None)
        if self._users[name] <= 0:
            del self._users[name]
            if self.profiles.pop(name, None) is not None:
                self.changed_profiles.add(name)
            self._use_sets(name, {})
            return
        profile, sources = self._compile_profile(name)
        if self.profiles.get(name) != profile:
            self.profiles[name] = profile
            self.changed_profiles.add(name)
        self._use_sets(name, sources)

    def _compile_profile(self, name: str) -> tuple[Profile, dict[str, Source]]:
        stored = self._stored.get(name)
        if stored is None and name == DEFAULT_ALLOW:
            stored = DEFAULT_ALLOW_PROFILE
        nothing = Profile(name, (DENY_ALL,), (DENY_ALL,))
        if stored is None:
            self._problems[_where(name)] = "does not exist: what it is to allow is dropped"
            return nothing, {}
        try:
            inbound, outbound = compile_rules(stored.spec.ingress), compile_rules(stored.spec.egress)
        except ValidationError as err:
            self._problems[_where(name)] = f"{_DENYING}: {err}"
            return nothing, {}
        return Profile(name, inbound.rules, outbound.rules), {**inbound.sources, **outbound.sources}

    # --- policies -------------------------------------------------------------------------------

    def doubt_policy(self, ident: PolicyId) -> None:
        """Its text may have changed: it is compiled anew when it is used next."""
        self._fresh.discard(ident)

    def use_policy(self, scope: Scope, policy: V3Policy) -> None:
        """A policy that applies to an endpoint of this node."""
        if scope.id in self._fresh:
            return
        self._fresh.add(scope.id)
        sources: dict[str, Source] = {}
        try:
            compiled, sources = compile_policy(scope, policy)
            if remark := reservation(policy):
                self._problems[_where_policy(scope.id)] = remark
        except ValidationError as err:
            self._problems[_where_policy(scope.id)] = f"{_DENYING}: {err}"
            compiled = denying(scope)
        if self.policies.get(scope.id) != compiled:
            self.policies[scope.id] = compiled
            self.changed_policies.add(scope.id)
        self._use_sets(scope.id, sources)

    def drop_policy(self, ident: PolicyId) -> None:
        if self.policies.pop(ident, None) is not None:
            if ident in self._fresh:  # else the problem is one of its new text
                self._fresh.remove(ident)
                self._problems.pop(_where_policy(ident), None)
            self.changed_policies.add(ident)
            self._use_sets(ident, {})

    # --- sets -----------------------------------------------------------------------------------

    def _use_sets(self, owner: str | PolicyId, sources: dict[str, Source]) -> None:
        """New sets come before old ones go, so that one that stays in use is kept."""
        before = self._owned.pop(owner, {})
        if sources:
            self._owned[owner] = sources
        for ident, source in sources.items():
            if ident not in before:
                self._set_users[ident] += 1
                if self._set_users[ident] == 1:
                    self._index.activate(source)
        self._leave(ident for ident in before if ident not in sources)

    def _leave(self, idents: Iterable[str]) -> None:
        for ident in idents:
            self._set_users[ident] -= 1
            if self._set_users[ident] == 0:
                del self._set_users[ident]
                self._index.deactivate(ident)


def _where(profile: str) -> str:
    return str(ResourceKey("Profile", profile))


def _where_policy(ident: PolicyId) -> str:
    return str(ResourceKey(ident.kind, ident.name, ident.namespace))
