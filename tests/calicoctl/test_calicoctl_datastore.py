"""Commands against a real etcd: what is stored, what cannot be read, what stands in the way."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.calicoctl.conftest import Ctl
from tests.calicoctl.test_calicoctl_runbook import RUNBOOKS, read
from tests.support.etcd import Etcd
from tortie.calicoctl import kinds, operations
from tortie.datastore import config
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.connect import connect
from tortie.datastore.keys import AffinityList
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import Owner
from tortie.ipam.requests import AutoAssign

pytestmark = pytest.mark.kernel

PREFIX = "/calico/resources/v3/projectcalico.org/"
ALL_KINDS = read(next(path for path in RUNBOOKS if path.stem == "kinds")).files["all.yaml"]
POOL = """apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.0.0.0/24, blockSize: 28}
"""


def with_client(etcd: Etcd, work: Any) -> Any:
    """Run `await work(client)` against the datastore."""

    async def whole() -> Any:
        client = connect(DatastoreConfig(etcdEndpoints=(etcd.endpoint,)))
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(whole())


# --- round trips ------------------------------------------------------------------------------------


def stored(etcd: Etcd) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in etcd.entries(PREFIX).items()}


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_what_get_prints_can_be_applied_and_replaced_without_a_change(
    ctl: Ctl, etcd: Etcd, form: str
) -> None:
    def done(verb: str, text: str) -> str:
        result = ctl.run(verb, "-f", "-", stdin=text)
        useless = "kind: IPAMConfiguration" in text.replace('"', "")  # with etcd
        assert (result.code, "has no effect" in result.err) == (0, useless), result
        return result.out

    done("apply", ALL_KINDS)
    before = stored(etcd)
    for managed in kinds.MANAGED.values():
        if managed.name == "ClusterInformation":
            continue
        everywhere = ["-A"] if managed.namespaced else []
        text = ctl.ok("get", managed.name, *everywhere, "-o", form)
        if managed.name == "Profile":  # the built-in profile is shown, but nobody may write it
            text = ctl.ok("get", "profile", "pro1", "-o", form)
        assert done("apply", text).startswith("Successfully applied")
        text = ctl.ok("get", managed.name, *everywhere, "-o", form) if managed.name != "Profile" else ""
        if text:
            assert done("replace", text).startswith("Successfully replaced")
    assert stored(etcd) == before


def test_a_wrong_value_is_refused_by_name_and_changes_nothing(ctl: Ctl, etcd: Etcd) -> None:
    ctl.ok("apply", "-f", "-", stdin=POOL)
    before = etcd.entries(PREFIX)
    text = ctl.ok("get", "ippool", "pool", "-o", "yaml")
    for old, new, field in [
        ("ipipMode: Never", "ipipMode: Sometimes", "spec.ipipMode"),
        ("cidr: 10.0.0.0/24", "cidr: 10.0.9.0/24", "IPPool.Spec.CIDR"),
        ("blockSize: 28", "blockSize: 27", "IPPool.Spec.BlockSize"),
        ("blockSize: 28", "blockSize: many", "IPPool.spec.blockSize"),
        ("blockSize: 28", "blocksPerNode: 28", "blocksPerNode"),
        ("nodeSelector: all()", "nodeSelector: all(", "nodeSelector"),
        ("name: pool", "name: Pool!", "Pool!"),
    ]:
        assert old in text
        for verb in ("apply", "replace"):
            result = ctl.run(verb, "-f", "-", stdin=text.replace(old, new))
            assert result.code == 1 and field in result.err and result.out == "", (verb, new, result)
    assert etcd.entries(PREFIX) == before


def test_unknown_stored_fields_survive_patch_and_label(ctl: Ctl, etcd: Etcd) -> None:
    ctl.ok("apply", "-f", "-", stdin=POOL)
    key = PREFIX + "ippools/pool"
    value = json.loads(etcd.entries(key)[key])
    value["spec"]["fromTheFuture"] = {"a": 1}
    etcd.put(key, json.dumps(value))
    assert "fromTheFuture" not in ctl.ok("get", "ippool", "pool", "-o", "yaml")
    ctl.ok("label", "ippool", "pool", "a=b")
    ctl.ok("patch", "ippool", "pool", "-p", '{"spec":{"natOutgoing":true}}')
    spec = json.loads(etcd.entries(key)[key])["spec"]
    assert spec["fromTheFuture"] == {"a": 1} and spec["natOutgoing"] is True


# --- what cannot be read ----------------------------------------------------------------------------


def test_unreadable_entries_are_told_and_the_others_shown(ctl: Ctl, etcd: Etcd) -> None:
    ctl.ok("apply", "-f", "-", stdin=POOL)
    etcd.put(PREFIX + "ippools/broken", "{not json")
    etcd.put(PREFIX + "ippools/wrong", '{"kind":"IPPool","spec":{"blockSize":"x\\u001b[31m"}}')
    etcd.put(PREFIX + "ippools/odd\x1b[31m", '{"kind":"IPPool","spec":3}')
    result = ctl.run("get", "ippools")
    assert result.code == 0
    assert result.out == "NAME   CIDR          SELECTOR   \npool   10.0.0.0/24   all()      \n\n"
    lines = result.err.splitlines()
    assert [line.split(" cannot be read: ")[0] for line in lines] == [
        f"Warning: {PREFIX}ippools/broken",
        f"Warning: {PREFIX}ippools/odd\\x1b[31m",
        f"Warning: {PREFIX}ippools/wrong",
    ]
    assert all(line.isprintable() for line in lines) and "IPPool.spec.blockSize" in lines[2]
    assert "pool" in ctl.run("get", "ippools", "-o", "yaml").out
    refused = ctl.run("get", "ippool", "broken")
    assert refused.code == 1 and "malformed JSON" in refused.err
    assert ctl.ok("delete", "tier", "kube-admin-x", "-s")


@pytest.mark.parametrize("verb", ["apply", "replace"])
def test_what_is_unreadable_can_be_written_anew(ctl: Ctl, etcd: Etcd, verb: str) -> None:
    etcd.put(PREFIX + "ippools/broken", "{not json")
    manifest = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": "broken"},
        "spec": {"cidr": "10.9.0.0/99"},
    }
    refused = ctl.run(verb, "-f", "-", stdin=json.dumps(manifest))
    assert refused.code == 1 and etcd.entries(PREFIX + "ippools/")[PREFIX + "ippools/broken"] == b"{not json"
    manifest["spec"] = {"cidr": "10.9.0.0/24"}
    ctl.ok(verb, "-f", "-", stdin=json.dumps(manifest))
    stored = json.loads(ctl.ok("get", "ippool", "broken", "-o", "json"))
    assert stored["spec"]["cidr"] == "10.9.0.0/24" and stored["metadata"]["uid"]


@pytest.mark.parametrize(
    "value",
    ["{}", "{not json", '{"spec":3}', '{"spec":{"cidr":"x"}}', '{"spec":{"cidr":"x","disabled":true}}'],
)
@pytest.mark.parametrize("kind", ["ippool", "node", "tier"])
def test_what_is_unreadable_or_invalid_can_still_be_deleted(
    ctl: Ctl, etcd: Etcd, kind: str, value: str
) -> None:
    etcd.put(f"{PREFIX}{kind}s/broken", value)
    assert ctl.ok("delete", kind, "broken").startswith("Successfully deleted 1")
    assert f"{PREFIX}{kind}s/broken" not in etcd.entries(PREFIX)


@pytest.mark.parametrize("labels", [[1], {"a": []}, "x", {"a": {"b": "c"}}])
def test_a_selector_of_any_shape_stops_no_table(ctl: Ctl, etcd: Etcd, labels: Any) -> None:
    spec = {"podSelector": {"matchLabels": labels, "matchExpressions": "x"}}
    etcd.put(PREFIX + "stagedkubernetesnetworkpolicies/default/odd", json.dumps({"spec": spec}))
    result = ctl.run("get", "sknp", "-A", "-o", "wide")
    assert (result.code, result.out) == (0, "NAMESPACE   NAME   PODSELECTOR   \n\n")
    assert "default/odd cannot be read: error with field StagedKubernetesNetworkPolicy.spec" in result.err


def test_tiers_are_shown_by_order(ctl: Ctl, etcd: Etcd) -> None:
    tiers = {
        "a": '{"order":2e6}',
        "b": '{"order":20}',
        "c": '{"order":-1.5}',
        "d-none": "{}",
        "e": '{"order":3}',
    }
    for name, spec in tiers.items():
        etcd.put(f"{PREFIX}tiers/{name}", f'{{"kind":"Tier","spec":{spec}}}')
    rows = [row.split() for row in ctl.ok("get", "tiers").splitlines()[1:-1]]
    assert rows == [["c", "-1.5"], ["e", "3"], ["b", "20"], ["d-none", "1e+06"], ["a", "2e+06"]]


def test_hostile_values_reach_the_terminal_as_text(ctl: Ctl, etcd: Etcd) -> None:
    hostile = "all()\x1b]0;owned\x07\nNAME\tx\u202e"
    value = {
        "kind": "IPPool",
        "apiVersion": "projectcalico.org/v3",
        "spec": {"cidr": "10.0.0.0/8", "nodeSelector": hostile},
    }
    etcd.put(PREFIX + "ippools/a", json.dumps(value))
    for form in (
        "ps",
        "wide",
        "yaml",
        "json",
        "go-template={{range .}}{{range .Items}}{{.Spec}}{{end}}{{end}}",
    ):
        out = ctl.run("get", "ippools", "-o", form).out
        assert "owned" in out and "\x1b" not in out and "\x07" not in out and "\t" not in out
    rows = ctl.run("get", "ippools").out.splitlines()
    assert len(rows) == 3 and rows[1].rstrip().endswith(r"all()\x1b]0;owned\x07\nNAME\tx\u202e")


# --- writes -----------------------------------------------------------------------------------------


def test_replace_without_a_revision_tries_again_after_a_conflict(
    ctl: Ctl, etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that always gets ahead ends the tries; one that does so twice does not."""
    ctl.ok("apply", "-f", "-", stdin=POOL)
    key = PREFIX + "ippools/pool"
    monkeypatch.setattr(operations, "_UPDATE_PAUSE", 0.0)
    real = Client.update
    meddled: list[int] = []

    async def meddling(self: Client, resource: Any) -> Any:
        if len(meddled) < limit and resource.KIND == "IPPool":
            meddled.append(etcd.put(key, etcd.entries(key)[key]))
        return await real(self, resource)

    monkeypatch.setattr(Client, "update", meddling)
    limit = 2
    assert ctl.ok("replace", "-f", "-", stdin=POOL) == "Successfully replaced 1 'IPPool' resource(s)\n"
    limit, meddled[:] = 100, []
    result = ctl.run("apply", "-f", "-", stdin=POOL)
    assert result.err == "failed to apply 'IPPool' resource: [update conflict: IPPool(pool)]\n"
    assert len(meddled) == 5


