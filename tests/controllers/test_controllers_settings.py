"""Which settings win: the environment over the resource over the defaults."""

from typing import Any

import pytest

from tortie.controllers.settings import (
    HostEndpointSettings,
    NodeSettings,
    Settings,
    default_configuration,
    resolve,
)
from tortie.core.errors import ConfigError
from tortie.datastore import validate
from tortie.datastore.codec import from_plain
from tortie.datastore.types.cluster import KubeControllersConfigurationSpec

pytestmark = pytest.mark.unit

DEFAULT = default_configuration().spec


def spec(**fields: Any) -> KubeControllersConfigurationSpec:
    return from_plain(KubeControllersConfigurationSpec, fields)


def test_the_default_is_valid_and_runs_everything() -> None:
    validate.check(validate.with_defaults(default_configuration()))
    settings, status = resolve({}, DEFAULT, "etcdv3")
    assert settings == Settings(
        node=NodeSettings(grace=900.0),
        load_balancer="AllServices",
        periods=tuple((n, 300.0) for n in ("policy", "workloadEndpoint", "serviceAccount", "namespace")),
    )
    assert status["environmentVars"] == {}
    assert status["runningConfig"]["controllers"]["node"] == {
        "syncLabels": "Enabled",
        "hostEndpoint": {"autoCreate": "Disabled", "createDefaultHostEndpoint": "Enabled"},
        "leakGracePeriod": "15m0s",
    }
    assert status["runningConfig"]["controllers"]["policy"] == {"reconcilerPeriod": "5m0s"}
    # Asked for, as Calico's default is, but not done.
    assert status["runningConfig"]["controllers"]["migration"] == {"policyNameMigrator": "Disabled"}


def test_a_controller_without_a_section_does_not_run() -> None:
    settings, status = resolve({}, spec(controllers={"node": {"leakGracePeriod": "1m"}}), "kubernetes")
    assert settings.node == NodeSettings(sync_labels=False, grace=60.0)
    assert (settings.load_balancer, settings.periods) == (None, ())
    assert set(status["runningConfig"]["controllers"]) == {"node", "migration"}
    assert status["environmentVars"] == {"DATASTORE_TYPE": "kubernetes"}


def test_the_environment_wins() -> None:
    env = {
        "ENABLED_CONTROLLERS": "node, profile,loadbalancer",
        "RECONCILER_PERIOD": "1m",
        "COMPACTION_PERIOD": "0",
        "HEALTH_ENABLED": "f",
        "SYNC_NODE_LABELS": "false",
        "AUTO_HOST_ENDPOINTS": "Enabled",
        "LOG_LEVEL": "debug",
        "OTHER": "x",
    }
    settings, status = resolve(env, DEFAULT, "etcdv3")
    assert settings == Settings(
        log_level="debug",
        health=False,
        compaction=0.0,
        node=NodeSettings(sync_labels=False, host_endpoints=HostEndpointSettings(create=True), grace=900.0),
        load_balancer="AllServices",
        periods=(("namespace", 60.0),),
    )
    assert status["environmentVars"] == {k: v for k, v in env.items() if k != "OTHER"}
    assert "policy" not in status["runningConfig"]["controllers"]


def test_the_environment_may_name_what_the_resource_does_not() -> None:
    settings, _ = resolve({"ENABLED_CONTROLLERS": "loadbalancer,policy,node"}, spec(), "etcdv3")
    assert settings.load_balancer == "AllServices"
    assert settings.periods == (("policy", 300.0),)
    assert settings.node == NodeSettings(grace=0.0)  # nobody said after what time an address is leaked


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ENABLED_CONTROLLERS", "node,nodes", "Invalid controller 'nodes' provided."),
        ("ENABLED_CONTROLLERS", "", "Invalid controller '' provided."),
        ("RECONCILER_PERIOD", "5", "invalid duration"),
        ("COMPACTION_PERIOD", "-1s", "negative"),
        ("HEALTH_ENABLED", "yes", "true or false"),
        ("SYNC_NODE_LABELS", "", "true or false"),
        ("AUTO_HOST_ENDPOINTS", "true", "enabled or disabled"),
        ("LOG_LEVEL", "loud", "unknown log level"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        resolve({name: value}, DEFAULT, "etcdv3")
    assert raised.value.where == name
