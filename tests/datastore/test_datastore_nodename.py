"""The node's name: which of its sources counts, and that every process comes to the same."""

from pathlib import Path

import pytest

from tortie.cni.server import Settings
from tortie.core.errors import ConfigError
from tortie.datastore import nodename
from tortie.felix.daemon import local_sources

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("env", "stored", "name"),
    [
        ({"NODENAME": " Node-A "}, "old", None),  # not lower-cased, hence not valid
        ({"NODENAME": "node-a"}, "old", "node-a"),
        ({}, "old\n", "old"),
        ({"HOSTNAME": "Host-B "}, "", "host-b"),
        ({}, "", "os-host"),
        ({"NODENAME": "a/b"}, "", None),
        ({"NODENAME": "a\nb"}, "", None),
        ({}, "evil\nprocess", None),
        ({"NODENAME": "x" * 254}, "", None),
    ],
)
def test_node_name(env: dict[str, str], stored: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(ConfigError):
            nodename.determine(env, stored, "OS-Host")
    else:
        assert nodename.determine(env, stored, "OS-Host")[0] == name


def test_every_process_finds_what_start_up_wrote(tmp_path: Path) -> None:
    """The folder alone is moved: the file moves with it, for the one who writes and for all who read."""
    env = {"CALICO_LIB_DIR": str(tmp_path / "lib"), "HOSTNAME": "other", "ETCD_ENDPOINTS": "http://h:2379"}
    nodename.write("node-a", env)
    assert (tmp_path / "lib" / "nodename").read_text() == "node-a"
    assert nodename.read(env) == ("node-a", "the nodename file")
    assert local_sources(env).hostname == "node-a"
    assert Settings.from_env(env).node == "node-a"


def test_felix_takes_the_hosts_name_as_the_others_do(tmp_path: Path) -> None:
    env = {"CALICO_LIB_DIR": str(tmp_path), "HOSTNAME": "Host-B", "ETCD_ENDPOINTS": "http://h:2379"}
    assert nodename.read(env)[0] == local_sources(env).hostname == Settings.from_env(env).node == "host-b"
