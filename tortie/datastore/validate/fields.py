"""Checks of single fields: addresses, names, selectors, numbers; each adds to a list of problems."""

from tortie.core.errors import FieldError


class Problems:
    """Collects the wrong fields of one resource, so that a user sees all of them at once."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.found: list[FieldError] = []

    def add(self, field: str, value: object, reason: str) -> None:
        """`field` is the path inside the resource as Calico prints it, e.g. `IPPool.Spec.CIDR`."""
        self.found.append(FieldError(field, value, reason))
