"""Golden files: what is rendered for each case, and that ExaBGP itself accepts it.

TORTIE_UPDATE_GOLDENS=1 writes them anew; read the difference before you commit it.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.confd.confd_cases import CASES, Case
from tortie.bgp import exabgp
from tortie.confd import context, render

pytestmark = pytest.mark.unit

_GOLDENS = Path(__file__).with_name("goldens")
_PYTHON = "/usr/bin/python3"  # in the place of the interpreter that happens to run the tests


def _rendered(case: Case) -> tuple[str, str]:
    made = context.build(case.snapshot, case.node, case.router_id, case.secrets)
    made = context.Context(made.neighbors, made.config, (_PYTHON, *made.agent[1:]), made.problems)
    conf, digest = render.exabgp_conf(made)
    problems = "".join(f"# {problem}\n" for problem in made.problems)
    return problems + conf, render.bgp_json(made, digest).decode()


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    conf, json = _rendered(CASES[name])
    for suffix, text in (("conf", conf), ("json", json)):
        path = _GOLDENS / f"{name}.{suffix}"
        if os.environ.get("TORTIE_UPDATE_GOLDENS"):
            _GOLDENS.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.read_text() == text


def test_no_golden_is_left_over() -> None:
    assert {path.stem for path in _GOLDENS.iterdir()} == set(CASES)


def test_exabgp_accepts_them_all() -> None:
    files = [str(_GOLDENS / f"{name}.conf") for name in CASES]
    command = [*exabgp.validation_argv(files[0]), *files[1:]]
    done = subprocess.run(
        command, env=exabgp.environment(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
