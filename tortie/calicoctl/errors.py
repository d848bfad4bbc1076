"""What a command refuses, and how that leaves the program: one text, one stream, one exit code."""

import re

from tortie.core.errors import TortieError

_UNKNOWN_FIELD = re.compile(r'unknown field "([^"]+)"')


class CommandError(TortieError):
    """Printed to stderr without a prefix; exit code 1."""


class Refusal(CommandError):
    """The few errors that Calico prints to stdout; exit code 1."""


class InvalidFile(CommandError):
    """A file cannot be read or understood; nothing of the whole input is carried out."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"failed to execute command: {reason}")


def friendly(text: str) -> str:
    """An error as a user sees it: of a misplaced field only the field's name is worth saying."""
    if found := _UNKNOWN_FIELD.search(text):
        return f"field in document is not recognized or is in the wrong location: {found[1]}"
    return text


def printable(text: str, keep: str = "") -> str:
    """Text without characters that could steer a terminal: those become Python-style escapes.

    Names, labels and stored keys may come from anyone who can write to the datastore.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)
