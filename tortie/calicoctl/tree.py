"""The command tree: what a command is, how the words of a command line lead to one. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.flags import Flag, takes_next

HELP_FLAG = "help"
_SUGGESTION_DISTANCE = 2  # cobra's: a word with at most so many typing errors is suggested


@dataclass(frozen=True, slots=True)
class Command:
    """One node of the tree. `run` is `module:function` in this room, imported when the command runs.

    `usage` is what follows the name in the usage line; `arity` is how many words the command takes,
    (least, most), None for any number.
    """

    name: str
    short: str
    long: str = ""
    usage: str = ""
    example: str = ""
    flags: tuple[Flag, ...] = ()
    run: str = ""
    arity: tuple[int, int | None] = (0, None)
    children: tuple["Command", ...] = ()
    hidden: bool = False
    complete: str = ""  # kinds: the first word is a kind

    def child(self, name: str) -> "Command | None":
        return next((child for child in self.children if child.name == name), None)


@dataclass(frozen=True, slots=True)
class Found:
    """`path` leads from the root to the command; `rest` are the arguments less the path's words."""

    path: tuple[Command, ...]
    rest: list[str]

    @property
    def command(self) -> Command:
        return self.path[-1]

    def flags(self) -> tuple[Flag, ...]:
        """The command's own flags, then the global ones."""
        own = self.command.flags if len(self.path) > 1 else ()
        return (*own, help_flag(self.command), *self.path[0].flags)


def help_flag(command: Command) -> Flag:
    return Flag(HELP_FLAG, f"help for {command.name}", "h", "bool")


def find(root: Command, arguments: Sequence[str]) -> Found:
    """The command that the first words name. Raises CommandError for one that no command has.

    Below a group Calico answers that with help and success, which a script takes for work done.
    """
    found = Found((root,), list(arguments))
    while (index := _first_word(found)) is not None:
        word = found.rest[index]
        child = found.command.child(word)
        if child is None:
            path = " ".join(command.name for command in found.path)
            raise CommandError(f'unknown command "{word}" for "{path}"' + _suggestion(found.command, word))
        found = Found((*found.path, child), found.rest[:index] + found.rest[index + 1 :])
    return found


def _first_word(found: Found) -> int | None:
    if not found.command.children:
        return None
    index = 0
    while index < len(found.rest):
        argument = found.rest[index]
        if argument == "--":
            return None
        if not argument.startswith("-") or argument == "-":
            return index
        index += 2 if takes_next(found.flags(), argument) else 1
    return None


def check_arity(command: Command, words: Sequence[str]) -> None:
    """Raises CommandError with cobra's wording."""
    least, most = command.arity
    if least == most and len(words) != least:
        raise CommandError(f"accepts {least} arg(s), received {len(words)}")
    if len(words) < least:
        raise CommandError(f"requires at least {least} arg(s), only received {len(words)}")


def _suggestion(group: Command, word: str) -> str:
    close = sorted(name for name in _names(group) if _is_close(name, word))
    return "".join(["\n\nDid you mean this?\n", *(f"\t{name}\n" for name in close)]) if close else ""


def _names(group: Command) -> Iterator[str]:
    return (child.name for child in group.children if not child.hidden)


def _is_close(name: str, word: str) -> bool:
    return name.startswith(word.lower()) or _distance(name, word.lower()) <= _SUGGESTION_DISTANCE


def _distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]
