"""Commands about hosts and the whole cluster: what they judge, what they collect, what they start."""

import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.calicoctl.conftest import Ctl
from tortie.calicoctl import checksystem, clusterplan, nodediags
from tortie.calicoctl.checksystem import MODULES, Kernel

unit = pytest.mark.unit
kernel = pytest.mark.kernel

ALL = frozenset(module.name.replace("-", "_") for module in MODULES)


# --- node checksystem -------------------------------------------------------------------------------


@unit
def test_a_kernel_with_everything_is_good_enough() -> None:
    text, complete = checksystem.report(Kernel("6.1.0-18-amd64", ALL, ()))
    assert complete
    assert text.startswith(
        "Checking kernel version...\n\t\t6.1.0-18-amd64      \t\t\t\t\tOK\nChecking kernel modules...\n"
        "\t\tip_set              \t\t\t\t\tOK\n"
    )
    assert text.endswith("System meets minimum system requirements to run Calico!\n")


@unit
@pytest.mark.parametrize(
    ("lacking", "result", "complete"),
    [
        ("ip_set", "\t\tip_set              \t\t\t\t\tFAIL\n", False),
        ("xt_u32", "\t\txt_u32              \t\t\t\t\tSKIP\n", True),
    ],
)
def test_only_what_is_needed_fails(lacking: str, result: str, complete: bool) -> None:
    text, found = checksystem.report(Kernel("6.1", ALL - {lacking}, ()))
    assert (result in text, found) == (True, complete)


@unit
@pytest.mark.parametrize(
    ("modules", "options"),
    [({"ipt_ipvs"}, ()), ({"xt_ipvs"}, ()), ((), {"CONFIG_NETFILTER_XT_MATCH_IPVS"})],
)
def test_another_module_or_the_configuration_will_do(modules: Any, options: Any) -> None:
    wanted = next(module for module in MODULES if module.name == "ipt_ipvs")
    assert checksystem.has(Kernel("6.1", modules, options), wanted)
    assert not checksystem.has(Kernel("6.1", (), ()), wanted)


@unit
@pytest.mark.parametrize(
    ("release", "good"), [("2.6.24", True), ("2.6.23-x", False), ("10.0", True), ("", False)]
)
def test_the_oldest_kernel_is_the_first_with_namespaces(release: str, good: bool) -> None:
    assert checksystem.report(Kernel(release, ALL, ()))[1] is good


@unit
def test_what_files_of_the_kernel_say() -> None:
    lines = ["kernel/net/xt_set.ko.zst: kernel/net/ip_set.ko.zst", "kernel/vfio/vfio-pci.ko", "no module"]
    assert checksystem.module_names(lines) == {"xt_set", "vfio_pci"}
    options = ["CONFIG_IP_SET=m", "CONFIG_BPF=y", "# CONFIG_VFIO is not set", "CONFIG_HZ=250"]
    assert checksystem.options_set(options) == {"CONFIG_IP_SET", "CONFIG_BPF"}


# --- node diags -------------------------------------------------------------------------------------


@unit
def test_names_of_containers_become_files_and_nothing_else() -> None:
    listing = "calico-node: 2026\nk8s_POD_calico: 2026\n../../etc/cron.d/x: 2026\n-rf: 2026\n\n"
    assert nodediags.container_names(listing) == ["calico-node"]


@kernel
def test_node_diags_makes_one_archive(ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # it remembers the directory of an earlier call
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "felix.log").write_text("hello\n")
    (logs / "shadow").symlink_to("/etc/shadow")
    os.mkfifo(logs / "pipe")
    out = ctl.ok("node", "diags", "--log-dir", str(logs))
    saved = re.search(r"^Diags saved to (.*/diags-\d{8}_\d{6}\.tar\.gz)$", out, re.MULTILINE)
    assert saved and out.startswith("Collecting diagnostics\nUsing temp dir: ")
    with tarfile.open(saved[1]) as archive:
        names = set(archive.getnames())
        assert archive.getmember("diagnostics/logs/shadow").issym()
    wanted = {"ipv4_route", "nft_ruleset", "ipv4_tables", "ipsets", "logs/felix.log", "date"}
    assert {f"diagnostics/{name}" for name in wanted} <= names
    assert "diagnostics/logs/pipe" not in names


