"""IPPool, IPReservation, IPAMConfiguration, BlockAffinity: defaults and what is refused."""

import json
from typing import Any

import pytest

from tests.support.resources import problems, resource
from tortie.datastore import codec, validate
from tortie.datastore.validate.ippool import pool_read_defaults

pytestmark = pytest.mark.unit

V4, V6 = "10.1.0.0/16", "fd00:1::/64"
CIDR = "IPPool.Spec.CIDR"


def pool(cidr: str = V4, **spec: Any) -> dict[str, str]:
    return problems("IPPool", {"cidr": cidr, **spec})


def test_defaults() -> None:
    stored = json.loads(codec.encode(validate.with_defaults(resource("IPPool", {"cidr": V4}))))
    assert stored["spec"] == {
        "cidr": V4, "vxlanMode": "Never", "ipipMode": "Never", "blockSize": 26, "nodeSelector": "all()",
        "allowedUses": ["Workload", "Tunnel"], "assignmentMode": "Automatic",
    }  # fmt: skip
    six: Any = validate.with_defaults(resource("IPPool", {"cidr": V6, "blockSize": 0}))
    assert six.spec.blockSize == 122


def test_what_is_given_is_kept() -> None:
    given = {
        "cidr": V4, "vxlanMode": "Always", "blockSize": 28, "nodeSelector": "a == 'b'", "natOutgoing": True,
        "allowedUses": ["Workload"], "assignmentMode": "Manual", "disabled": True, "disableBGPExport": True,
    }  # fmt: skip
    filled: Any = validate.with_defaults(resource("IPPool", given))
    assert codec.to_plain(filled)["spec"] == given | {"ipipMode": "Never"}


def test_the_cidr_gets_its_canonical_form_but_is_never_masked_away() -> None:
    filled: Any = validate.with_defaults(resource("IPPool", {"cidr": "FD00:0001:0::/64"}))
    assert filled.spec.cidr == "fd00:1::/64"
    assert pool("10.1.0.1/16") == {CIDR: "IPPool CIDR is not strictly masked"}


def test_old_pools_read_as_if_complete() -> None:
    old: Any = pool_read_defaults(resource("IPPool", {"cidr": "10.1.0.0/16", "ipipMode": ""}))  # type: ignore[arg-type]
    assert (old.spec.ipipMode, old.spec.vxlanMode, old.spec.blockSize) == ("Never", "Never", 26)
    broken: Any = pool_read_defaults(resource("IPPool", {"cidr": "nonsense"}))  # type: ignore[arg-type]
    assert broken.spec.blockSize == 0