def test_deleting_a_pool_releases_its_blocks(ctl: Ctl, etcd: Etcd) -> None:
    ctl.ok("apply", "-f", "-", stdin=POOL)

    async def assign(client: Client) -> list[str]:
        await client.create(Node(metadata=ObjectMeta(name="n1")))
        allocator = Allocator(client, "n1")
        request = AutoAssign(
            use="Workload", num4=2, handle="h", attributes={"node": "n1", "pod": "p", "namespace": "ns"}
        )
        assigned = await allocator.auto_assign(request)
        await allocator.claim_affinity("10.0.0.64/28", Owner("n2"))
        assigned.require_all()
        assert assigned.v4 is not None
        return [address.partition("/")[0] for address in assigned.v4.addresses]

    first, second = with_client(etcd, assign)
    assert ctl.ok("ipam", "show", "--ip", first) == (
        f"IP {first} is in use\nHandle ID: h\nActive Owner Attributes:\n"
        "  namespace: ns\n  node: n1\n  pod: p\n"
    )
    table = ctl.ok("ipam", "show", "--show-blocks").splitlines()
    assert [row.split("|")[1].strip() for row in table[3:-1]] == ["IP Pool", "Block", "Block"]
    assert table[3].split("|")[3:7] == ["       256 ", "     2 (1%) ", "       0 (0%) ", " 254 (99%) "]
    assert ctl.ok("delete", "ippool", "pool") == "Successfully deleted 1 'IPPool' resource(s)\n"
    assert with_client(etcd, lambda client: client.backend.list(AffinityList())).items == []
    assert ctl.ok("ipam", "show", "--ip", second) == f"{second} is not assigned\n"
    orphan = ctl.ok("ipam", "show", "--show-blocks").splitlines()
    assert len(orphan) == 5 and orphan[3].split()[1] == "Block"
    borrowed = ctl.ok("ipam", "show", "--show-borrowed").splitlines()
    assert [row.split("|")[1].strip() for row in borrowed[3:-1]] == [first, second]


