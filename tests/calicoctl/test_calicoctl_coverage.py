"""The runbooks have every command with every flag, every kind with every format: told by reading them.

As a table: `python -m tests.calicoctl.test_calicoctl_coverage` prints which command lacks what.
"""

import shlex
from collections.abc import Iterator

import pytest

from tests.calicoctl.test_calicoctl_runbook import ON_KUBERNETES, RUNBOOKS, read
from tortie.calicoctl import flags, kinds, tree
from tortie.calicoctl.commands import root
from tortie.core.errors import TortieError

pytestmark = pytest.mark.unit

ROOT = root("calicoctl")
# What needs a machine of its own, and where it is tested instead.
ELSEWHERE = {
    ("node diags", ""): "test_calicoctl_hosts.py",
    ("node diags", "log-dir"): "test_calicoctl_hosts.py",
    ("node status", ""): "test_calicoctl_process.py",
    ("ipam check", "kubeconfig"): "test_calicoctl_release.py",
    ("bgp peers", "local"): "test_calicoctl_bgp.py",
    ("bgp routes", "local"): "test_calicoctl_bgp.py",
    ("completion bash", ""): "test_calicoctl_process.py",
    ("completion fish", ""): "test_calicoctl_process.py",
    ("completion zsh", ""): "test_calicoctl_process.py",
}
FORMATS = ("ps", "wide", "yaml", "json")


def commands(path: tuple[tree.Command, ...] = (ROOT,)) -> Iterator[tuple[str, tree.Command]]:
    """Every command that does something, by its words."""
    for child in path[-1].children:
        if child.run and not child.hidden:
            yield " ".join(one.name for one in (*path[1:], child)), child
        yield from commands((*path, child))


def invocations() -> Iterator[tuple[str, dict[str, object], list[str]]]:
    """Command, its flags that were given something but their default, and its words, of every step."""
    for book in (*RUNBOOKS, *ON_KUBERNETES):
        for step in read(book).steps:
            try:
                found = tree.find(ROOT, shlex.split(step.line))
                parsed = flags.parse(found.flags(), found.rest)
            except TortieError:
                continue
            initial = {flag.name: flag.initial for flag in found.flags()}
            given = {name: value for name, value in parsed.values.items() if value != initial[name]}
            yield " ".join(one.name for one in found.path[1:]), given, parsed.words


def covered() -> set[tuple[str, str]]:
    """(command, flag), and (command, "") for being called at all."""
    return {(name, flag) for name, given, _ in invocations() for flag in ("", *given)}


def wanted() -> set[tuple[str, str]]:
    return {(name, flag) for name, one in commands() for flag in ("", *(f.name for f in one.flags))}


def test_every_command_and_flag_is_in_a_runbook() -> None:
    assert wanted() - covered() == set(ELSEWHERE)


def test_every_global_flag_is_in_a_runbook() -> None:
    given = {flag for _, flag in covered()}
    assert {flag.name for flag in ROOT.flags} <= given


def test_every_kind_is_shown_in_every_format() -> None:
    shown = {
        (kinds.by_alias(words[0]).name, str(given.get("output", "ps")))
        for name, given, words in invocations()
        if name == "get" and words and words[0] not in ("thing", "nothing")
    }
    missing = {(kind, form) for kind in kinds.MANAGED for form in FORMATS} - shown
    assert missing == set()


def table() -> str:
    have = covered()
    rows = []
    for name, one in sorted(commands()):
        lacking = [flag.name for flag in one.flags if (name, flag.name) not in have]
        rows.append(f"{name:34} {'yes' if (name, '') in have else 'no':4} {' '.join(lacking)}")
    return "\n".join([f"{'COMMAND':34} USED FLAGS NOT USED", *rows])


if __name__ == "__main__":
    print(table())
