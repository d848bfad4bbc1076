"""The lines that say how a command over several resources went. Pure.

(Reference: CLI, 2.5.) Scripts match on these texts, so they are Calico's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tortie.calicoctl.errors import CommandError
from tortie.core.errors import TortieError
from tortie.datastore.types.meta import Resource

_PAST = {"create": "created", "apply": "applied", "validate": "validated", "replace": "replaced"}


@dataclass(slots=True)
class Outcome:
    """`kind` is set when all resources are of one kind."""

    kind: str
    total: int
    handled: int = 0
    errors: list[TortieError] = field(default_factory=list)

    def counted(self, number: int) -> str:
        return f"{number} '{self.kind}' resource(s)" if self.kind else f"{number} resource(s)"

    def many(self) -> str:
        return f"'{self.kind}' resources" if self.kind else "resources"


def of(resources: Sequence[Resource], single_kind: str = "") -> Outcome:
    """A fresh outcome; `single_kind` is the kind named on the command line."""
    kinds = {resource.KIND for resource in resources}
    return Outcome(single_kind or (kinds.pop() if len(kinds) == 1 else ""), len(resources))


def written(outcome: Outcome, verb: str) -> tuple[str, CommandError | None]:
    """For create, apply and validate: what goes to stdout, and the error if there is one."""
    errors = "[" + " ".join(map(str, outcome.errors)) + "]"
    if not outcome.errors:
        return f"Successfully {_PAST[verb]} {outcome.counted(outcome.handled)}\n", None
    if outcome.handled == 0:
        what = f"'{outcome.kind}' resource" if outcome.total == 1 else f"any {outcome.many()}"
        return "", CommandError(f"failed to {verb} {what}: {errors}")
    text = _partial(outcome, verb) if outcome.handled > len(outcome.errors) else ""
    return text, CommandError(f"hit error: {errors}")


def replaced(outcome: Outcome) -> tuple[str, CommandError | None]:
    """For replace, which tells of the last error only.

    Calico counts a failure as handled and then speaks of partial success where there was none; here the
    number is that of the resources that were replaced.
    """
    if not outcome.errors:
        return f"Successfully replaced {outcome.counted(outcome.handled)}\n", None
    last = outcome.errors[-1]
    if outcome.handled:
        return _partial(outcome, "replace"), CommandError(f"hit error: {last}")
    if all(isinstance(err, CommandError) for err in outcome.errors):  # none was tried: a wrong namespace
        what = f"'{outcome.kind}' resource" if outcome.total == 1 else f"any {outcome.many()}"
        return "", CommandError(f"failed to replace {what}: {last}")
    return "", CommandError(f"hit error: {last}")


def deleted(outcome: Outcome) -> tuple[str, CommandError | None]:
    text = f"Successfully deleted {outcome.counted(outcome.handled)}\n" if outcome.handled else ""
    if not outcome.errors:
        return text, None
    what = f"'{outcome.kind}' resource" if outcome.kind else "resource"
    return text, CommandError("".join(f"Failed to delete {what}: {err}\n" for err in outcome.errors))


def _partial(outcome: Outcome, verb: str) -> str:
    done = f"{_PAST[verb]} the first {outcome.handled} out of {outcome.total} {outcome.many()}"
    return f"Partial success: {done}:\n"