def test_deleting_a_node_releases_what_is_its_own(ctl: Ctl, etcd: Etcd) -> None:
    ctl.ok("apply", "-f", "-", stdin=POOL)

    async def prepare(client: Client) -> None:
        await client.create(Node(metadata=ObjectMeta(name="n1")))
        await Allocator(client, "n1").claim_affinity("10.0.0.0/28")

    with_client(etcd, prepare)
    assert ctl.ok("delete", "node", "n1") == "Successfully deleted 1 'Node' resource(s)\n"
    assert with_client(etcd, lambda client: client.backend.list(AffinityList())).items == []


# --- the way to the datastore -----------------------------------------------------------------------


def test_first_write_makes_the_datastore_ready(ctl: Ctl, etcd: Etcd) -> None:
    ctl.ok("get", "nodes")
    assert etcd.entries() == {}
    ctl.ok("apply", "-f", "-", stdin=POOL)
    assert {key.removeprefix(PREFIX) for key in etcd.entries(PREFIX)} == {
        "clusterinformations/default",
        "ippools/pool",
        "tiers/default",
        "tiers/kube-admin",
        "tiers/kube-baseline",
    }


def test_another_version_of_the_cluster_needs_to_be_allowed(ctl: Ctl, etcd: Etcd) -> None:
    ctl.ok("apply", "-f", "-", stdin=POOL)
    key = PREFIX + "clusterinformations/default"
    value = json.loads(etcd.entries(key)[key])

    def set_version(version: str) -> None:
        value["spec"]["calicoVersion"] = version
        etcd.put(key, json.dumps(value))

    for version in ("", "v3.33.0", "3.33.0", "v3.33.0-12-gabcdef"):
        set_version(version)
        ctl.ok("get", "nodes")
    set_version("v3.29.1-rc1")
    told = (
        "version mismatch.\nClient Version:   v3.33.0\nCluster Version:  3.29.1\n"
        "Use --allow-version-mismatch to override\n"
    )
    refused = {
        ("get", "nodes"): "failed to get resources: " + told,
        ("label", "node", "n", "a=b"): "failed to get node n, error " + told,
        ("apply", "-f", "-"): told,
        ("delete", "node", "x"): told,
        ("patch", "node", "x", "-p", "{}"): told,
        ("ipam", "show"): told,
    }
    for line, error in refused.items():
        result = ctl.run(*line, stdin=POOL)
        assert (result.code, result.out, result.err) == (1, "", error), line
    ctl.ok("get", "nodes", "--allow-version-mismatch")
    ctl.ok("--allow-version-mismatch", "ipam", "show")
    ctl.ok("validate", "-f", "-", stdin=POOL)
    assert "Cluster Version:   v3.29.1-rc1\n" in ctl.ok("version")


