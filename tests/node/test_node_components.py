"""Which processes a node runs, by CALICO_NETWORKING_BACKEND."""

import signal

import pytest

from tortie.core.errors import ConfigError
from tortie.core.paths import Paths
from tortie.node.components import components

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("backend", "speaking"),
    [
        ("", ["confd", "bgp"]),
        ("exabgp", ["confd", "bgp"]),
        ("bird", ["confd", "bird", "bird6"]),
        ("vxlan", []),
        ("none", []),
    ],
)
def test_who_speaks_bgp(backend: str, speaking: list[str]) -> None:
    parts = components({"CALICO_NETWORKING_BACKEND": backend}, Paths(), "n")
    assert [part.name for part in parts if part.name not in ("felix", "tunnels", "cni")] == speaking


def test_bird_waits_for_its_file_and_vanishes_without_a_word() -> None:
    parts = components({"CALICO_NETWORKING_BACKEND": "bird"}, Paths(confd="/c"), "n")
    birds = [part for part in parts if part.name.startswith("bird")]
    assert [part.prerequisite for part in birds] == ["/c/bird.cfg", "/c/bird6.cfg"]
    assert {part.stop for part in birds} == {signal.SIGKILL}, "peers keep the routes of one that vanishes"
    assert {part.reported_as for part in birds} == {"bgp"}


def test_a_missing_bird_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="install BIRD 2"):
        components({"CALICO_NETWORKING_BACKEND": "bird"}, Paths(), "n")


def test_a_backend_that_is_none_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="not one of exabgp, bird, vxlan, none"):
        components({"CALICO_NETWORKING_BACKEND": "frr"}, Paths(), "n")
