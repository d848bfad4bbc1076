"""What one row of the table of Felix parameters says."""

from dataclasses import dataclass
from enum import Flag, auto
from functools import cached_property
from typing import Any

from tortie.datastore.felixparams.kinds import Kind
from tortie.datastore.validate.fields import Check


class Trait(Flag):
    NON_ZERO = auto()  # `none` is refused
    FATAL = auto()  # a value that cannot be read stops Felix; others fall back to the default
    LOCAL = auto()  # only from environment or file: needed before the datastore can be read


NON_ZERO, FATAL, LOCAL = Trait
NONE = Trait(0)


@dataclass(frozen=True)
class Param:
    """`field` is '' for parameters that no FelixConfiguration can set."""

    name: str
    field: str
    kind: Kind
    default_text: str  # '': the kind's zero value
    traits: Trait
    check: Check  # of the field's JSON

    @cached_property
    def default(self) -> Any:
        return self.kind.parse(self.default_text) if self.default_text else self.kind.zero
