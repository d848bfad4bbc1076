"""The small pure parts: patches, shapes, outcomes, node status, texts of ipam show."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.bgp.status import PeerStatus, Status
from tortie.calicoctl import gonumber, goscalar, ipamshow, manifest, nodestatus, outcome, strategicpatch
from tortie.calicoctl.errors import CommandError, friendly, printable
from tortie.calicoctl.outcome import Outcome
from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.types.ipam import AllocationAttribute, Block, IPAMConfig
from tortie.ipam.utilisation import PoolUsage, Usage

pytestmark = pytest.mark.unit


# --- strategic merge patch ----------------------------------------------------------------------------

ORIGINAL = {"a": 1, "m": {"x": 1, "y": 2}, "l": [1, 2, 3], "finalizers": ["one"]}


@pytest.mark.parametrize(
    ("patch", "result"),
    [
        ({}, ORIGINAL),
        ({"a": 2, "b": 3}, ORIGINAL | {"a": 2, "b": 3}),
        ({"a": None, "none": None}, {k: v for k, v in ORIGINAL.items() if k != "a"}),
        ({"m": {"x": None, "z": 3}}, ORIGINAL | {"m": {"y": 2, "z": 3}}),
        ({"m": None}, {k: v for k, v in ORIGINAL.items() if k != "m"}),
        ({"m": 3}, ORIGINAL | {"m": 3}),
        ({"a": {"b": {"c": None}}}, ORIGINAL | {"a": {"b": {}}}),
        ({"l": [4]}, ORIGINAL | {"l": [4]}),
        ({"m": {"$patch": "replace", "z": 1}}, ORIGINAL | {"m": {"z": 1}}),
        ({"m": {"$patch": "delete"}}, ORIGINAL | {"m": {}}),
        ({"m": {"$patch": "merge", "z": 1}}, ORIGINAL | {"m": {"x": 1, "y": 2, "z": 1}}),
        ({"m": {"$retainKeys": ["y", "z"], "z": 1}}, ORIGINAL | {"m": {"y": 2, "z": 1}}),
        ({"$deleteFromPrimitiveList/l": [2]}, ORIGINAL | {"l": [1, 3]}),
        ({"$setElementOrder/l": [3, 2, 1]}, ORIGINAL),
        ({"finalizers": ["two", "one"]}, ORIGINAL | {"finalizers": ["one", "two"]}),
    ],
)
def test_patch(patch: dict[str, Any], result: dict[str, Any]) -> None:
    before = repr(ORIGINAL)
    assert strategicpatch.merged(ORIGINAL, patch) == result
    assert repr(ORIGINAL) == before


@pytest.mark.parametrize(
    "patch", [[], 3, None, {"$patch": "x"}, {"$retainKeys": 1}, {"$deleteFromPrimitiveList/l": 1}]
)
def test_bad_patches(patch: Any) -> None:
    with pytest.raises(ValueError):
        strategicpatch.merged(ORIGINAL, patch)


# --- shapes -------------------------------------------------------------------------------------------


def spec_of(kind: str, spec: Any) -> Any:
    document = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": "x"}, "spec": spec}
    (resource,) = manifest.from_document(document)
    return getattr(resource, "spec")  # noqa: B009 - of any kind


def test_names_in_any_case_and_scalars_as_text() -> None:
    pool = spec_of(
        "IPPool", {"CIDR": "10.0.0.0/24", "natoutgoing": True, "nodeSelector": True, "blocksize": 26.0}
    )
    assert (pool.cidr, pool.natOutgoing, pool.nodeSelector, pool.blockSize) == (
        "10.0.0.0/24",
        True,
        "true",
        26,
    )
    profile = spec_of("Profile", {"labelsToApply": {"a": 7, "b": 1.10, "c": False, "d": "x"}})
    assert profile.labelsToApply == {"a": "7", "b": "1.1", "c": "false", "d": "x"}
    rules = spec_of(
        "GlobalNetworkPolicy",
        {"Ingress": [{"Action": "Allow", "protocol": 6, "DESTINATION": {"Ports": [80]}}]},
    )
    assert rules.ingress[0].destination.ports == (80,) and rules.ingress[0].protocol == 6
    assert spec_of("FelixConfiguration", {"BPFENABLED": True}) == {"bpfEnabled": True}
    labels = {"matchLabels": {"a": 7}, "matchExpressions": [{"key": "b", "operator": "In", "values": [True]}]}
    staged = spec_of("StagedKubernetesNetworkPolicy", {"podSelector": labels})
    assert staged.podSelector.matchLabels == {"a": "7"}
    assert staged.podSelector.matchExpressions[0].values == ("true",)
    node = {"hostEndpoint": {"templates": [{"labels": {"a": 7}}]}}
    configuration = spec_of("KubeControllersConfiguration", {"controllers": {"node": node}})
    assert configuration.controllers.node.hostEndpoint.templates[0].labels == {"a": "7"}


@pytest.mark.parametrize(
    ("kind", "spec", "field"),
    [
        ("IPPool", {"foo": 1}, "foo"),
        ("Node", {"bgp": {"asnum": 1}}, "asnum"),
        (
            "GlobalNetworkPolicy",
            {"ingress": [{"action": "Allow"}, {"source": {"nets": [], "net": 1}}]},
            "net",
        ),
        ("FelixConfiguration", {"bpfEnable": True}, "bpfEnable"),
        ("KubeControllersConfiguration", {"controllers": {"nodes": {}}}, "nodes"),
        ("StagedKubernetesNetworkPolicy", {"ingress": [{"from": [{"podSelektor": {}}]}]}, "podSelektor"),
    ],
)
def test_unknown_fields(kind: str, spec: Any, field: str) -> None:
    with pytest.raises(CommandError) as refused:
        spec_of(kind, spec)
    assert (
        friendly(str(refused.value))
        == f"field in document is not recognized or is in the wrong location: {field}"
    )


# --- outcomes -----------------------------------------------------------------------------------------

NONE = ResourceDoesNotExist("X(y)")


def test_outcomes_of_mixed_kinds() -> None:
    assert outcome.written(Outcome("", 3, 3), "create")[0] == "Successfully created 3 resource(s)\n"
    assert str(outcome.written(Outcome("", 2, 0, [NONE, NONE]), "apply")[1]).startswith(
        "failed to apply any resources: [resource does not exist: X(y) with error: <nil> resource"
    )
    text, error = outcome.written(Outcome("", 5, 4, [NONE]), "validate")
    assert text == "Partial success: validated the first 4 out of 5 resources:\n"
    assert str(error) == f"hit error: [{NONE}]"
    # As in Calico, the line is printed when more went well than went wrong.
    assert outcome.written(Outcome("", 2, 1, [NONE]), "validate")[0] == ""
    assert outcome.deleted(Outcome("", 2, 1, [NONE]))[0] == "Successfully deleted 1 resource(s)\n"
    assert str(outcome.deleted(Outcome("", 1, 0, [NONE]))[1]) == f"Failed to delete resource: {NONE}\n"
    assert outcome.replaced(Outcome("", 2, 2))[0] == "Successfully replaced 2 resource(s)\n"


# --- numbers and words --------------------------------------------------------------------------------


@given(st.floats(allow_nan=False))
def test_floats_read_back(number: float) -> None:
    text = gonumber.format_float(number)
    assert float(text) == number


@given(st.text(alphabet="0123456789abcdefxob_.+-eE:~yYnNofOFtrue", max_size=10))
def test_a_word_that_needs_no_quotes_is_text(word: str) -> None:
    if not goscalar.needs_quotes(word):
        assert goscalar.resolve(word) == word


@given(st.text())
def test_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text, keep="\n").replace("\n", "").isprintable()
    if text.isprintable():
        assert printable(text) == text


# --- node status --------------------------------------------------------------------------------------

NOW = 1_800_000_000.0


def peer(address: str, **fields: Any) -> PeerStatus:
    given = {
        "type": "node-to-node mesh", "family": 6 if ":" in address else 4, "port": 0, "state": "up",
        "since": NOW - 60, "bgp_state": "Established", "info": "Established",
    }  # fmt: skip
    return PeerStatus(address=address, **(given | fields))


def test_sessions_of_both_families() -> None:
    found = Status(
        started=0, updated=0,
        peers=(
            peer("172.17.8.102"),
            peer(
                "10.0.0.3", port=1790, type="global", state="start",
                since=NOW - 90_000, info="Active Socket: refused\x1b",
            ),
            peer("fd00::1", port=179, type="node specific"),
        ),
    )  # fmt: skip
    clock = time.strftime("%H:%M:%S", time.localtime(NOW - 60))
    day = time.strftime("%Y-%m-%d", time.localtime(NOW - 90_000))
    assert (
        nodestatus.text(found, NOW)
        == f"""
