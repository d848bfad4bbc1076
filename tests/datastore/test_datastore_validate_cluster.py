"""ClusterInformation and KubeControllersConfiguration."""

from typing import Any

import pytest

from tests.support.resources import problems, resource
from tortie.datastore import codec, validate

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


def spec_with_defaults(given: dict[str, Any]) -> Any:
    return codec.to_plain(validate.with_defaults(resource("KubeControllersConfiguration", given)))["spec"]


def test_controllers_defaults() -> None:
    assert spec_with_defaults({}) == {
        "healthChecks": "Enabled", "prometheusMetricsPort": 9094, "controllers": {}
    }  # fmt: skip
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
    assert spec_with_defaults(given) == {
        "healthChecks": "Enabled",
        "etcdV3CompactionPeriod": "10m0s",
        "prometheusMetricsPort": 0,
        "controllers": {
            "node": {"reconcilerPeriod": "5m0s", "leakGracePeriod": "15m0s"},
            "policy": {},
            "loadBalancer": {"assignIPs": "AllServices"},
            "migration": {"policyNameMigrator": "Enabled"},
        },
    }


def wrong(spec: dict[str, Any]) -> list[str]:
    """Paths of what is wrong, whether reading or checking finds it."""
    kind = "KubeControllersConfiguration"
    return [field.removeprefix(f"{kind}.spec").removeprefix("spec") for field in problems(kind, spec)]


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
    assert wrong(spec) == ([field.removeprefix("spec")] if field else [])


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
        ([TEMPLATE | {"annotations": {"a": 5}}], [f"{SCHEMA}[0].annotations[...]"]),
        ([TEMPLATE | {"nodeSelector": "("}], [f"{SCHEMA}[0].nodeSelector"]),
        (["x"], [f"{SCHEMA}[0]"]),
        ("x", [SCHEMA]),
    ],
)
def test_templates(templates: Any, fields: list[str]) -> None:
    spec = node(hostEndpoint={"templates": templates})
    assert wrong(spec) == [field.removeprefix("spec") for field in fields]
