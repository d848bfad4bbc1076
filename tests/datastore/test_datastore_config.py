"""Where the datastore is: calicoctl's file and environment, and what hostile ones are told."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.core.errors import ConfigError
from tortie.datastore import config
from tortie.datastore.config import DatastoreConfig

pytestmark = pytest.mark.unit

ETCD = {"ETCD_ENDPOINTS": "http://127.0.0.1:2379"}


ENVELOPE = {"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig"}


def write(folder: Path, spec: Any, **top: Any) -> str:
    """A config file in JSON, which is YAML too."""
    return text(folder, json.dumps(ENVELOPE | {"spec": spec} | top))


def text(folder: Path, content: str | bytes) -> str:
    path = folder / "calicoctl.cfg"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def reason(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path, {})
    return caught.value.reason


# --- which source counts ------------------------------------------------------------------------


def test_a_file_that_exists_is_the_only_source(tmp_path: Path) -> None:
    path = write(tmp_path, {"etcdEndpoints": "http://file:2379"})
    loaded = config.load(path, {"ETCD_ENDPOINTS": "http://env:2379", "ETCD_USERNAME": "u"})
    assert loaded == DatastoreConfig(etcdEndpoints=("http://file:2379",))


def test_without_the_default_file_the_environment_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "none"))
    assert config.load(str(tmp_path / "none"), ETCD).etcdEndpoints == ("http://127.0.0.1:2379",)


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    assert reason(str(tmp_path / "no")) == f"Error reading config file: {tmp_path / 'no'}"
    assert reason(str(tmp_path)).startswith(f"Error reading config file: {tmp_path}: ")  # a folder


def test_an_empty_environment_means_kubernetes() -> None:
    assert config.from_env({}).type == "kubernetes"
    assert config.from_env(ETCD).type == "etcdv3"
    assert config.from_env({"ETCD_DISCOVERY_SRV": "x"}).type == "kubernetes"  # as in Calico
    assert config.from_env({**ETCD, "DATASTORE_TYPE": "kubernetes"}).type == "kubernetes"


def test_the_prefixed_variable_wins_even_if_it_is_empty() -> None:
    loaded = config.from_env({**ETCD, "CALICO_ETCD_ENDPOINTS": "http://prefixed:1"})
    assert loaded.etcdEndpoints == ("http://prefixed:1",)
    assert config.from_env({**ETCD, "CALICO_ETCD_ENDPOINTS": ""}).type == "kubernetes"


def test_every_variable_reaches_its_field() -> None:
    env = {
        "DATASTORE_TYPE": "etcdv3",
        "ETCD_ENDPOINTS": " http://a:1 ,https://b:2/,, ",
        "ETCD_USERNAME": "u",
        "ETCD_PASSWORD": "p",
        "ETCD_KEY_FILE": "k",
        "ETCD_CERT_FILE": "c",
        "ETCD_CA_CERT_FILE": "ca",
        "KUBECONFIG": "/a:/b",
        "K8S_API_ENDPOINT": "e",
        "K8S_KEY_FILE": "kk",
        "K8S_CERT_FILE": "kc",
        "K8S_CA_FILE": "kca",
        "CALICO_K8SAPITOKEN": "t",
        "K8S_INSECURE_SKIP_TLS_VERIFY": "true",
        "K8S_DISABLE_NODE_POLL": "1",
        "USE_POD_CIDR": "T",
        "K8S_CLIENT_QPS": "2.5",
        "K8S_CLIENT_BURST": "7",
        "K8S_CURRENT_CONTEXT": "cc",
        "CALICO_API_GROUP": "projectcalico.org/v3",
    }
    expected = DatastoreConfig(
        datastoreType="etcdv3",
        etcdEndpoints=("http://a:1", "https://b:2/"),
        etcdUsername="u",
        etcdPassword="p",
        etcdKeyFile="k",
        etcdCertFile="c",
        etcdCACertFile="ca",
        kubeconfig="/a:/b",
        k8sAPIEndpoint="e",
        k8sKeyFile="kk",
        k8sCertFile="kc",
        k8sCAFile="kca",
        k8sAPIToken="t",
        k8sInsecureSkipTLSVerify=True,
        k8sDisableNodePoll=True,
        usePodCIDR=True,
        k8sClientQPS=2.5,
        k8sClientBurst=7,
        k8sCurrentContext="cc",
        calicoAPIGroup="projectcalico.org/v3",
    )
    assert config.from_env(env) == expected
    prefixed = {name if name.startswith("CALICO_K8S") else f"CALICO_{name}": v for name, v in env.items()}
    assert config.from_env(prefixed | {"CALICO_API_GROUP": "other"}) == expected


def test_secrets_have_no_variable_and_are_not_shown() -> None:
    loaded = config.from_env({**ETCD, "ETCD_KEY": "s", "CALICO_ETCD_CERT": "s", "K8S_API_TOKEN": "s"})
    assert loaded == config.from_env(ETCD)
    secret = dict.fromkeys(("etcdPassword", "etcdKey", "kubeconfigInline", "k8sAPIToken"), "hush")
    assert "hush" not in repr(DatastoreConfig(**secret))  # type: ignore[arg-type]


def test_the_default_kubeconfig_is_used_if_it_exists(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert config.from_env(home).kubeconfig == ""
    usual = tmp_path / ".kube" / "config"
    usual.parent.mkdir()
    usual.touch()
    assert config.from_env(home).kubeconfig == str(usual)
    assert config.from_env({**home, "KUBECONFIG": "/other"}).kubeconfig == "/other"
    assert config.from_env({**home, "K8S_API_ENDPOINT": "https://x"}).kubeconfig == ""
    assert config.from_env({**home, **ETCD}).kubeconfig == ""
    assert config.load(write(tmp_path, {}), home).kubeconfig == str(usual)


# --- the file -----------------------------------------------------------------------------------


def test_a_file_in_yaml(tmp_path: Path) -> None:
    path = text(
        tmp_path,
        """
