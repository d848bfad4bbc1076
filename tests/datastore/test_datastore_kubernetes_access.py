"""Where the API server is and who we are: kubeconfigs, overrides, service accounts; and how fast we ask."""

import base64
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tortie.core.errors import ConfigError
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.kubernetes.identity import Identity
from tortie.datastore.kubernetes.kubeconfig import Server, locate
from tortie.datastore.kubernetes.limit import Bucket

pytestmark = pytest.mark.unit


def kubeconfig(**changes: Any) -> dict[str, Any]:
    """Of two clusters and users; `changes` are top-level fields."""
    ca = base64.b64encode(b"CA").decode()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "one", "user": "files"}},
            {"name": "two", "context": {"cluster": "two", "user": "token", "namespace": "x"}},
        ],
        "clusters": [
            {"name": "one", "cluster": {"server": "https://one:6443", "certificate-authority": "ca.crt"}},
            {"name": "two", "cluster": {"server": "https://two", "certificate-authority-data": ca,
                                        "tls-server-name": "kube"}},
        ],
        "users": [
            {"name": "files", "user": {"client-certificate": "/abs/c.crt", "client-key": "k.key"}},
            {"name": "token", "user": {"token": "secret"}},
        ],
        **changes,
    }  # fmt: skip


def found(documents: dict[str, Any], **config: Any) -> Server:
    texts = {path: yaml.safe_dump(document) for path, document in documents.items()}

    def read(path: str) -> str:
        if path not in texts:
            raise FileNotFoundError(path)
        return texts[path]

    return locate(DatastoreConfig(**({"kubeconfig": ":".join(documents)} | config)), {}, read)


def test_a_kubeconfig_names_files_beside_itself() -> None:
    assert found({"/etc/kube/config": kubeconfig()}) == Server(
        "https://one:6443", ca_file="/etc/kube/ca.crt", cert_file="/abs/c.crt", key_file="/etc/kube/k.key"
    )


def test_another_context() -> None:
    assert found({"/c": kubeconfig()}, k8sCurrentContext="two") == Server(
        "https://two", ca_data=b"CA", server_name="kube", token="secret"
    )


def test_of_several_files_the_first_that_says_something_counts() -> None:
    first = {"current-context": "two", "users": [{"name": "token", "user": {"tokenFile": "t"}}]}
    assert found({"/a/c": first, "/b/c": kubeconfig()}).token_file == "/a/t"
    assert found({"/b/c": kubeconfig()}, kubeconfig="/missing:/b/c").url == "https://one:6443"


def test_inline_counts_over_files_and_single_fields_over_both() -> None:
    inline = yaml.safe_dump(kubeconfig())
    server = found({"/c": kubeconfig(**{"current-context": "two"})}, kubeconfigInline=inline, k8sAPIToken="t")
    assert (server.url, server.token) == ("https://one:6443", "t")
    server = found({"/c": kubeconfig()}, k8sAPIEndpoint="https://x", k8sInsecureSkipTLSVerify=True)
    assert (server.url, server.insecure, server.ca_file) == ("https://x", True, "")


