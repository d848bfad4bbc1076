"""Golden files: what is rendered for each case, and that ExaBGP and BIRD themselves accept it.

TORTIE_UPDATE_GOLDENS=1 writes them anew; read the difference before you commit it.
"""

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.confd.confd_cases import CASES, Case
from tortie.bgp import exabgp
from tortie.bgp.prefix import Version
from tortie.confd import context, render

pytestmark = pytest.mark.unit

_GOLDENS = Path(__file__).with_name("goldens")
_BIRD: Mapping[Version, str] = {4: "bird.cfg", 6: "bird6.cfg"}  # family -> suffix
_PYTHON = "/usr/bin/python3"  # in the place of the interpreter that happens to run the tests


def _rendered(case: Case) -> dict[str, str]:
    """Suffix of the file's name -> its content."""
    made = context.build(case.snapshot, case.node, case.router_id, case.secrets)
    made = context.Context(made.neighbors, made.config, (_PYTHON, *made.agent[1:]), made.problems)
    conf, digest = render.exabgp_conf(made)
    found = {"conf": _comments(made.problems) + conf, "json": render.bgp_json(made, digest).decode()}
    made = context.build(case.snapshot, case.node, case.router_id, case.secrets, speaker="bird")
    for version, suffix in _BIRD.items():
        problems: list[str] = []
        text = render.bird_cfg(made, version, problems).decode("latin-1")
        found[suffix] = _comments(problems) + text
    return found


def _comments(problems: Iterable[str]) -> str:
    return "".join(f"# {problem}\n" for problem in problems)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    for suffix, text in _rendered(CASES[name]).items():
        path = _GOLDENS / f"{name}.{suffix}"
        if os.environ.get("TORTIE_UPDATE_GOLDENS"):
            _GOLDENS.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.read_text() == text


def test_no_golden_is_left_over() -> None:
    suffixes = ("conf", "json", *_BIRD.values())
    expected = {f"{name}.{suffix}" for name in CASES for suffix in suffixes}
    assert {path.name for path in _GOLDENS.iterdir()} == expected
    assert len(CASES) >= 40


def test_exabgp_accepts_them_all() -> None:
    files = [str(_GOLDENS / f"{name}.conf") for name in CASES]
    command = [*exabgp.validation_argv(files[0]), *files[1:]]
    done = subprocess.run(
        command, env=exabgp.environment(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", CASES)
def test_bird_accepts_it(name: str) -> None:
    for suffix in _BIRD.values():
        command = ["bird", "-p", "-c", str(_GOLDENS / f"{name}.{suffix}")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "poison", ["local-as 64512", "local-as x;", "local-as 64512; process agent { run /bin/false; }", "} "]
)
def test_exabgp_refuses_what_would_poison_it(poison: str, tmp_path: Path) -> None:
    bad = tmp_path / "exabgp.conf"
    bad.write_text((_GOLDENS / "mesh.conf").read_text().replace("local-as 64512;", poison, 1))
    done = subprocess.run(
        exabgp.validation_argv(str(bad)), env=exabgp.environment(os.environ), capture_output=True, check=False
    )
    assert done.returncode == 1