IPv4 BGP status
+---------------+-------------------+-------+------------+----------------------------+
| PEER ADDRESS  | PEER TYPE         | STATE | SINCE      | INFO                       |
+---------------+-------------------+-------+------------+----------------------------+
| 172.17.8.102  | node-to-node mesh | up    | {clock}   | Established                |
| 10.0.0.3:1790 | global            | start | {day} | Active Socket: refused\\x1b |
+---------------+-------------------+-------+------------+----------------------------+

IPv6 BGP status
+--------------+---------------+-------+----------+-------------+
| PEER ADDRESS | PEER TYPE     | STATE | SINCE    | INFO        |
+--------------+---------------+-------+----------+-------------+
| fd00::1      | node specific | up    | {clock} | Established |
+--------------+---------------+-------+----------+-------------+

"""
    )


def test_no_sessions_and_no_agent() -> None:
    nothing = Status(started=0, updated=0)
    assert nodestatus.text(nothing, NOW) == (
        "\nIPv4 BGP status\nNo IPv4 peers found.\n\nIPv6 BGP status\nNo IPv6 peers found.\n\n"
    )
    assert nodestatus.text(None, NOW) == "\nThe BGP backend process (BIRD) is not running.\n\n"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("calico-felix", True),
        ("calico-node -felix", True),
        ("/usr/bin/calico-node", True),
        ("/usr/bin/python3 /usr/local/bin/calico-node", True),
        ("python3 -m tortie.node.main -felix", True),
        ("calico component felix", True),
        ("/usr/bin/calico component confd", False),
        ("bird -R", False),
        ("grep calico-felix", False),
        ("vi notes about calico-node", False),
        ("", False),
    ],
)
def test_which_processes_are_a_node(command: str, expected: bool) -> None:
    assert nodestatus.is_node(command.split(" ")) is expected


# --- ipam show ----------------------------------------------------------------------------------------


def usage(cidr: str, total: int, in_use: int, reserved: int, free: int) -> Usage:
    return Usage(cidr=cidr, total=total, in_use=in_use, reserved=reserved, free=free)


def test_usage_rounds_as_calico_does() -> None:
    huge = 2**63 - 1
    pools = [
        PoolUsage(
            None, usage("192.168.0.0/16", 65536, 5, 0, 65531), (usage("192.168.0.0/26", 64, 5, 0, 59),)
        ),
        PoolUsage(None, usage("fd00::/48", huge, 0, 0, huge), ()),
        PoolUsage(None, None, (usage("10.0.0.0/30", 4, 1, 1, 2),)),
    ]
    assert (
        ipamshow.usage(pools, with_blocks=True)
        == """\
