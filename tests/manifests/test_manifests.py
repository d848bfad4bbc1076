"""What one applies: made from its sources, agreeing with what the programs read, taken by a server."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.kubernetes import ApiServer, programs
from tortie import __version__
from tortie.cni import conflist
from tortie.datastore import config
from tortie.datastore.felixparams.sources import from_environment
from tortie.datastore.felixparams.table import BY_LOWER_NAME
from tortie.lab.apiserver import ADMIN_TOKEN
from tortie.node import probe

ROOT = Path(__file__).parent.parent.parent
MANIFESTS = ROOT / "manifests"
FILES = ("calico-node.yaml", "calico-etcd.yaml", "calico-vxlan.yaml")

Document = dict[str, Any]


def documents(name: str, *kinds: str) -> list[Document]:
    found = yaml.load_all((MANIFESTS / name).read_text(), yaml.CSafeLoader)
    return [one for one in found if not kinds or one["kind"] in kinds]


def pod_specs(name: str) -> Iterator[Document]:
    for one in documents(name, "DaemonSet", "Deployment"):
        yield one["spec"]["template"]["spec"]


def containers(name: str) -> Iterator[Document]:
    for spec in pod_specs(name):
        yield from (*spec.get("initContainers", []), *spec["containers"])


def known_variables() -> set[str]:
    """Names of variables that some program asks for: they stand in the code as they are, or in parts."""
    code = "\n".join(path.read_text() for path in (ROOT / "tortie").rglob("*.py"))
    found = set(re.findall(r'"([A-Z][A-Z0-9_]+)"', code))
    found |= {name for names in config._VARIABLES.values() for name in names}
    endings = set(re.findall(r'f"\{prefix\}([A-Z_]+)"', code))  # of pools
    found.add("ENABLED_CONTROLLERS")  # kube-controllers'
    return found | {f"CALICO_IPV{version}POOL_{ending}" for version in (4, 6) for ending in endings}


# --- agreement with the programs ----------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("name", FILES)
def test_every_variable_is_one_that_is_read(name: str) -> None:
    known = known_variables()
    for container in containers(name):
        given = {one["name"]: one.get("value", "") for one in container["env"]}
        felix = {name for name in given if name.startswith("FELIX_")}
        assert given.keys() - felix - known == set(), container["name"]
        unknown = from_environment(dict.fromkeys(felix, "")).keys() - BY_LOWER_NAME.keys()
        assert unknown == set(), container["name"]


@pytest.mark.unit
@pytest.mark.parametrize("name", FILES)
def test_settings_and_volumes_that_are_named_exist_and_are_used(name: str) -> None:
    [settings] = documents(name, "ConfigMap")
    referred = {
        one["valueFrom"]["configMapKeyRef"]["key"]
        for container in containers(name)
        for one in container["env"]
        if "configMapKeyRef" in one.get("valueFrom", {})
    }
    assert referred == settings["data"].keys()
    for spec in pod_specs(name):
        mounted = {
            mount["name"]
            for container in (*spec.get("initContainers", []), *spec["containers"])
            for mount in container["volumeMounts"]
        }
        assert mounted == {volume["name"] for volume in spec["volumes"]}


@pytest.mark.unit
@pytest.mark.parametrize("name", FILES)
def test_programs_and_their_arguments_are_understood(name: str) -> None:
    scripts = re.findall(r'^([a-z-]+) = "tortie', (ROOT / "pyproject.toml").read_text(), re.M)
    for container in containers(name):
        assert container["image"] == f"tortie/calico:{__version__}"
        program, *arguments = container["command"]
        assert program in (*scripts, "/opt/cni/bin/install", "kube-controllers")
        assert arguments == []
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            program, *arguments = container.get(kind, {}).get("exec", {}).get("command", ["calico-node"])
            if program == "calico-node":
                assert probe._parse(arguments)[2] == ""


@pytest.mark.unit
@pytest.mark.parametrize("name", FILES)
def test_the_network_configuration_can_be_filled_in(name: str) -> None:
    [settings] = documents(name, "ConfigMap")
    template = settings["data"]["cni_network_config"]
    env = {"CNI_MTU": settings["data"]["veth_mtu"], "ETCD_ENDPOINTS": "http://e:2379"}
    text = conflist.network_configuration(template, env, "n1", "/etc/cni/net.d", ["etcd-ca"])
    assert "__" not in text
    if name != "calico-etcd.yaml":
        default = conflist.network_configuration(conflist.TEMPLATE, env, "n1", "/etc/cni/net.d", [])
        assert json.loads(text) == json.loads(default)


@pytest.mark.unit
@pytest.mark.parametrize("name", FILES)
def test_the_credential_is_where_both_the_host_and_the_server_find_it(name: str) -> None:
    """install-cni writes below /host; what the configuration names must be the same file in calico-node."""
    mounts = {
        container["name"]: {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        for container in containers(name)
    }
    paths = {
        volume["name"]: volume["hostPath"]["path"]
        for spec in pod_specs(name)
        for volume in spec["volumes"]
        if "hostPath" in volume
    }
    assert mounts["install-cni"]["cni-net-dir"] == "/host/etc/cni/net.d"
    for volume, path in mounts["calico-node"].items():
        assert path == paths.get(volume, path)


# --- rights -------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("name", FILES)
def test_nobody_may_read_secrets_or_everything(name: str) -> None:
    for role in documents(name, "ClusterRole", "Role"):
        for rule in role["rules"]:
            granted = {*rule["resources"], *rule["verbs"], *rule["apiGroups"]}
            assert not granted & {"secrets", "*"}, role["metadata"]["name"]


@pytest.mark.unit
@pytest.mark.parametrize("name", FILES)
def test_every_account_has_its_role(name: str) -> None:
    accounts = {one["metadata"]["name"] for one in documents(name, "ServiceAccount")}
    bound = {s["name"] for one in documents(name, "ClusterRoleBinding") for s in one["subjects"]}
    assert accounts == bound == {one["metadata"]["name"] for one in documents(name, "ClusterRole")}
    assert {spec["serviceAccountName"] for spec in pod_specs(name)} <= accounts


# --- sources ------------------------------------------------------------------------------------


@pytest.mark.unit
def test_the_image_has_neither_compiler_nor_package_lists() -> None:
    final = (MANIFESTS / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert "gcc" not in final
    assert "rm -rf /var/lib/apt/lists/*" in final
    for tool in ("iptables", "nftables", "ipset", "conntrack", "iproute2"):
        assert tool in final


@pytest.mark.kernel
def test_the_files_are_those_that_kustomize_makes(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    kubectl = programs("kubectl")
    path = f"{kubectl}:{os.environ['PATH']}"
    subprocess.run([tmp_path / "manifests" / "render"], check=True, env={**os.environ, "PATH": path})
    assert _contents(MANIFESTS) == _contents(tmp_path / "manifests")


def _contents(folder: Path) -> dict[Path, list[Any]]:
    """Documents of each file; in which order kubectl writes what has a name is its version's affair."""
    return {
        path.relative_to(folder): _ordered(list(yaml.load_all(path.read_text(), yaml.CSafeLoader)))
        for path in folder.rglob("*.yaml")
    }


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _ordered(each) for name, each in value.items()}
    if isinstance(value, list):
        return sorted(map(_ordered, value), key=lambda each: json.dumps(each, sort_keys=True))
    return value


