"""Which role a command line asks for, in the spellings of Calico's generations."""

import sys

import pytest

from tortie.cni import install
from tortie.node import main

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/opt/cni/bin/install"], []),
        (["/opt/cni/bin/install", "uninstall"], ["uninstall"]),
        (["calico", "component", "cni", "install"], []),
        (["calico-node", "-install-cni", "uninstall"], ["uninstall"]),
    ],
)
def test_installing_cni_is_a_role_of_the_one_program(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], expected: list[str]
) -> None:
    asked: list[list[str]] = []

    def note(words: list[str]) -> int:
        asked.append(words)
        return 7

    monkeypatch.setattr(install, "main", note)  # the real one writes to the host's folders
    monkeypatch.setattr(sys, "argv", argv)
    assert main.main() == 7
    assert asked == [expected]
