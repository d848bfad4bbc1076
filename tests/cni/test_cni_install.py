"""CNI onto a host and away again: what is written where, in which order, and what a wrong wish changes."""

import json
import os
import stat
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tortie.cni import conflist, credential, install
from tortie.cni.hostfiles import HostFiles, keeps_credential
from tortie.core.errors import ConfigError, DatastoreUnreachable
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.kubernetes.kubeconfig import locate

pytestmark = pytest.mark.unit

ENV = {"KUBERNETES_NODE_NAME": "n1", "CNI_MTU": "0", "SLEEP": "false"}


@pytest.fixture
def files(tmp_path: Path) -> HostFiles:
    """A host and an image with a shim, another plugin, and the installer itself."""
    for folder in ("host/etc/cni/net.d", "host/opt/cni/bin", "opt/cni/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("calico", "portmap", "install"):
        (tmp_path / "opt/cni/bin" / name).write_text(f"program {name}")
    return HostFiles(root=str(tmp_path))


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def host(files: HostFiles, *path: str) -> Path:
    return Path(files.root, "host", *path)


# --- files on the host ----------------------------------------------------------------------------


def test_a_host_gets_plugins_and_a_configuration(files: HostFiles) -> None:
    install.install(ENV, files)
    installed = contents(host(files, "opt/cni/bin"))
    program = "program calico"
    assert installed == {"calico": program, "calico-ipam": program, "portmap": "program portmap"}
    assert stat.S_IMODE(host(files, "opt/cni/bin/calico").stat().st_mode) == 0o755
    [(name, text)] = contents(host(files, "etc/cni/net.d")).items()
    assert name == "10-calico.conflist"
    assert stat.S_IMODE(host(files, "etc/cni/net.d", name).stat().st_mode) == 0o600
    calico = json.loads(text)["plugins"][0]
    assert calico["nodename"] == "n1"
    assert calico["mtu"] == 0
    assert calico["kubernetes"]["kubeconfig"] == "/etc/cni/net.d/calico-kubeconfig"


def test_installing_again_writes_only_what_differs(files: HostFiles) -> None:
    install.install(ENV, files)
    before = host(files, "opt/cni/bin/calico").stat().st_ino
    host(files, "opt/cni/bin/portmap").write_text("older")
    install.install(ENV, files)
    assert host(files, "opt/cni/bin/calico").stat().st_ino == before
    assert host(files, "opt/cni/bin/portmap").read_text() == "program portmap"


def test_plugins_can_be_left_out_or_left_alone(files: HostFiles) -> None:
    host(files, "opt/cni/bin/calico").write_text("the host's own")
    install.install({**ENV, "SKIP_CNI_BINARIES": "portmap,x", "UPDATE_CNI_BINARIES": "false"}, files)
    installed = contents(host(files, "opt/cni/bin"))
    assert installed == {"calico": "the host's own", "calico-ipam": "program calico"}


def test_a_host_with_plugins_of_its_own_needs_no_writable_folder(files: HostFiles, tmp_path: Path) -> None:
    os.rename(host(files, "opt/cni/bin"), tmp_path / "away")
    with pytest.raises(ConfigError, match="no writable folder"):
        install.install(ENV, files)
    assert contents(host(files, "etc")) == {}, "the runtime must not count on plugins that are not there"


def test_another_name_takes_the_place_of_the_old(files: HostFiles) -> None:
    install.install(ENV, files)
    install.install({**ENV, "CNI_CONF_NAME": "05-net.conflist"}, files)
    assert list(contents(host(files, "etc/cni/net.d"))) == ["05-net.conflist"]


def test_certificates_of_etcd_follow_the_secret(files: HostFiles, tmp_path: Path) -> None:
    secrets = tmp_path / "calico-secrets"
    secrets.mkdir()
    (secrets / "etcd-ca").write_text("CA")
    template = '{"ca": "__ETCD_CA_CERT_FILE__", "key": "__ETCD_KEY_FILE__"}'
    install.install({**ENV, "CNI_NETWORK_CONFIG": template}, files)
    written = contents(host(files, "etc/cni/net.d"))
    assert written["calico-tls/etcd-ca"] == "CA"
    assert json.loads(written["10-calico.conflist"]) == {
        "ca": "/etc/cni/net.d/calico-tls/etcd-ca",
        "key": "",
    }
    (secrets / "etcd-ca").write_text("CA 2")
    (secrets / "etcd-key").write_text("KEY")
    install.install_tls(files)
    written = contents(host(files, "etc/cni/net.d"))
    assert (written["calico-tls/etcd-ca"], written["calico-tls/etcd-key"]) == ("CA 2", "KEY")
    assert stat.S_IMODE(host(files, "etc/cni/net.d/calico-tls/etcd-key").stat().st_mode) == 0o600
    (secrets / "etcd-ca").unlink()
    install.install_tls(files)
    assert "calico-tls/etcd-ca" not in contents(host(files, "etc/cni/net.d"))


def test_what_was_installed_is_taken_away_and_nothing_else(files: HostFiles, tmp_path: Path) -> None:
    (tmp_path / "calico-secrets").mkdir()
    (tmp_path / "calico-secrets/etcd-ca").write_text("CA")
    install.install(ENV, files)
    host(files, "etc/cni/net.d/calico-kubeconfig").write_text("k")
    host(files, "etc/cni/net.d/20-other.conflist").write_text("{}")
    for _ in range(2):  # a second time there is nothing to do
        install.uninstall(ENV, files)
        assert contents(host(files, "etc/cni/net.d")) == {"20-other.conflist": "{}"}
        assert contents(host(files, "opt/cni/bin")) == {"portmap": "program portmap"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"CNI_CONF_NAME": "../x"},
        {"UPDATE_CNI_BINARIES": "perhaps"},
        {"CNI_NETWORK_CONFIG": "{"},
        {"CNI_NETWORK_CONFIG": "[]"},
        {"CNI_NETWORK_CONFIG_FILE": "/nowhere/at/all"},
    ],
)
def test_a_wrong_wish_leaves_no_configuration(files: HostFiles, wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        install.install({**ENV, **wrong}, files)
    assert contents(host(files, "etc")) == {}


def test_paths_that_are_not_absolute_are_refused() -> None:
    with pytest.raises(ConfigError, match="CNI_NET_DIR"):
        HostFiles.from_env({"CNI_NET_DIR": "etc"})


def test_the_runtimes_folder_is_below_host_or_where_the_host_has_it(tmp_path: Path) -> None:
    files = HostFiles.from_env({"CNI_NET_DIR": "/var/lib/cni"}, str(tmp_path))
    assert files.net_here == f"{tmp_path}/var/lib/cni"
    (tmp_path / "host/etc/cni/net.d").mkdir(parents=True)
    assert files.net_here == f"{tmp_path}/host/etc/cni/net.d"


# --- texts ----------------------------------------------------------------------------------------


def test_every_placeholder_is_filled_in() -> None:
    names = [*conflist._VARIABLES, *conflist.TLS_FILES.values(), "__KUBERNETES_NODE_NAME__"]
    names += ["__KUBECONFIG_FILEPATH__", "__SERVICEACCOUNT_TOKEN__"]
    env = {"ETCD_ENDPOINTS": "http://e:2379"}
    text = conflist.network_configuration(json.dumps({"all": names}), env, "n", "/d", [], "t")
    filled = json.loads(text)["all"]
    assert not set(names) & set(filled)
    assert {"http://e:2379", "n", "t", "/d/calico-kubeconfig"} <= set(filled)


@given(st.text())
def test_a_value_cannot_leave_its_text(value: str) -> None:
    env = {"KUBERNETES_NODE_NAME": value.replace("__", "")}
    text = conflist.network_configuration(conflist.TEMPLATE, {**env, "CNI_MTU": "1"}, "n", "/d", [])
    assert json.loads(text)["plugins"][0]["nodename"] == env["KUBERNETES_NODE_NAME"]


def test_an_error_shows_no_secret() -> None:
    with pytest.raises(ConfigError) as caught:
        conflist.network_configuration('{"a": "hunter2"', {}, "n", "/d", [])
    assert "hunter2" not in str(caught.value)


def test_the_kubeconfig_is_one_that_we_read(tmp_path: Path) -> None:
    path = tmp_path / "calico-kubeconfig"
    path.write_text(conflist.kubeconfig("https://10.96.0.1:443", b"PEM", "tok"))
    server = locate(DatastoreConfig(kubeconfig=str(path)), {})
    assert (server.url, server.ca_data, server.token) == ("https://10.96.0.1:443", b"PEM", "tok")
    insecure = yaml.safe_load(conflist.kubeconfig("https://x", b"", "tok", insecure=True))
    assert insecure["clusters"][0]["cluster"] == {"server": "https://x", "insecure-skip-tls-verify": True}


# --- the token ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "given", "expected"),
    [(86400.0, "", 21600.0), (86400.0, "10m", 600.0), (10.0, "", 5.0), (-100.0, "10m", 5.0)],
)
def test_a_token_is_replaced_in_time(left: float, given: str, expected: float) -> None:
    assert credential.rest(1000.0 + left, 1000.0, given, 0.0) == expected
    assert credential.rest(1000.0 + left, 1000.0, given, 1.0) == 2 * expected


def test_a_wrong_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="CNI_TOKEN_REFRESH_INTERVAL"):
        credential.rest(2000.0, 1000.0, "soon", 0.0)


def test_an_answer_without_a_token_is_no_token() -> None:
    for answer in (b"", b"[]", b'{"status": {}}', b'{"status": {"expirationTimestamp": "x", "token": "t"}}'):
        with pytest.raises(DatastoreUnreachable):
            credential._token(answer, "/p")
    status = {"expirationTimestamp": "1970-01-02T00:00:00Z", "token": "t"}
    assert credential._token(json.dumps({"status": status}).encode(), "/p") == credential.Token("t", 86400.0)


def test_only_a_pod_that_sees_the_folder_keeps_a_kubeconfig(files: HostFiles) -> None:
    assert not keeps_credential({}, files)
    os.makedirs(files.account)
    Path(files.account, "token").write_text("tok\n")
    assert keeps_credential({}, files)
    assert not keeps_credential({"CALICO_MANAGE_CNI": "false"}, files)
    os.rename(files.net_here, f"{files.net_here}.away")
    assert not keeps_credential({}, files)
