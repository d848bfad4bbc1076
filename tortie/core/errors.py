"""The whole exception tree, on one page.

Four families, each raised at one kind of border and re-labelled there once: a person's
configuration, the datastore, the kernel, a peer. Every message names what and where, so
that the text alone can be acted on. Datastore wording is Calico's
(libcalico-go/lib/errors/errors.go), because runbooks match on it.
"""

from dataclasses import dataclass
from typing import Any


class TortieError(Exception):
    """Anything this program raises on purpose."""


class ConfigError(TortieError):
    """Configuration that a person gave is wrong; `where` is the variable, file or field."""

    def __init__(self, where: str, value: object, reason: str) -> None:
        super().__init__(f"{where} = {value!r}: {reason}")
        self.where, self.value, self.reason = where, value, reason


class KernelError(TortieError):
    """The kernel refused an operation; `errno` is 0 when there was none."""

    def __init__(self, operation: str, what: str, errno: int = 0, text: str = "") -> None:
        super().__init__(f"{operation} {what}: {text or f'errno {errno}'}")
        self.operation, self.what, self.errno, self.text = operation, what, errno, text


class PeerError(TortieError):
    """A BGP speaker or another process on the far side broke an agreement."""


class CniError(TortieError):
    """An answer of the CNI protocol: `code` of the specification's section "Error", `details` may be ''."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(f"{msg}: {details}" if details else msg)
        self.code, self.msg, self.details = code, msg, details


class DatastoreError(TortieError):
    """The datastore refused or could not carry out an operation."""


class ResourceDoesNotExist(DatastoreError):
    def __init__(self, identifier: object, err: object = None) -> None:
        super().__init__(f"resource does not exist: {identifier} with error: {err or '<nil>'}")
        self.identifier = identifier


class ResourceAlreadyExists(DatastoreError):
    def __init__(self, identifier: object, err: object = None, current: Any = None) -> None:
        super().__init__(f"resource already exists: {identifier} with error: {err or '<nil>'}")
        self.identifier, self.err, self.current = (
            identifier,
            err,
            current,
        )  # current: what is stored, if known


class UpdateConflict(DatastoreError):
    """Somebody else wrote first: read again, decide again."""

    def __init__(self, identifier: object, current: Any = None) -> None:
        super().__init__(f"update conflict: {identifier}")
        self.identifier, self.current = identifier, current


class OperationNotSupported(DatastoreError):
    def __init__(self, operation: str, identifier: object, reason: str = "") -> None:
        super().__init__(
            f"operation {operation} is not supported on {identifier}" + (f": {reason}" if reason else "")
        )
        self.operation, self.identifier, self.reason = operation, identifier, reason


class Unauthorized(DatastoreError):
    def __init__(self, err: object) -> None:
        super().__init__(f"connection is unauthorized: {err}")


class DatastoreUnreachable(DatastoreError):
    """No answer in time, refused or reset: try again later, nothing is known to have changed.

    A write that fails so may still have been applied.
    """


class RevisionGone(DatastoreError):
    """A watch asked for history that was compacted away: list again."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: its path (`IPPool.Spec.CIDR`), what was found (None: nothing), and why it is wrong."""

    field: str
    value: object
    reason: str

    def __str__(self) -> str:
        found = "" if self.value is None else f" = '{printable(_as_json(self.value))}'"
        # Path and reason may quote what was found, a map's key for one.
        return f"{printable(self.field, 500)}{found} ({printable(self.reason, 500)})"


class ValidationError(DatastoreError):
    """One or more fields of a resource are wrong; nothing was changed."""

    def __init__(self, fields: list[FieldError]) -> None:
        self.fields = fields
        if len(fields) == 1:
            super().__init__(f"error with field {fields[0]}")
        else:
            super().__init__("\n".join(["error with the following fields:", *(f"-  {f}" for f in fields)]))


def _as_json(value: object) -> object:
    """As a person has written it: `true` and not `True`."""
    if isinstance(value, bool | list | dict):
        import json  # only what is wrong with a file comes here

        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
    return value


def printable(value: object, limit: int = 200) -> str:
    """Hostile values are quoted into logs and terminals: no control characters, bounded length.

    200 is long enough for any legal name (253 cut) or selector to be recognised.
    """
    text = str(value)
    if len(text) > limit:
        text = text[:limit] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