def test_version(ctl: Ctl, etcd: Etcd) -> None:
    head = "Client Version:    v3.33.0\nGit commit:        unknown\n"
    assert ctl.ok("version", "--client") == head
    result = ctl.run("version")
    assert (result.code, result.out) == (1, head)
    assert result.err == (
        "unable to retrieve Cluster Version or Type: "
        "resource does not exist: ClusterInformation(default) with error: <nil>\n"
    )
    ctl.ok("apply", "-f", "-", stdin=POOL)
    assert ctl.ok("version") == head + "Cluster Version:   unknown\nCluster Type:      unknown\n"
    nowhere = ctl.run("version", env={"DATASTORE_TYPE": "etcdv3"})
    assert (nowhere.code, nowhere.out) == (0, head + "Unable to detect installed Calico version\n")


def test_a_datastore_that_does_not_answer(offline: Ctl) -> None:
    result = offline.run("get", "nodes")
    assert result.code == 1 and result.out == ""
    first, last = result.err.splitlines()
    assert first.startswith(
        "failed to get resources: unable to get Cluster Information to verify version mismatch: "
    )
    assert last == "Use --allow-version-mismatch to override"
    result = offline.run("get", "nodes", "--allow-version-mismatch")
    assert result.code == 1 and "127.0.0.1:1" in result.err


