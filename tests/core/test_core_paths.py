"""Where files are, and what moves them."""

from pathlib import Path

import pytest

from tortie.core.errors import ConfigError
from tortie.core.paths import Paths

pytestmark = pytest.mark.unit


def test_the_defaults_are_calicos() -> None:
    assert Paths.from_env({}) == Paths()
    found = Paths()
    assert (found.nodename, found.mtu) == ("/var/lib/calico/nodename", "/var/lib/calico/mtu")
    assert found.cni_socket == "/var/run/calico/cni.sock"
    assert found.endpoint_status == "/var/run/calico/endpoint-status"
    assert found.shutdown_note == "/var/lib/calico/shutdownTS"
    assert found.exabgp_conf == "/etc/calico/confd/config/exabgp.conf"
    assert found.bgp_status == "/var/run/calico/bgp-status.json"


def test_a_folder_moves_with_all_it_holds() -> None:
    names = {"CALICO_RUN_DIR": "/r", "CALICO_LIB_DIR": "/l", "CALICO_CONFD_CONFIG_DIR": "/c"}
    found = Paths.from_env(names)
    assert (found.nodename, found.mtu, found.shutdown_note) == ("/l/nodename", "/l/mtu", "/l/shutdownTS")
    assert (found.cni_socket, found.endpoint_status) == ("/r/cni.sock", "/r/endpoint-status")
    assert (found.health_socket, found.probe_socket) == ("/r/health.sock", "/r/probe.sock")
    assert (found.bgp_status, found.bgp_nudge) == ("/r/bgp-status.json", "/r/bgp.sock")
    assert (found.exabgp_conf, found.bgp_json) == ("/c/exabgp.conf", "/c/bgp.json")


def test_a_file_of_its_own_name_wins() -> None:
    names = {"TORTIE_CNI_SOCKET": "/s", "CALICO_NODENAME_FILE": "/n", "CALICO_SHUTDOWN_TIMESTAMP_FILE": "/t"}
    found = Paths.from_env({**names, "CALICO_RUN_DIR": "/r", "CALICO_LIB_DIR": "/l"})
    assert (found.cni_socket, found.nodename, found.shutdown_note) == ("/s", "/n", "/t")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="CALICO_LIB_DIR"):
        Paths(str(tmp_path / "run"), str(tmp_path / "file" / "lib")).create()