@pytest.mark.kernel
@pytest.mark.parametrize("name", [*FILES, "uninstall.yaml"])
def test_a_server_accepts_it(name: str, apiserver: ApiServer, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(apiserver.kubeconfig(ADMIN_TOKEN))
    # Disruption budgets are v1 since Kubernetes 1.21 and nothing else since 1.25; the server is older.
    manifest = (
        (MANIFESTS / name).read_text().replace("apiVersion: policy/v1\n", "apiVersion: policy/v1beta1\n")
    )
    answer = subprocess.run(
        [programs("kubectl") / "kubectl", "--kubeconfig", kubeconfig, "apply", "--dry-run=server", "-f", "-"],
        input=manifest, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.splitlines()) == len(documents(name))


@pytest.mark.unit
def test_what_takes_cni_away_reaches_what_was_installed() -> None:
    [[uninstall, done]] = [list(containers("uninstall.yaml"))]
    install = next(one for one in containers("calico-node.yaml") if one["name"] == "install-cni")
    assert uninstall["command"] == [*install["command"], "uninstall"]
    assert uninstall["volumeMounts"] == install["volumeMounts"]
    assert {uninstall["image"], done["image"]} == {install["image"]}


# --- rights ---------------------------------------------------------------------------------------


def rights(name: str) -> dict[tuple[str, str], list[Document]]:
    """(kind, name of a role) -> its rules."""
    found = documents(name, "ClusterRole", "Role")
    return {(one["kind"], one["metadata"]["name"]): one["rules"] for one in found}


@pytest.mark.unit
@pytest.mark.parametrize("name", ["calico-node.yaml", "calico-vxlan.yaml"])
def test_what_is_applied_grants_what_is_proved(name: str) -> None:
    """The proofs are in test_datastore_kubernetes_rbac.py and test_controllers_kubernetes.py."""
    proved = rights("rbac.yaml") | rights("kube-controllers-rbac.yaml")
    copies = ("ClusterRole", "calico-kube-controllers-copies")
    assert rights(name) == {role: rules for role, rules in proved.items() if role != copies}
