"""What a report may release is judged by what is so now; Services are asked about through kubectl."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.calicoctl.conftest import Ctl
from tests.ipam.test_ipam_audit import block, books
from tortie.calicoctl import ipambooks, ipamrelease
from tortie.ipam import block as blocks
from tortie.ipam.audit import Use
from tortie.ipam.block import ReleaseRequest

unit = pytest.mark.unit
kernel = pytest.mark.kernel


@unit
def test_only_the_same_allocation_that_nobody_uses_by_now_is_released() -> None:
    three = block("a", "b", "c")
    numbers = [blocks.sequence_number(three, ordinal) for ordinal in range(3)]
    present = ipamrelease.now(books(three, uses=[Use("10.0.0.1", "Workload(shop/late)")]))
    same, used = ReleaseRequest("10.0.0.0", "a", numbers[0]), ReleaseRequest("10.0.0.1", "b", numbers[1])
    other = ReleaseRequest("10.0.0.2", "c", numbers[2] + 1)
    free = ReleaseRequest("10.0.0.5", "d", 1)
    assert ipamrelease.still_leaked([same, used, other, free], present) == ([same], 2, 1)
    assert present.handles == {"a", "b", "c"}


def service(name: str = "web", ip: str = "", annotations: Any = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"type": "LoadBalancer"} | spec,
        "status": {"loadBalancer": {"ingress": [{"ip": ip}] if ip else [{"hostname": "x"}]}},
    }


@unit
@pytest.mark.parametrize(
    ("one", "all_services", "requested_only"),
    [
        (service(), True, False),
        (service(type="ClusterIP"), False, False),
        (service(loadBalancerClass="calico"), True, True),
        (service(loadBalancerClass="metallb"), False, False),
        (service(loadBalancerClass="metallb", loadBalancerIP="192.0.2.1"), False, False),
        (service(loadBalancerIP="192.0.2.1"), True, True),
        (service(annotations={"projectcalico.org/ipv4pools": "[]"}), True, True),
        (service(annotations={"other": "x"}), True, False),
    ],
)
def test_which_services_are_ours(one: dict[str, Any], all_services: bool, requested_only: bool) -> None:
    assert ipambooks.is_ours(one, "AllServices") is all_services
    assert ipambooks.is_ours(one, "RequestedServicesOnly") is requested_only


CLUSTER = """apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: lb}
spec: {cidr: 192.0.2.0/29, blockSize: 29, allowedUses: [LoadBalancer]}
---
apiVersion: projectcalico.org/v3
kind: KubeControllersConfiguration
metadata: {name: default}
spec: {controllers: {loadBalancer: {assignIPs: AllServices}}}
"""
BLOCK = {
    "cidr": "192.0.2.0/29", "affinity": "virtual:load-balancer", "sequenceNumber": 5, "deleted": False,
    "allocations": [0, 1, None, None, None, None, None, None], "unallocated": [2, 3, 4, 5, 6, 7],
    "attributes": [{"handle_id": "lb-a", "secondary": {"service": "web"}}, {"handle_id": "lb-b"}],
    "sequenceNumberForAllocation": {"0": 4, "1": 4},
}  # fmt: skip


@kernel
def test_addresses_of_services_are_known_by_kubectl_and_taken_for_used_without(
    ctl: Ctl, etcd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctl.ok("apply", "-f", "-", stdin=CLUSTER)
    etcd.put("/calico/ipam/v2/assignment/ipv4/block/192.0.2.0-29", json.dumps(BLOCK))
    state = json.dumps({"state": "confirmed", "deleted": False})
    etcd.put("/calico/ipam/v2/virtual/load-balancer/ipv4/block/192.0.2.0-29", state)
    for handle in ("lb-a", "lb-b"):
        value = {"block": {"192.0.2.0/29": 1}, "deleted": False}
        etcd.put(f"/calico/ipam/v2/handle/{handle}", json.dumps(value))
    out = ctl.ok("ipam", "check")
    assert "No kubeconfig given, skipping service check\n" in out
    assert out.endswith("Check complete; found 0 problems.\n")
    (tmp_path / "services.json").write_text(json.dumps({"items": [service(ip="192.0.2.0")]}))
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\n[ "$2" = kube.cfg ] && cat {tmp_path}/services.json\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    out = ctl.ok("ipam", "check", "--kubeconfig", "kube.cfg", "--show-problem-ips")
    assert "Found 1 service load balancer(s).\n" in out
    assert "  192.0.2.1 leaked; attrs Main:lb-b Extra:\n" in out
    refused = ctl.run("ipam", "check", "--kubeconfig", "other.cfg")
    assert (refused.code, refused.out) == (1, "") and refused.err.startswith("failed to list services")


@kernel
@pytest.mark.parametrize("fixture", ["ctl", "kube_ctl"])
def test_70_a_report_of_another_cluster_or_of_old_is_refused_and_only_a_missing_lock_can_be_forced(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    on: Ctl = request.getfixturevalue(fixture)
    path = tmp_path / "report.json"
    on.ok("apply", "-f", "-", stdin=CLUSTER)
    on.ok("ipam", "check", "-o", str(path))
    release = ("ipam", "release", "--from-report", str(path))

    def refused(*more: str) -> str:
        result = on.run(*release, *more)
        assert result.code == 1 and "Releas" not in result.out
        return result.err

    assert "data store is not locked" in refused()
    forced = on.ok(*release, "--force")
    assert forced.startswith("WARNING: Data store is not locked. Ignoring due to --force option\n")
    on.ok("datastore", "migrate", "lock")
    for more in ((), ("--force",)):
        assert "the provided reports are all stale" in refused(*more)
    on.ok("ipam", "check", "-o", str(path))
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"version": "v0.0.1"}))
    assert "was produced using a different version (v0.0.1)" in refused()
    path.write_text(json.dumps(report | {"clusterGUID": "0" * 32}))
    for more in ((), ("--force",)):
        assert "mismatched cluster GUID" in refused(*more)
    path.write_text(json.dumps(report))
    assert on.ok(*release).endswith("You may now unlock the data store.\n")