apiVersion: projectcalico.org/v3
kind: CalicoAPIConfig
metadata:
spec:
  datastoreType: "etcdv3"
  etcdEndpoints: "https://a:2379,https://[::1]:2380"
  etcdUsername: null
  etcdKey: |
    -----BEGIN
    x
  etcdCert: c
  etcdCACert: ca
  usePodCIDR: true
  k8sClientQPS: 5
""",
    )
    assert config.load(path, {}) == DatastoreConfig(
        datastoreType="etcdv3",
        etcdEndpoints=("https://a:2379", "https://[::1]:2380"),
        etcdKey="-----BEGIN\nx\n",
        etcdCert="c",
        etcdCACert="ca",
        usePodCIDR=True,
        k8sClientQPS=5,
    )


def test_a_file_is_read_strictly(tmp_path: Path) -> None:
    def wrapped(path: str, text: str) -> str:
        return f"syntax error in {path}: {text}"

    path = write(tmp_path, {}, apiVersion="v1")
    assert reason(path) == wrapped(path, "invalid config file: unknown APIVersion 'v1'")
    path = text(tmp_path, "kind: CalicoAPIConfig")
    assert reason(path) == wrapped(path, "invalid config file: unknown APIVersion ''")
    path = text(tmp_path, "")
    assert reason(path) == wrapped(path, "invalid config file: unknown APIVersion ''")
    path = write(tmp_path, {}, kind="Node")
    assert reason(path) == wrapped(path, "invalid config file: expected kind 'CalicoAPIConfig', got 'Node'")
    failed = "failed to parse config as YAML/JSON: "
    for content, cause in [
        ("kind: a\nkind: b", 'key "kind" already set in map'),
        ("[]", "not an object"),
        (json.dumps(ENVELOPE | {"specs": {}}), 'unknown field "specs"'),
        (json.dumps(ENVELOPE | {"spec": {"etcdEndpoint": "x"}}), 'unknown field "etcdEndpoint"'),
        (json.dumps(ENVELOPE | {"spec": [1]}), "spec is not an object"),
        (json.dumps(ENVELOPE | {"spec": "x"}), "spec is not an object"),
    ]:
        assert reason(text(tmp_path, content)) == wrapped(path, failed + cause)
    for content in (
        "a: [",
        "\t",
        b"\xff\xfe\x00",
        "a: 2026-99-99",
        "[" * 3000,
        "&a [*a]",
        "? [x]\n: y",
        "!!x y",
    ):
        said = reason(text(tmp_path, content))
        assert said.startswith(wrapped(path, "")) and "\n" not in said


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"etcdEndpoints": 5}, "etcdEndpoints = 5: expected a comma-separated list of URLs"),
        ({"etcdEndpoints": ["http://a:1", 5]}, "expected a comma-separated list of URLs"),
        ({"etcdUsername": 5}, "etcdUsername = 5: expected a string"),
        ({"etcdPassword": 12345}, "etcdPassword = '…': expected a string"),
        ({"k8sAPIToken": {"x": "hush"}}, "k8sAPIToken = '…': expected a string"),
        ({"usePodCIDR": "maybe"}, "usePodCIDR = 'maybe': expected true or false"),
        ({"usePodCIDR": []}, "expected true or false"),
        ({"k8sClientQPS": "fast"}, "k8sClientQPS = 'fast': expected a number"),
        ({"k8sClientQPS": "nan"}, "expected a number"),
        ({"k8sClientQPS": -1}, "expected a number"),
        ({"k8sClientBurst": 1e300}, "expected a number"),
        ({"k8sClientBurst": "inf"}, "expected a number"),
        ({"k8sClientBurst": True}, "expected a number"),
    ],
)
def test_a_wrong_type_is_named_without_secrets(tmp_path: Path, spec: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, spec), {})
    assert said in str(caught.value) and "hush" not in str(caught.value)


# --- what can be connected with -----------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://a:2379",
        "https://etcd-0.etcd.svc:2379/",
        "http://10.0.0.1:1",
        "https://[fd00::1]:65535",
        "http://a_b:2",
    ],
)
def test_endpoints(endpoint: str) -> None:
    assert config.from_env({"ETCD_ENDPOINTS": f" {endpoint} "}).etcdEndpoints == (endpoint,)


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:2379",
        "a",
        "http://",
        "http://a",
        "http://a:",
        "http://a:0",
        "http://a:65536",
        "http://a:２３７９",
        "http://:2379",
        "http://a:2379/v3",
        "http://a:2379?x",
        "http://u:p@a:2379",
        "http://fd00::1:2379",
        "ftp://a:2379",
        "HTTP://a:2379",
        "http://a b:2379",
        "http://a:2379\n",
        "http://a\x00:2379",
        "http://$(id):2379",
        "unix:///run/etcd.sock",
        "unix://localhost:2379",
    ],
)
def test_endpoints_that_cannot_be_dialled(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"expected http\[s\]://host:port"):
        config.check(DatastoreConfig(etcdEndpoints=("http://ok:1", endpoint)))


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"DATASTORE_TYPE": "mysql"}, "DATASTORE_TYPE = 'mysql': must be etcdv3 or kubernetes"),
        ({"CALICO_DATASTORE_TYPE": "etcdv3"}, "no etcd endpoints specified"),
        ({"DATASTORE_TYPE": "etcdv3", "ETCD_ENDPOINTS": " , "}, "ETCD_ENDPOINTS = '': no etcd endpoints"),
        ({"ETCD_ENDPOINTS": "http://a"}, "ETCD_ENDPOINTS = 'http://a': expected"),
        ({"CALICO_ETCD_ENDPOINTS": "unix:///x"}, "CALICO_ETCD_ENDPOINTS = 'unix:///x': unix sockets are not"),
        ({**ETCD, "ETCD_DISCOVERY_SRV": "x"}, 'use either "etcdEndpoints" or "etcdDiscoverySrv"'),
        (
            {"DATASTORE_TYPE": "etcdv3", "ETCD_DISCOVERY_SRV": "x"},
            "ETCD_DISCOVERY_SRV = 'x': is not available",
        ),
        ({**ETCD, "ETCD_CERT_FILE": "c"}, "etcdKeyFile and etcdCertFile must both be present"),
        ({**ETCD, "ETCD_KEY_FILE": "k"}, "etcdKeyFile and etcdCertFile must both be present"),
        ({"K8S_INSECURE_SKIP_TLS_VERIFY": "maybe"}, "K8S_INSECURE_SKIP_TLS_VERIFY = 'maybe'"),
        ({"CALICO_K8S_CLIENT_QPS": "x"}, "CALICO_K8S_CLIENT_QPS = 'x'"),
    ],
)
def test_the_variable_at_fault_is_named(env: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_env(env)
    assert said in str(caught.value)


def test_inline_certificates_and_files_do_not_mix(tmp_path: Path) -> None:
    spec = {"etcdEndpoints": "https://a:1", "etcdCert": "c", "etcdKey": "hush", "etcdCACertFile": "/ca"}
    with pytest.raises(
        ConfigError, match="Cannot mix inline certificate-key and certificate / key files"
    ) as err:
        config.load(write(tmp_path, spec), {})
    assert "hush" not in str(err.value)
    with pytest.raises(ConfigError, match="etcdKey and etcdCert must both be present"):
        config.load(write(tmp_path, {"etcdEndpoints": "https://a:1", "etcdCert": "c"}), {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([known.name for known in fields(DatastoreConfig)]) | st.text(max_size=10)


@given(spec=st.dictionaries(names, json_values, max_size=5))
def test_any_document_is_a_config_or_an_error(spec: dict[str, Any]) -> None:
    document = ENVELOPE | {"spec": spec}
    try:
        loaded = config.check(config.from_document(document, "f"))
    except ConfigError:
        return
    for endpoint in loaded.etcdEndpoints if loaded.type == "etcdv3" else ():
        assert endpoint.startswith("http") and endpoint.isprintable()


@given(
    env=st.dictionaries(
        st.sampled_from([n for v in config._VARIABLES.values() for n in v]), st.text(max_size=30)
    )
)
def test_any_environment_is_a_config_or_an_error(env: dict[str, str]) -> None:
    try:
        config.from_env(env)
    except ConfigError as err:
        assert any(name in str(err) for name in env) or "etcd" in str(err)
