"""ClusterInformation and KubeControllersConfiguration."""

from typing import Any

import pytest

from tests.support.resources import problems, resource
from tortie.datastore import validate

pytestmark = pytest.mark.unit

TEMPLATE = {"generateName": "all", "interfacePattern": "eth.*"}


def test_cluster_information() -> None:
    spec = {
        "clusterGUID": "0123abc",
        "clusterType": "k8s,bgp",
        "calicoVersion": "v3.33.0",
        "variant": "Calico",
    }
    assert problems("ClusterInformation", spec | {"datastoreReady": False}) == {}
    assert list(problems("ClusterInformation", {"clusterType": "a\nb"})) == ["spec.clusterType"]


def test_controllers_defaults() -> None:
    bare: Any = validate.with_defaults(resource("KubeControllersConfiguration", {}))
    assert bare.spec == {"healthChecks": "Enabled", "prometheusMetricsPort": 9094, "controllers": {}}
    given = {
        "prometheusMetricsPort": 0,
        "etcdV3CompactionPeriod": "600s",
        "controllers": {
            "node": {"reconcilerPeriod": "300s"},
            "loadBalancer": {},
            "migration": {},
            "policy": {},
        },
    }
    filled: Any = validate.with_defaults(resource("KubeControllersConfiguration", given))
    assert filled.spec == {
        "healthChecks": "Enabled",
        "prometheusMetricsPort": 0,
        "etcdV3CompactionPeriod": "10m0s",
        "controllers": {
            "node": {"leakGracePeriod": "15m0s", "reconcilerPeriod": "5m0s"},
            "loadBalancer": {"assignIPs": "AllServices"},
            "migration": {"policyNameMigrator": "Enabled"},
            "policy": {},
        },
    }
    assert given["controllers"]["node"] == {"reconcilerPeriod": "300s"}  # type: ignore[index]


def node(**fields: Any) -> dict[str, Any]:
    return {"controllers": {"node": fields}}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"logSeverityScreen": "Info", "debugProfilePort": 0}, None),
        ({"logSeverityScreen": "info"}, "spec.logSeverityScreen"),
        ({"healthChecks": "on"}, "spec.healthChecks"),
        ({"etcdV3CompactionPeriod": "often"}, "spec.etcdV3CompactionPeriod"),
        ({"prometheusMetricsPort": 65_536}, "spec.prometheusMetricsPort"),
        ({"prometheusMetricsPort": "9094"}, "spec.prometheusMetricsPort"),
        ({"debugProfilePort": True}, "spec.debugProfilePort"),
        ({"controllers": ["x"]}, "spec.controllers"),
        ({"controllers": {"namespace": "x"}}, "spec.controllers.namespace"),
        ({"controllers": {"policy": {"reconcilerPeriod": 5}}}, "spec.controllers.policy.reconcilerPeriod"),
        ({"controllers": {"loadBalancer": {"assignIPs": "None"}}}, "spec.controllers.loadBalancer.assignIPs"),
        ({"controllers": {"migration": {"policyNameMigrator": "x"}}},
         "spec.controllers.migration.policyNameMigrator"),
        (node(syncLabels="Disabled"), None),
        (node(syncLabels="No"), "spec.controllers.node.syncLabels"),
        (node(leakGracePeriod="-1m"), "spec.controllers.node.leakGracePeriod"),
        (node(hostEndpoint={"autoCreate": "Enabled", "createDefaultHostEndpoint": "Disabled"}), None),
        (node(hostEndpoint={"autoCreate": "x"}), "spec.controllers.node.hostEndpoint.autoCreate"),
    ],
)  # fmt: skip
def test_controllers(spec: dict[str, Any], field: str | None) -> None:
    assert list(problems("KubeControllersConfiguration", spec)) == ([field] if field else [])


CLIENT = "KubeControllersConfiguration.Node.HostEndpoint.Templates"
SCHEMA = "spec.controllers.node.hostEndpoint.templates"


@pytest.mark.parametrize(
    ("templates", "fields"),
    [
        ([TEMPLATE | {"labels": {"a": "b"}, "annotations": {"a": "b\nc"}, "nodeSelector": "all()"}], []),
        ([{"generateName": "a", "interfaceCIDRs": ["10.0.0.0/8", "192.0.2.1"]}], []),
        ([TEMPLATE | {"generateName": ""}], [CLIENT]),
        ([TEMPLATE, TEMPLATE], [f"{CLIENT}.all"]),
        ([{"generateName": "a"}], [f"{CLIENT}.a"]),
        ([TEMPLATE | {"generateName": "a_b"}], [f"{SCHEMA}[0].generateName"]),
        ([TEMPLATE | {"interfacePattern": "("}], [f"{SCHEMA}[0].interfacePattern"]),
        ([TEMPLATE | {"interfaceCIDRs": ["x"]}], [f"{SCHEMA}[0].interfaceCIDRs[0]"]),
        ([TEMPLATE | {"labels": {"a b": "c"}}], [f"{SCHEMA}[0].labels (key)"]),
        ([TEMPLATE | {"annotations": {"a b": "c"}}], [f"{SCHEMA}[0].annotations (key)"]),
        ([TEMPLATE | {"annotations": {"a": 5}}], [f"{SCHEMA}[0].annotations.a"]),
        ([TEMPLATE | {"nodeSelector": "("}], [f"{SCHEMA}[0].nodeSelector"]),
        (["x"], [f"{SCHEMA}[0]"]),
        ("x", [SCHEMA]),
    ],
)
def test_templates(templates: Any, fields: list[str]) -> None:
    spec = node(hostEndpoint={"templates": templates})
    assert list(problems("KubeControllersConfiguration", spec)) == fields
