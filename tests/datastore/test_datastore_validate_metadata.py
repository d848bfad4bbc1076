"""Names, namespaces, labels and annotations of every kind."""

from typing import Any

import pytest

from tests.support.resources import problems
from tortie.datastore.kinds import KINDS

pytestmark = pytest.mark.unit

GOOD: dict[str, dict[str, Any]] = {  # kind -> a spec without which nothing of the kind is legal
    "IPPool": {"cidr": "10.0.0.0/16"},
    "HostEndpoint": {"node": "n", "interfaceName": "*"},
    "BlockAffinity": {"node": "n", "cidr": "10.0.0.0/26"},
    "CalicoNodeStatus": {"node": "n", "classes": ["BGP"], "updatePeriodSeconds": 10},
    "WorkloadEndpoint": {
        "orchestrator": "k8s", "node": "n", "pod": "p", "endpoint": "eth0", "interfaceName": "cali1",
    },
}  # fmt: skip
HOSTILE_NAMES = [
    "", "A", "a_b", "a b", "a\n", "a\x00", "../x", "a/b", "a//b", ".", "..", "-a", "a-", "a..b", "'", '"',
    "ü", "١", "x" * 254, "x" * 10_000, "a{b}", "$a", "a;b", "a\ud7ffb",
]  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_minimal_object_of_every_kind_is_legal(kind: str) -> None:
    assert problems(kind, GOOD.get(kind)) == {}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_hostile_names_are_refused_for_every_kind(kind: str) -> None:
    for name in HOSTILE_NAMES:
        if name or kind != "WorkloadEndpoint":  # which gets its name from its spec
            found = problems(kind, GOOD.get(kind), name=name)
            assert "Metadata.Name" in found, (kind, name)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_namespaces(kind: str) -> None:
    for namespace in ["a/b", "A", "x" * 254, "a\n"]:
        assert "Metadata.Namespace" in problems(kind, GOOD.get(kind), namespace=namespace)
    missing = problems(kind, GOOD.get(kind), namespace="")
    assert ("Metadata.Namespace" in missing) == KINDS[kind].namespaced
    legal = problems(kind, GOOD.get(kind), namespace="kube-system")
    assert ("Metadata.Namespace" in legal) != KINDS[kind].namespaced


@pytest.mark.parametrize(
    ("kind", "legal", "illegal"),
    [
        ("IPPool", ["a.b.c", "a" * 253], ["a_b"]),
        ("NetworkPolicy", ["a", "tier.a", "knp.default.a.b.c", "ossg.default.x"], ["a.b.c", "knp.default."]),
        ("StagedNetworkPolicy", ["a", "tier.a", "knp.default.a.b"], ["a.b.c"]),
        ("GlobalNetworkPolicy", ["a", "tier.a"], ["a.b.c", "knp.default.a"]),
        ("StagedGlobalNetworkPolicy", ["a", "tier.a"], ["a.b.c"]),
        ("StagedKubernetesNetworkPolicy", ["a.b.c"], ["A"]),
        ("Tier", ["a", "a" * 63], ["a.b", "a" * 64]),
        ("IPAMConfiguration", ["default"], ["other", "default.x"]),
        ("ClusterInformation", ["default"], ["other"]),
        ("KubeControllersConfiguration", ["default"], ["other"]),
        ("BGPConfiguration", ["default", "node.n1", "node.n1.example.org"], ["other", "node.", "node"]),
        ("FelixConfiguration", ["default", "node.n1", "free"], ["a_b"]),
    ],
)
def test_the_names_that_each_kind_takes(kind: str, legal: list[str], illegal: list[str]) -> None:
    assert [name for name in legal if "Metadata.Name" in problems(kind, name=name)] == []
    assert [name for name in illegal if "Metadata.Name" not in problems(kind, name=name)] == []


def test_reasons_are_calicos() -> None:
    assert problems("Tier", name="a" * 65) == {"Metadata.Name": "name is too long by 2 bytes"}
    assert problems("IPPool", GOOD["IPPool"], name="A")["Metadata.Name"] == (
        "name must consist of lower case alphanumeric characters, '-' or '.' (regex: "
        r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)"
    )
    assert problems("IPPool", GOOD["IPPool"], name="", generateName="p-") == {
        "Metadata.Name": "field must be set for a Create request (GenerateName is not supported)"
    }
    assert problems("NetworkSet", namespace="")["Metadata.Namespace"] == (
        "namespace is not specified on namespaced resource"
    )


@pytest.mark.parametrize(
    ("labels", "field"),
    [
        ({"a": "b", "projectcalico.org/x": "", "pcns.kubernetes.io/name": "A_b.c"}, None),
        ({"a" * 63: "b" * 63}, None),
        ({"a/b/c": "d"}, "Metadata.Labels (label)"),
        ({"": "d"}, "Metadata.Labels (label)"),
        ({"a\n": "d"}, "Metadata.Labels (label)"),
        ({"a" * 64: "d"}, "Metadata.Labels (label)"),
        ({"a": "b" * 64}, "Metadata.Labels (value)"),
        ({"a": "b c"}, "Metadata.Labels (value)"),
        ({"a": "b\n"}, "Metadata.Labels (value)"),
        ({"a": "'"}, "Metadata.Labels (value)"),
        ({"a": "-"}, "Metadata.Labels (value)"),
    ],
)
def test_labels(labels: dict[str, str], field: str | None) -> None:
    assert list(problems("IPPool", GOOD["IPPool"], labels=labels)) == ([field] if field else [])


@pytest.mark.parametrize(
    ("annotations", "wrong"),
    [
        ({"a.b/C": "any {text}\nin several lines"}, False),
        ({"UPPER.example.org/x": ""}, False),  # keys are compared in lower case
        ({"a b": ""}, True),
        ({"a": "x" * 262_143}, False),
        ({"a": "x" * 262_144}, True),
        ({"a": "ü" * 131_072}, True),  # bytes count, not characters
    ],
)
def test_annotations(annotations: dict[str, str], wrong: bool) -> None:
    found = problems("IPPool", GOOD["IPPool"], annotations=annotations)
    assert list(found) == (["Metadata.Annotations (key)"] if wrong else [])


@pytest.mark.parametrize("kind", ["NetworkSet", "GlobalNetworkSet"])
def test_sets_may_not_carry_the_label_of_namespaces(kind: str) -> None:
    labels = {"projectcalico.org/namespace": "x"}
    assert problems(kind, labels=labels) == {
        "Metadata.Labels (label)": "projectcalico.org/namespace is not a valid label name"
    }
    assert problems("IPPool", GOOD["IPPool"], labels=labels) == {}


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"creationTimestamp": "2026-03-01T08:00:00Z", "uid": "7a0c5f0e-2f61-4c1e-9d55-0c1de1b7a001"}, None),
        ({"creationTimestamp": "yesterday"}, "Metadata.CreationTimestamp"),
        ({"deletionTimestamp": "2026-03-01T08:00:00Z\n"}, "Metadata.DeletionTimestamp"),
        ({"uid": "a\nb"}, "Metadata.UID"),
        ({"generateName": "x" * 300}, "Metadata.GenerateName"),
    ],
)
def test_other_metadata(metadata: dict[str, Any], field: str | None) -> None:
    assert list(problems("IPPool", GOOD["IPPool"], **metadata)) == ([field] if field else [])