+----------+----------------+------------+------------+--------------+-------------------+
| GROUPING | CIDR           |  IPS TOTAL | IPS IN USE | IPS RESERVED |          IPS FREE |
+----------+----------------+------------+------------+--------------+-------------------+
| IP Pool  | 192.168.0.0/16 |      65536 |     5 (0%) |       0 (0%) |      65531 (100%) |
| Block    | 192.168.0.0/26 |         64 |     5 (8%) |       0 (0%) |          59 (92%) |
| IP Pool  | fd00::/48      | 9.2234e+18 |     0 (0%) |       0 (0%) | 9.2234e+18 (100%) |
| Block    | 10.0.0.0/30    |          4 |    1 (25%) |      1 (25%) |           2 (50%) |
+----------+----------------+------------+------------+--------------+-------------------+
""".replace("|  IPS TOTAL |", "| IPS TOTAL  |").replace("|          IPS FREE |", "| IPS FREE          |")
    )
    assert "IP Pool" in ipamshow.usage(pools, with_blocks=False)
    assert "Block" not in ipamshow.usage(pools, with_blocks=False)


def test_who_has_an_address() -> None:
    attribute = AllocationAttribute(handle_id="h\x1b", secondary={"pod": "p", "node": "n"})
    assert ipamshow.assignment("10.0.0.1", attribute) == (
        "IP 10.0.0.1 is in use\nHandle ID: h\\x1b\nActive Owner Attributes:\n  node: n\n  pod: p\n"
    )
    assert ipamshow.assignment("10.0.0.1", AllocationAttribute(alternateOwnerAttrs={"pod": "q"})) == (
        "IP 10.0.0.1 is in use\nHandle ID: <none>\nNo Active Owner attributes defined\n"
        "Alternate Owner Attributes:\n  pod: q\n"
    )


def test_borrowed_addresses() -> None:
    attributes = (
        AllocationAttribute(handle_id="own", secondary={"node": "n1"}),
        AllocationAttribute(handle_id="pod", secondary={"node": "n2", "pod": "p", "namespace": "ns"}),
        AllocationAttribute(
            handle_id="vm", secondary={"node": "n2", "pod": "p", "namespace": "ns", "vmi-name": "v"}
        ),
        AllocationAttribute(handle_id="tunnel", secondary={"node": "n3", "type": "ipipTunnelAddress"}),
        AllocationAttribute(handle_id="old"),
        AllocationAttribute(releasedAt="2026-01-01T00:00:00Z"),
    )
    block = Block(
        cidr="10.0.0.0/29",
        affinity="host:n1",
        allocations=(0, 1, 2, 3, 4, 5, None, None),
        attributes=attributes,
    )
    orphan = Block(cidr="10.0.0.8/29", allocations=(0, *[None] * 7), attributes=attributes[:1])
    assert (
        ipamshow.borrowed([block, orphan])
        == """\