# --- cluster diags ----------------------------------------------------------------------------------

KUBECTL = """#!/bin/sh
case "$*" in
*"get secret node-certs -n calico-system"*) echo '{"metadata":{"name":"x","annotations":{"a":"SECRET"}},
    "data":{"tls.key":"SECRET","tls.crt":"CERT"}}' ;;
"get nodes -o json") echo '{"items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}' ;;
"get namespaces -o json") echo '{"items":[{"metadata":{"name":"calico-system"}}]}' ;;
"get daemonsets,"*) echo '{"items":[{"metadata":{"name":"calico-node","namespace":"calico-system"},
    "spec":{"selector":{"matchLabels":{"app":"node"}}}}]}' ;;
"get pods -n calico-system -o json") echo '{"items":[
    {"metadata":{"name":"calico-node-1","namespace":"calico-system","labels":{"app":"node"}},
     "spec":{"nodeName":"a"},"status":{"containerStatuses":[{"name":"calico-node","restartCount":1}]}}]}' ;;
"get customresourcedefinitions -o json") echo '{"items":[{"metadata":{"name":"ippools.crd.projectcalico.org"},
    "spec":{"versions":[{"name":"v1","storage":true}]}}]}' ;;
"logs "*) echo a log ;;
*" ls "*) echo cni.log; echo ../../evil ;;
*"-c calico-node -- "*) echo from the node ;;
*"get ippools.v1.crd"*) echo the pools ;;
*) echo "not found" >&2; exit 1 ;;
esac
"""


@kernel
def test_cluster_diags_makes_one_archive_without_secrets(
    ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    result = ctl.run("cluster", "diags", "--since", "1h", "--focus-nodes", "b,a")
    assert (result.code, result.err) == (0, "")
    made = re.search(r"^Diagnostic bundle created at \./(calico-diagnostics-\S+)\.tar\.gz$", result.out, re.M)
    assert made
    with tarfile.open(f"{made[1]}.tar.gz") as archive:
        contents = {
            name.removeprefix(f"{made[1]}/"): (file.read() if (file := archive.extractfile(name)) else b"")
            for name in archive.getnames()
        }
    assert b"SECRET" not in b"".join(contents.values())
    assert b"CERT" in contents["tls/calico-system_node-certs.yaml"]
    pod = "nodes/a/calico-system/calico-node-1"
    assert contents[f"{pod}.log"] == contents[f"{pod}.calico-node.previous.log"] == b"a log\n"
    assert contents["nodes/a/ip-rule.txt"] == contents["nodes/a/cni.log.log"] == b"from the node\n"
    assert contents["cluster/crd/ippools.crd.projectcalico.org.yaml"] == b"the pools\n"
    assert contents["links/calico-system/calico-node-1.log"] == b"a log\n"
    assert not any("evil" in name for name in contents)


@kernel
def test_cluster_diags_needs_kubectl(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ctl.run("cluster", "diags").err == "missing dependency: unable to locate kubectl in PATH\n"


@unit
def test_no_more_pods_than_wanted_those_of_the_nodes_in_focus_first() -> None:
    pods = [
        {"metadata": {"name": f"p-{node}", "labels": {"app": "x"}}, "spec": {"nodeName": node}}
        for node in ("a", "b", "c")
    ]
    workload = {
        "metadata": {"namespace": "calico-system", "name": "x"},
        "spec": {"selector": {"matchLabels": {"app": "x"}}},
    }
    nodes = clusterplan.node_order(("c",), [{"metadata": {"name": name}} for name in "abc"])
    chosen = clusterplan.chosen_pods([workload], pods, nodes, 2)
    assert [pod["metadata"]["name"] for pod in chosen] == ["p-c", "p-a"]
    assert clusterplan.chosen_pods([workload], pods, nodes, 0) == []
