"""What converting a policy gives: the policy, and the rules that had to be left out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from tortie.core.errors import TortieError, printable
from tortie.datastore.types.policy import GlobalNetworkPolicy, NetworkPolicy, Rule

P = TypeVar("P", NetworkPolicy, GlobalNetworkPolicy)
R = TypeVar("R", bound=msgspec.Struct)


class RuleError(TortieError):
    """A rule cannot be converted; caught by convert_rules, never seen outside this package."""


@dataclass(frozen=True, slots=True)
class RefusedRule:
    """`rule` is the rule in JSON, `reason` in Calico's words."""

    rule: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.rule, 500)} (k8s rule couldn't be converted: {printable(self.reason)})"


@dataclass(frozen=True, slots=True)
class Conversion(Generic[P]):
    """`policy` is None if the object says nothing that could be enforced: treat it as deleted."""

    name: str
    policy: P | None
    refused: tuple[RefusedRule, ...] = ()

    @property
    def error(self) -> str:
        """The refused rules in Calico's words, '' if there are none."""
        if not self.refused:
            return ""
        if len(self.refused) == 1:
            return f"policy: {self.name}: error with rule {self.refused[0]}"
        lines = "".join(f"-  {rule}\n" for rule in self.refused)
        return f"policy: {self.name}: error with the following rules:\n{lines}"


def convert_rules(
    rules: Iterable[R], convert: Callable[[R], Iterable[Rule]], instead: Callable[[R], Iterable[Rule]]
) -> tuple[tuple[Rule, ...], tuple[RefusedRule, ...]]:
    """What each rule becomes, in order; for one that cannot be converted, what `instead` says."""
    converted: list[Rule] = []
    refused: list[RefusedRule] = []
    for rule in rules:
        try:
            converted += list(convert(rule))  # all of it or nothing
        except RuleError as err:
            refused.append(RefusedRule(msgspec.json.encode(rule).decode(), str(err)))
            converted += instead(rule)
    return tuple(converted), tuple(refused)