+----------+----------------+-------------+-------------+-------------------+--------------+
| IP       | BORROWING-NODE | BLOCK       | BLOCK OWNER | TYPE              | ALLOCATED-TO |
+----------+----------------+-------------+-------------+-------------------+--------------+
| 10.0.0.1 | n2             | 10.0.0.0/29 | n1          | pod               | ns/p         |
| 10.0.0.2 | n2             | 10.0.0.0/29 | n1          | vmi               | ns/v         |
| 10.0.0.3 | n3             | 10.0.0.0/29 | n1          | ipipTunnelAddress |              |
| 10.0.0.8 | n1             | 10.0.0.8/29 |             |                   |              |
+----------+----------------+-------------+-------------+-------------------+--------------+

Note: found 1 IP allocations without an explicit node association. Unable to determine if they are borrowed.
"""
    )
    assert "Note" not in ipamshow.borrowed([orphan])


def test_configuration() -> None:
    rows = ipamshow.configuration(IPAMConfig(strict_affinity=True, maxBlocksPerHost=3)).splitlines()
    assert [row.split()[1:4:2] for row in rows[3:-1]] == [
        ["StrictAffinity", "true"],
        ["AutoAllocateBlocks", "false"],
        ["MaxBlocksPerHost", "3"],
        ["KubeVirtVMAddressPersistence", "<nil>"],
        ["IPCooldownSeconds", "0"],
    ]
