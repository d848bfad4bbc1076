"""Flags as Go's pflag reads them, because scripts rely on its forms and on its error texts.

`--name value`, `--name=value`, `-n value`, `-nvalue`, `-n=value`, `-Rf value`; a boolean takes a value
only after `=`; flags and words mix freely; `--` ends flags. Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tortie.calicoctl.errors import CommandError

_TRUE = {"1", "t", "T", "TRUE", "true", "True"}
_FALSE = {"0", "f", "F", "FALSE", "false", "False"}


@dataclass(frozen=True, slots=True)
class Flag:
    """`default` None: "" for text, False for a boolean, 0 for a number, () for a list."""

    name: str
    help: str
    short: str = ""
    kind: Literal["string", "bool", "int", "stringArray"] = "string"
    default: Any = None
    hidden: bool = False

    @property
    def initial(self) -> Any:
        if self.default is not None:
            return self.default
        return {"string": "", "bool": False, "int": 0, "stringArray": ()}[self.kind]

    @property
    def label(self) -> str:
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


CONFIG_PATH = "/etc/calico/calicoctl.cfg"  # datastore.config.DEFAULT_PATH, without importing it
CONFIG = Flag("config", "file with the connection to the datastore, YAML or JSON", "c", default=CONFIG_PATH)


@dataclass(slots=True)
class Parsed:
    values: dict[str, Any]  # flag name -> its value, given or default
    words: list[str] = field(default_factory=list)


def parse(flags: Iterable[Flag], arguments: Sequence[str]) -> Parsed:
    """Raises CommandError with pflag's wording."""
    known = {flag.name: flag for flag in flags}
    shorts = {flag.short: flag for flag in known.values() if flag.short}
    parsed = Parsed({flag.name: flag.initial for flag in known.values()})
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            parsed.words += rest
            break
        if argument.startswith("--"):
            _long(known, argument, rest, parsed)
        elif argument.startswith("-") and argument != "-":
            _short(shorts, argument, rest, parsed)
        else:
            parsed.words.append(argument)
    return parsed


def _long(known: dict[str, Flag], argument: str, rest: list[str], parsed: Parsed) -> None:
    name, equals, value = argument[2:].partition("=")
    if not name or name.startswith("-"):
        raise CommandError(f"bad flag syntax: {argument}")
    if (flag := known.get(name)) is None:
        raise CommandError(f"unknown flag: --{name}")
    if not equals:
        if flag.kind == "bool":
            value = "true"
        elif rest:
            value = rest.pop(0)
        else:
            raise CommandError(f"flag needs an argument: --{name}")
    _set(parsed, flag, value)


def _short(shorts: dict[str, Flag], argument: str, rest: list[str], parsed: Parsed) -> None:
    letters = argument[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        if (flag := shorts.get(letter)) is None:
            raise CommandError(f"unknown shorthand flag: '{letter}' in -{letter}{letters}")
        if len(letters) > 1 and letters[0] == "=":
            value, letters = letters[1:], ""
        elif flag.kind == "bool":
            value = "true"
        elif letters:
            value, letters = letters, ""
        elif rest:
            value = rest.pop(0)
        else:
            raise CommandError(f"flag needs an argument: '{letter}' in -{letter}")
        _set(parsed, flag, value)


def _set(parsed: Parsed, flag: Flag, text: str) -> None:
    if flag.kind == "stringArray":
        parsed.values[flag.name] = (*parsed.values[flag.name], text)
    elif flag.kind == "bool":
        if text not in _TRUE | _FALSE:
            raise _invalid(flag, text, "ParseBool")
        parsed.values[flag.name] = text in _TRUE
    elif flag.kind == "int":
        try:
            parsed.values[flag.name] = int(text, 0)
        except ValueError:
            raise _invalid(flag, text, "ParseInt") from None
    else:
        parsed.values[flag.name] = text


def _invalid(flag: Flag, text: str, parser: str) -> CommandError:
    reason = f'strconv.{parser}: parsing "{text}": invalid syntax'
    return CommandError(f'invalid argument "{text}" for "{flag.label}" flag: {reason}')


def takes_next(flags: Iterable[Flag], argument: str) -> bool:
    """Whether the argument after this one is its value; an unknown flag is taken to have one, as in cobra.

    This is how the command is found among flags that only the command itself knows.
    """
    if "=" in argument or not argument.startswith("-"):
        return False
    if argument.startswith("--"):
        return not any(flag.name == argument[2:] and flag.kind == "bool" for flag in flags)
    return len(argument) == 2 and not any(flag.short == argument[1] and flag.kind == "bool" for flag in flags)
