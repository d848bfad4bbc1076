"""Help texts in cobra's layout, from the command tree."""

from collections.abc import Iterable

from tortie.calicoctl.call import Call
from tortie.calicoctl.flags import Flag
from tortie.calicoctl.tree import Command, help_flag

_NAME_WIDTH = 11  # cobra's least width of the column of command names


def text(path: tuple[Command, ...]) -> str:
    """What `--help` prints for the command at the end of the path."""
    command = path[-1]
    return f"{command.long or command.short}\n\n{usage(path)}"


def usage(path: tuple[Command, ...]) -> str:
    command = path[-1]
    where = " ".join(step.name for step in path)
    if command.children:
        parts = [f"Usage:\n  {where} [command]\n", _children(command)]
    else:
        parts = ["Usage:\n  " + " ".join(filter(None, [where, command.usage, "[flags]"])) + "\n"]
    if command.example:
        parts.append(f"Examples:\n{command.example}\n")
    is_root = len(path) == 1
    own = command.flags
    parts.append("Flags:\n" + _flags([*own, help_flag(command)]))
    if not is_root:
        parts.append("Global Flags:\n" + _flags(path[0].flags))
    if command.children:
        parts.append(f'Use "{where} [command] --help" for more information about a command.\n')
    return "\n".join(parts)


def _children(command: Command) -> str:
    shown = [child for child in command.children if not child.hidden]
    width = max(_NAME_WIDTH, *(len(child.name) for child in shown))
    return "Available Commands:\n" + "".join(f"  {c.name.ljust(width)} {c.short}\n" for c in shown)


def _flags(flags: Iterable[Flag]) -> str:
    lines = [
        (_label(flag), _meaning(flag)) for flag in sorted(flags, key=lambda f: f.name) if not flag.hidden
    ]
    width = max(len(label) for label, _ in lines)
    return "".join(f"{label.ljust(width)}   {meaning}\n" for label, meaning in lines)


def _label(flag: Flag) -> str:
    start = f"  {flag.label}" if flag.short else f"      {flag.label}"
    return start if flag.kind == "bool" else f"{start} {flag.kind}"


def _meaning(flag: Flag) -> str:
    if not flag.default:
        return flag.help
    return (
        f'{flag.help} (default "{flag.default}")'
        if flag.kind == "string"
        else f"{flag.help} (default {flag.default})"
    )


def help_command(call: Call) -> None:
    """`help COMMAND...`, the same as `COMMAND... --help`."""
    path: tuple[Command, ...] = (call.root,)
    for word in call.words:
        child = path[-1].child(word)
        if child is None:
            topic = " ".join(call.words)
            call.err(f"Unknown help topic [`{topic}`]\n{usage((call.root,))}")
            return
        path = (*path, child)
    call.out(text(path))