def test_a_configuration_that_is_no_good(ctl: Ctl, tmp_path: Path) -> None:
    result = ctl.run("get", "nodes", env={"DATASTORE_TYPE": "etcdv3"})
    assert (result.code, result.err) == (1, "")
    assert result.out.startswith("Failed to create Calico API client: etcdEndpoints = ''")
    path = tmp_path / "calicoctl.cfg"
    path.write_text("apiVersion: v1\nkind: CalicoAPIConfig\n")
    result = ctl.run("get", "nodes", "-c", str(path))
    assert (result.code, result.err, result.out) == (
        1, "",
        "Failed to create Calico API client: "
        f"syntax error in {path}: invalid config file: unknown APIVersion 'v1'\n",
    )  # fmt: skip


def test_a_configuration_file_counts_alone(ctl: Ctl, etcd: Etcd, tmp_path: Path) -> None:
    path = tmp_path / "calicoctl.cfg"
    path.write_text(
        "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\n"
        f"spec:\n  datastoreType: etcdv3\n  etcdEndpoints: {etcd.endpoint}\n"
    )
    elsewhere = {"CALICO_ETCD_ENDPOINTS": "http://127.0.0.1:1", "DATASTORE_TYPE": "nonsense"}
    result = ctl.run("get", "nodes", "-c", str(path), env=elsewhere)
    assert (result.code, result.err, result.out) == (0, "", "NAME   \n\n")
    result = ctl.run(
        "get", "nodes", env={"CALICO_ETCD_ENDPOINTS": etcd.endpoint, "ETCD_ENDPOINTS": "http://127.0.0.1:1"}
    )
    assert (result.code, result.out) == (0, "NAME   \n\n")


def test_the_context_reaches_the_configuration(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = config.load

    def load(path: str, env: Mapping[str, str]) -> DatastoreConfig:
        seen.append(env.get("K8S_CURRENT_CONTEXT", ""))
        return real(path, env)

    monkeypatch.setattr(config, "load", load)
    ctl.ok("--context", "one", "get", "nodes")
    ctl.ok("get", "nodes", "--context=two")
    ctl.ok("get", "nodes")
    assert seen == ["one", "two", ""]