@pytest.mark.parametrize(
    "document, text",
    [
        (kubeconfig(**{"current-context": "three"}), "has no context 'three'"),
        (kubeconfig(clusters=[]), "has no cluster 'one'"),
        (kubeconfig(users=7), "users is not a list"),
        (kubeconfig(users=[{"name": "files", "user": {"exec": {"command": "aws"}}}]), "logs in by exec"),
        (kubeconfig(users=[{"name": "files", "user": {"token": 7}}]), "token is not a string"),
        (kubeconfig(users=[{"name": "files", "user": {"client-key-data": "?"}}]), "is not base64"),
        ([], "not an object"),
    ],
)
def test_wrong_kubeconfigs(document: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        found({"/c": document})


def test_a_missing_kubeconfig_is_named() -> None:
    with pytest.raises(ConfigError, match="/missing"):
        found({}, kubeconfig="/missing")


def test_in_a_pod() -> None:
    env = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    server = locate(DatastoreConfig(), env, account="/sa")
    assert server == Server("https://[fd00::1]:443", ca_file="/sa/ca.crt", token_file="/sa/token")
    with pytest.raises(ConfigError, match="no pod"):
        locate(DatastoreConfig(), {})


def test_no_secret_is_logged() -> None:
    shown = repr(Server("https://x", token="s3cret", password="s3cret", key_data=b"s3cret"))
    assert "s3cret" not in shown


def test_a_token_is_read_again_after_a_minute(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("a\n")
    identity = Identity(Server("https://x", token_file=str(path)))
    assert identity.authorization(100) == "Bearer a"
    path.write_text("b\n")
    assert identity.authorization(159) == "Bearer a"
    assert identity.authorization(161) == "Bearer b"
    path.write_text("evil\r\nX: y")
    assert identity.refused()
    with pytest.raises(ConfigError, match="holds no token"):
        identity.authorization(162)


def test_a_token_in_a_kubeconfig_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "calico-kubeconfig"

    def write(token: str) -> None:
        user = {"name": "token", "user": {"token": token}}
        path.write_text(yaml.safe_dump(kubeconfig(**{"current-context": "two", "users": [user]})))

    write("old")
    identity = Identity(locate(DatastoreConfig(kubeconfig=str(path)), {}))
    assert identity.authorization(100) == "Bearer old"
    write("new")
    assert identity.authorization(120) == "Bearer old"
    assert identity.authorization(161) == "Bearer new"
    write("newer")
    assert identity.refused()
    assert identity.authorization(162) == "Bearer newer"
    given = DatastoreConfig(kubeconfig=str(path), k8sAPIToken="given")
    assert not Identity(locate(given, {})).refused()


def test_a_fixed_token_and_a_password() -> None:
    assert Identity(Server("https://x", token="t")).authorization(0) == "Bearer t"
    assert not Identity(Server("https://x", token="t")).refused()
    assert Identity(Server("https://x", username="a", password="b")).authorization(0) == "Basic YTpi"
    assert Identity(Server("https://x")).authorization(0) == ""


def test_certificates_are_loaded_anew_when_they_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
             "-keyout", f"{tmp_path}/{name}.key", "-out", f"{tmp_path}/{name}.crt"],
            check=True, capture_output=True,
        )  # fmt: skip
    current = tmp_path / "ca.crt"
    current.write_bytes((tmp_path / "one.crt").read_bytes())
    key = (tmp_path / "one.key").read_bytes()
    server = Server("https://x", ca_file=str(current), cert_data=current.read_bytes(), key_data=key)
    identity = Identity(server)
    context = identity.tls()[0]
    assert identity.tls()[0] is context
    (tmp_path / "new").write_bytes((tmp_path / "two.crt").read_bytes())
    (tmp_path / "new").rename(current)
    renewed = identity.tls()[0]
    assert [ca["subject"] for ca in renewed.get_ca_certs()] == [((("commonName", "two"),),)]
    for wrong in (
        replace(server, ca_file=str(tmp_path / "one.key")),
        replace(server, key_data=b"x"),
        replace(server, ca_file="/missing"),
    ):
        with pytest.raises(ConfigError):
            Identity(wrong).tls()


# --- how fast -----------------------------------------------------------------------------------


@given(st.floats(0.5, 100), st.integers(1, 50), st.lists(st.floats(0, 2), min_size=1, max_size=60))
def test_no_more_requests_than_the_limit_in_any_time(rate: float, burst: int, pauses: list[float]) -> None:
    bucket, now, sent = Bucket(rate, burst), 1000.0, []
    for pause in pauses:
        now += pause
        sent.append(now + bucket.take(now))
    assert sent == sorted(sent)
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            assert last - first + 1 <= burst + rate * (sent[last] - sent[first]) + 1e-3


def test_a_burst_does_not_wait() -> None:
    bucket = Bucket(10, 3)
    assert [round(bucket.take(5.0), 3) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]


# --- what etcd's users do not pay for -----------------------------------------------------------


def test_the_etcd_path_imports_none_of_it() -> None:
    script = (
        "import sys, tortie.node.main, tortie.cni.server, tortie.felix.agent\n"
        "from tortie.datastore.config import DatastoreConfig\n"
        "from tortie.datastore.connect import connect\n"
        "connect(DatastoreConfig(etcdEndpoints=('http://127.0.0.1:1',)))\n"
        "print([name for name in sys.modules if name.startswith('tortie.datastore.kubernetes')])"
    )
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"
