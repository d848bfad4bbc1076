"""Which defaulting and which checks belong to which kind."""

from collections.abc import Callable
from typing import Any, TypeVar

from tortie.core.errors import ValidationError
from tortie.datastore.types.meta import Resource
from tortie.datastore.validate.fields import Problems
from tortie.datastore.validate.metadata import check_metadata

R = TypeVar("R", bound=Resource)

_DEFAULTS: dict[str, Callable[[Any], Any]] = {}  # kind name -> fills in defaults
_CHECKS: dict[str, Callable[[Any, Problems], None]] = {}  # kind name -> collects problems


def with_defaults(resource: R) -> R:
    """A copy with every default that Calico writes into the stored object."""
    fill = _DEFAULTS.get(resource.KIND)
    return fill(resource) if fill else resource


def check(resource: Resource) -> None:
    """Raises ValidationError naming every wrong field of the resource."""
    problems = Problems(resource.KIND)
    check_metadata(resource, problems)
    if extra := _CHECKS.get(resource.KIND):
        extra(resource, problems)
    if problems.found:
        raise ValidationError(problems.found)
