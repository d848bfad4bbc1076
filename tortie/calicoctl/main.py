"""`calicoctl`, also as the kubectl plugin `kubectl-calico`: words to a command, errors to an exit code."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, BinaryIO, TextIO

from tortie.calicoctl import flags as flag_syntax
from tortie.calicoctl import tree
from tortie.calicoctl.call import Call
from tortie.calicoctl.commands import root
from tortie.calicoctl.errors import CommandError, Refusal, friendly, printable
from tortie.core.errors import TortieError

_LOG_LEVELS = {"panic", "fatal", "error", "warn", "warning", "info", "debug", "trace"}


def main() -> int:
    """The console script."""
    name = program_name(sys.argv[0])
    try:
        # Names from the datastore may be any text; a terminal's encoding must not turn one into a crash.
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        code = run(sys.argv[1:], os.environ, sys.stdin.buffer, sys.stdout, sys.stderr, name)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `calicoctl get wep | head`: the reader has enough, and Python must not complain
        _drop_output()
        return 1
    except OSError as err:  # what files and the datastore do is told where it happens: this is our own output
        _drop_output()
        print(f"cannot write the output: {err.strerror or err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as a shell reports it


def _drop_output() -> None:
    """What is still buffered goes nowhere, as Python would complain once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def program_name(path: str) -> str:
    """What help calls the program: its plugin name when kubectl started it."""
    return "kubectl-calico" if os.path.basename(path).startswith("kubectl-") else "calicoctl"


def run(
    arguments: Sequence[str],
    env: Mapping[str, str],
    stdin: BinaryIO,
    stdout: TextIO,
    stderr: TextIO,
    name: str = "calicoctl",
) -> int:
    """One command line; returns the exit code. Never raises for what a user or a datastore did."""
    call = Call(root(name), {}, [], env, stdin, stdout, stderr)
    try:
        _dispatch(call, arguments)
    except Refusal as err:
        call.out(printable(str(err), keep="\n\t") + "\n")
        return 1
    except TortieError as err:
        call.err(friendly(str(err)))
        return 1
    return 0


def _dispatch(call: Call, arguments: Sequence[str]) -> None:
    if arguments[:1] == ["__complete"]:  # everything after it is the line to complete, flags and all
        _load("completion:complete")(_with(call, {}, list(arguments[1:])))
        return
    found = tree.find(call.root, arguments)
    parsed = flag_syntax.parse(found.flags(), found.rest)
    if parsed.values[tree.HELP_FLAG] or not found.command.run:
        from tortie.calicoctl import help as help_text

        call.out(help_text.text(found.path))
        return
    tree.check_arity(found.command, parsed.words)
    call = _with(call, parsed.values, parsed.words)
    _set_log_level(call)
    _load(found.command.run)(call)


def _with(call: Call, values: Mapping[str, Any], words: list[str]) -> Call:
    env = call.env
    if values.get("context"):
        env = {**env, "K8S_CURRENT_CONTEXT": values["context"]}
    return Call(call.root, values, words, env, call.stdin, call.stdout, call.stderr)


def _set_log_level(call: Call) -> None:
    level = call.flags["log-level"].lower()
    if level not in _LOG_LEVELS:
        raise CommandError(
            f"unknown log level: {call.flags['log-level']}, "
            "expected one of: panic, fatal, error, warn, info, debug"
        )
    if level not in ("panic", "fatal"):  # these never log: the two imports are saved
        from tortie.core import log

        log.setup(level, call.stderr)


def _load(target: str) -> Callable[[Call], None]:
    module, _, function = target.partition(":")
    handler: Callable[[Call], None] = getattr(import_module(f"tortie.calicoctl.{module}"), function)
    return handler


if __name__ == "__main__":
    sys.exit(main())