def test_what_an_old_calico_stored_passes_as_it_is() -> None:
    validate.check(resource("IPPool", {"cidr": V4, "ipipMode": "", "vxlanMode": "", "blockSize": 0}))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"blockSize": 20},
        {"blockSize": 32},
        {"cidr": V6, "blockSize": 116},
        {"cidr": V6, "blockSize": 128},
        {"cidr": "10.1.0.0/26"},
        {"cidr": "10.1.0.0/30", "disabled": True},
        {"cidr": "10.1.0.5/32", "blockSize": 32},
        {"ipipMode": "CrossSubnet", "vxlanMode": "Never"},
        {"allowedUses": ["LoadBalancer"]},
        {"allowedUses": ["Workload"], "namespaceSelector": "a == 'b'"},
        {"nodeSelector": "!all()"},
    ],
)
def test_legal_pools(spec: dict[str, Any]) -> None:
    assert problems("IPPool", {"cidr": V4} | spec) == {}


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        ({"cidr": ""}, CIDR, "must be specified"),
        ({"cidr": "10.1.0.0"}, CIDR, "must be a valid subnet"),
        ({"cidr": "10.1.0.0/33"}, CIDR, "must be a valid subnet"),
        ({"cidr": "10.1.0.0/255.255.0.0"}, CIDR, "must be a valid subnet"),
        ({"cidr": "10.1.0.0/16\n"}, CIDR, "must be a valid subnet"),
        ({"cidr": "10.1.0.0/16'; drop"}, CIDR, "must be a valid subnet"),
        ({"cidr": "x" * 10_000}, CIDR, "must be a valid subnet"),
        ({"cidr": "::ffff:10.0.0.0/112"}, CIDR, "must be a valid subnet"),
        ({"cidr": "10.1.2.0/16"}, CIDR, "not strictly masked"),
        ({"cidr": "169.254.3.0/24"}, CIDR, "link local range 169.254.0.0/16"),
        ({"cidr": "168.0.0.0/7"}, CIDR, "link local range 169.254.0.0/16"),
        ({"cidr": "fe80::/64"}, CIDR, "link local range fe80::/10"),
        ({"cidr": "10.1.0.0/27"}, CIDR, "too small"),
        ({"blockSize": 19}, "spec.blockSize", "between 20 and 32"),
        ({"blockSize": 33}, "spec.blockSize", "between 20 and 32"),
        ({"blockSize": -1}, "spec.blockSize", "between 20 and 32"),
        ({"blockSize": 2**62}, "spec.blockSize", "between 20 and 32"),
        ({"cidr": V6, "blockSize": 26}, "spec.blockSize", "between 116 and 128"),
        ({"ipipMode": "always"}, "spec.ipipMode", 'supported values: "Never", "Always", "CrossSubnet"'),
        ({"vxlanMode": "On\n"}, "spec.vxlanMode", "supported values"),
        ({"ipipMode": "Always", "vxlanMode": "CrossSubnet"}, "spec.ipipMode", "cannot both be enabled"),
        ({"cidr": V6, "ipipMode": "Always"}, "spec.ipipMode", "IPIP is not supported on IPv6 pools"),
        ({"nodeSelector": "a = 'b'"}, "spec.nodeSelector", "expected =="),
        ({"nodeSelector": "global()"}, "spec.nodeSelector", "global()"),
        ({"nodeSelector": "x" * 1025}, "spec.nodeSelector", "1024"),
        (
            {"namespaceSelector": "global()", "allowedUses": ["Workload"]},
            "spec.namespaceSelector",
            "global()",
        ),
        ({"namespaceSelector": "a == 'b'"}, "spec.namespaceSelector", "Tunnel"),
        ({"allowedUses": ["Workloads"]}, "spec.allowedUses[0]", "supported values"),
        ({"allowedUses": ["Tunnel", "Tunnel"]}, "spec.allowedUses[1]", "Duplicate"),
        ({"allowedUses": ["LoadBalancer", "Workload"]}, "spec.allowedUses", "cannot be combined"),
        ({"allowedUses": ["LoadBalancer"], "ipipMode": "Always"}, "spec.ipipMode", "LoadBalancer"),
        ({"allowedUses": ["LoadBalancer"], "vxlanMode": "Always"}, "spec.vxlanMode", "LoadBalancer"),
        ({"allowedUses": ["LoadBalancer"], "disableBGPExport": True}, "spec.disableBGPExport", "BGP export"),
        ({"allowedUses": ["LoadBalancer"], "nodeSelector": "has(a)"}, "spec.nodeSelector", "all()"),
        ({"assignmentMode": "Auto"}, "spec.assignmentMode", "supported values"),
    ],
)
def test_what_is_refused(spec: dict[str, Any], field: str, reason: str) -> None:
    found = problems("IPPool", {"cidr": V4} | spec)
    assert reason in found.get(field, f"only {found}")


def test_all_problems_are_named_at_once() -> None:
    assert set(pool("10.1.0.0/99", ipipMode="x", vxlanMode="y", nodeSelector="(")) == {
        CIDR, "spec.ipipMode", "spec.vxlanMode", "spec.nodeSelector",
    }  # fmt: skip


def test_reservations() -> None:
    assert problems("IPReservation", {"reservedCIDRs": ["10.0.0.1/32", "10.0.0.0/8", "fd00::/8"]}) == {}
    assert problems("IPReservation", {"reservedCIDRs": ["10.0.0.1"]}) == {}
    found = problems("IPReservation", {"reservedCIDRs": ["10.0.0.0/8", "10.0.0.0/8", "x", "10.0.0.1/"]})
    assert set(found) == {f"spec.reservedCIDRs[{index}]" for index in (1, 2, 3)}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"strictAffinity": True, "autoAllocateBlocks": True}, None),
        ({"maxBlocksPerHost": 1_000_000, "ipCooldownSeconds": 1200,
         "kubeVirtVMAddressPersistence": "Enabled"}, None),
        ({"maxBlocksPerHost": 1_000_001}, "spec.maxBlocksPerHost"),
        ({"maxBlocksPerHost": -1}, "spec.maxBlocksPerHost"),
        ({"ipCooldownSeconds": 1201}, "spec.ipCooldownSeconds"),
        ({"kubeVirtVMAddressPersistence": "On"}, "spec.kubeVirtVMAddressPersistence"),
    ],
)  # fmt: skip
def test_ipam_configuration(spec: dict[str, Any], field: str | None) -> None:
    assert list(problems("IPAMConfiguration", spec)) == ([field] if field else [])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, None),
        ({"state": ""}, None),
        ({"deleted": False}, None),
        ({"deleted": "false"}, None),
        ({"deleted": True}, "Spec.Deleted"),
        ({"deleted": "true"}, "Spec.Deleted"),
        ({"state": "claimed"}, "spec.state"),
        ({"cidr": "10.0.0.1/26"}, "spec.cidr"),
        ({"cidr": ""}, "spec.cidr"),
        ({"node": ""}, "spec.node"),
        ({"node": "a/b"}, "spec.node"),
        ({"type": "nobody"}, "spec.type"),
    ],
)
def test_block_affinities(change: dict[str, Any], field: str | None) -> None:
    spec = {"state": "confirmed", "node": "n1", "type": "host", "cidr": "10.0.0.0/26"} | change
    assert list(problems("BlockAffinity", spec)) == ([field] if field else [])
