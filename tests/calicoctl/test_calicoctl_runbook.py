"""Runbooks: what a person types, and exactly what comes back.

Each file of runbook/ is one session with a fresh datastore. `-- name --` starts a file that the session
finds in its directory; `$ ` is a command line; below it follow its stdout (`> `) and stderr (`! `), each
line ending in `$` so that trailing spaces are seen, and its exit code (`= `, 0 if not said). UIDs, times,
revisions and cluster IDs are written as words. `stdin: NAME` before a command feeds it that file.
`etcd: NAME` before a command first puts into the datastore what that file says other programs put
there: a key and its value on each line; a key alone is deleted. `kubernetes: NAME` does the same where the
datastore is Kubernetes (those of runbook/kubernetes): a method, a path and perhaps JSON on each line.

@ENDPOINTS@ in a file is where the session's etcd is.

With UPDATE_GOLDENS=1 the files are rewritten with what came back.
"""

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.calicoctl.conftest import Ctl, Result
from tests.support.etcd import Etcd
from tests.support.kubernetes import ApiServer

pytestmark = pytest.mark.kernel

_FOLDER = Path(__file__).parent / "runbook"
RUNBOOKS = sorted(_FOLDER.glob("*.txt"))
ON_KUBERNETES = sorted((_FOLDER / "kubernetes").glob("*.txt"))

_CHANGING = [
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UID"),
    (re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r'(resourceVersion"?: )("\d+"|\d*/\d*)'), r'\1"REV"'),
    (re.compile(r"\b[0-9a-f]{32}\b"), "GUID"),
]


@dataclass
class Step:
    line: str
    stdin: str = ""
    outside: tuple[str, str] = ("", "")  # etcd or kubernetes, and the file that says what to do there
    expected: list[str] = field(default_factory=list)


@dataclass
class Runbook:
    comment: list[str]
    files: dict[str, str]
    steps: list[Step]


def read(path: Path) -> Runbook:
    book = Runbook([], {}, [])
    name = stdin = ""
    outside = ("", "")
    for line in path.read_text().splitlines():
        if header := re.fullmatch(r"-- (\S+) --", line):
            name = header[1]
            book.files[name] = ""
        elif line.startswith("$ "):
            name = ""
            book.steps.append(Step(line[2:], stdin, outside))
            stdin, outside = "", ("", "")
        elif (given := re.fullmatch(r"(etcd|kubernetes): (\S+)", line)) and given[2] in book.files:
            name, outside = "", (given[1], given[2])
        elif name:
            book.files[name] += line + "\n"
        elif line.startswith("stdin: "):
            stdin = line.removeprefix("stdin: ")
        elif book.steps and line[:2] in ("> ", "! ", "= "):
            book.steps[-1].expected.append(line)
        elif line:
            book.comment.append(line)
    # The empty line that parts a file from what follows is not the file's.
    book.files = {name: text.rstrip("\n") + "\n" for name, text in book.files.items()}
    return book


def write(path: Path, book: Runbook) -> None:
    parts = [f"{line}\n" for line in book.comment]
    parts += [f"-- {name} --\n{text}" for name, text in book.files.items()]
    for step in book.steps:
        given = "{}: {}\n".format(*step.outside) if step.outside[1] else ""
        given += f"stdin: {step.stdin}\n" if step.stdin else ""
        parts.append(f"\n{given}$ {step.line}\n")
        parts += [f"{line}\n" for line in step.expected]
    path.write_text("".join(parts))


def shown(result: Result) -> list[str]:
    def lines(mark: str, text: str) -> list[str]:
        for pattern, word in _CHANGING:
            text = pattern.sub(word, text)
        if not text:
            return []
        end = "$" if text.endswith("\n") else ""
        return [
            f"{mark} {line}" for line in text.removesuffix("\n").replace("\n", "$\n").split("\n")[:-1]
        ] + [f"{mark} {text.removesuffix(chr(10)).split(chr(10))[-1]}{end}"]

    code = [f"= {result.code}"] if result.code else []
    return lines(">", result.out) + lines("!", result.err) + code


Store = Callable[[str], None]


def store_in(etcd: Etcd) -> Store:
    def store(text: str) -> None:
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            if value:
                etcd.put(key, value)
            elif key:
                etcd.delete(key)

    return store


def store_through(server: ApiServer) -> Store:
    def store(text: str) -> None:
        for line in text.splitlines():
            method, path, body = (*line.split(" ", 2), "")[:3]
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            server.ask(method, path, json.loads(body) if body else None, kind)

    return store


def play(path: Path, ctl: Ctl, folder: Path, store: Store) -> None:
    """The session of one file, in a directory of its own."""
    book = read(path)
    for name, text in book.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("@ENDPOINTS@", ctl.env.get("ETCD_ENDPOINTS", "")))
    for step in book.steps:
        if step.outside[1]:
            store(book.files[step.outside[1]])
        stdin = book.files[step.stdin] if step.stdin else ""
        found = shown(ctl.run(*shlex.split(step.line), stdin=stdin))
        if os.environ.get("UPDATE_GOLDENS"):
            step.expected = found
        else:
            assert found == step.expected, f"$ {step.line}"
    if os.environ.get("UPDATE_GOLDENS"):
        write(path, book)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_runbook(path: Path, ctl: Ctl, etcd: Etcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    play(path, ctl, tmp_path, store_in(etcd))


@pytest.mark.parametrize("path", ON_KUBERNETES, ids=lambda path: path.stem)
def test_runbook_on_kubernetes(
    path: Path, kube_ctl: Ctl, apiserver: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    play(path, kube_ctl, tmp_path, store_through(apiserver))


def test_there_are_enough_invocations() -> None:
    assert sum(len(read(path).steps) for path in RUNBOOKS) >= 200
