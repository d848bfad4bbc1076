"""What the controllers are to do: environment before KubeControllersConfiguration before defaults. Pure.

(Reference: Calico command line and Kubernetes, 5.2; kube-controllers/pkg/config/runconfig.go.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, structs

from tortie.core import log
from tortie.core.duration import format_duration, parse_duration
from tortie.core.errors import ConfigError
from tortie.datastore.types.cluster import (
    AutoHostEndpoints,
    Controllers,
    HostEndpointTemplate,
    KubeControllersConfiguration,
    KubeControllersConfigurationSpec,
    LoadBalancerController,
    MigrationController,
    NodeController,
    PeriodicController,
)
from tortie.datastore.types.meta import ObjectMeta

NAME = "default"  # the only KubeControllersConfiguration that is read
VARIABLES = (  # each wins over the resource where it is set
    "LOG_LEVEL",
    "ENABLED_CONTROLLERS",
    "RECONCILER_PERIOD",
    "COMPACTION_PERIOD",
    "HEALTH_ENABLED",
    "SYNC_NODE_LABELS",
    "AUTO_HOST_ENDPOINTS",
)
_TOKENS = {  # word of ENABLED_CONTROLLERS -> field of Controllers
    "node": "node",
    "loadbalancer": "loadBalancer",
    "policy": "policy",
    "namespace": "namespace",
    "profile": "namespace",
    "serviceaccount": "serviceAccount",
    "workloadendpoint": "workloadEndpoint",
}
PERIODIC = ("policy", "workloadEndpoint", "serviceAccount", "namespace")
_PERIOD = 300.0  # seconds, Calico's default
_COMPACTION = 600.0  # seconds, Calico's default
_METRICS_PORT = 9094  # Calico's default
_TRUE = ("1", "t", "T", "TRUE", "true", "True")  # Go's strconv.ParseBool
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


@dataclass(frozen=True, slots=True)
class HostEndpointSettings:
    create: bool = False
    default: bool = True  # one for all interfaces of a node
    templates: tuple[HostEndpointTemplate, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """`grace`: seconds until an address that nobody uses counts as leaked; 0: it never does."""

    sync_labels: bool = True
    host_endpoints: HostEndpointSettings = HostEndpointSettings()
    grace: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """A controller that is None, or not in `periods`, does not run."""

    log_level: str = "Info"
    health: bool = True
    compaction: float = _COMPACTION  # seconds between compactions of etcd, 0: never
    metrics_port: int = _METRICS_PORT  # 0: none
    node: NodeSettings | None = None
    load_balancer: str | None = None  # AllServices | RequestedServicesOnly
    periods: tuple[tuple[str, float], ...] = ()  # controller that copies to etcd, seconds between looks


def default_configuration() -> KubeControllersConfiguration:
    """What is created where there is none, as Calico does."""
    periodic = PeriodicController(reconcilerPeriod="5m0s")
    return KubeControllersConfiguration(
        metadata=ObjectMeta(name=NAME),
        spec=KubeControllersConfigurationSpec(
            logSeverityScreen="Info",
            healthChecks="Enabled",
            etcdV3CompactionPeriod="10m0s",
            controllers=Controllers(
                node=NodeController(
                    reconcilerPeriod="5m0s",
                    syncLabels="Enabled",
                    hostEndpoint=AutoHostEndpoints(
                        autoCreate="Disabled", createDefaultHostEndpoint="Enabled"
                    ),
                    leakGracePeriod="15m0s",
                ),
                policy=periodic,
                workloadEndpoint=periodic,
                serviceAccount=periodic,
                namespace=periodic,
                loadBalancer=LoadBalancerController(assignIPs="AllServices"),
                migration=MigrationController(policyNameMigrator="Enabled"),
            ),
        ),
    )


def resolve(
    env: Mapping[str, str], spec: KubeControllersConfigurationSpec, datastore: str
) -> tuple[Settings, dict[str, Any]]:
    """The settings, and the status that tells them to whoever reads the resource.

    `datastore` is etcdv3 or kubernetes. Raises ConfigError for a variable that is wrong.
    """
    given = {name: env[name] for name in VARIABLES if name in env}
    controllers = _enabled(given, spec.controllers)
    node = _node(given, controllers.node, datastore) if controllers.node is not None else None
    periods = {name: getattr(controllers, name) for name in PERIODIC}
    settings = Settings(
        log_level=_log_level(given, spec),
        health=_flag(given, "HEALTH_ENABLED", (spec.healthChecks or "Enabled") != "Disabled"),
        compaction=_duration(given, "COMPACTION_PERIOD", spec.etcdV3CompactionPeriod or None, _COMPACTION),
        metrics_port=_METRICS_PORT if spec.prometheusMetricsPort is UNSET else spec.prometheusMetricsPort,
        node=node,
        load_balancer=_assigned(controllers.loadBalancer),
        periods=tuple(
            (name, _duration(given, "RECONCILER_PERIOD", one.reconcilerPeriod, _PERIOD))
            for name, one in periods.items()
            if one is not None
        ),
    )
    if datastore == "kubernetes" and node is not None:
        given["DATASTORE_TYPE"] = datastore
    running = msgspec.to_builtins(_running(settings))
    return settings, {"runningConfig": running, "environmentVars": given}


def _enabled(given: Mapping[str, str], controllers: Controllers) -> Controllers:
    """Those that are to run; one that only the environment names has no settings of its own."""
    if "ENABLED_CONTROLLERS" not in given:
        return controllers
    text = given["ENABLED_CONTROLLERS"]
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in _TOKENS:
            raise ConfigError("ENABLED_CONTROLLERS", text, f"Invalid controller '{word}' provided.")
    wanted = {_TOKENS[word] for word in words}
    empty: dict[str, Any] = {
        "node": NodeController(),
        "loadBalancer": LoadBalancerController(),
        **dict.fromkeys(PERIODIC, PeriodicController()),
    }
    fields = {
        name: (getattr(controllers, name) or default) if name in wanted else None
        for name, default in empty.items()
    }
    return structs.replace(controllers, **fields)


def _assigned(controller: LoadBalancerController | None) -> str | None:
    return None if controller is None else controller.assignIPs or "AllServices"


def _node(given: Mapping[str, str], node: NodeController, datastore: str) -> NodeSettings:
    """With Kubernetes as the datastore labels need no copying: nodes are read with them."""
    sync = _flag(given, "SYNC_NODE_LABELS", node.syncLabels != "Disabled")
    return NodeSettings(
        sync_labels=sync and datastore != "kubernetes",
        host_endpoints=_host_endpoints(given, node.hostEndpoint),
        grace=_duration({}, "leakGracePeriod", node.leakGracePeriod, 0.0),
    )


def _host_endpoints(given: Mapping[str, str], found: AutoHostEndpoints | None) -> HostEndpointSettings:
    text = given.get("AUTO_HOST_ENDPOINTS")
    if text is not None:
        if text.lower() not in ("enabled", "disabled"):
            raise ConfigError("AUTO_HOST_ENDPOINTS", text, "must be enabled or disabled")
        return HostEndpointSettings(create=text.lower() == "enabled")
    if found is None:
        return HostEndpointSettings()
    return HostEndpointSettings(
        create=found.autoCreate == "Enabled",
        default=found.createDefaultHostEndpoint != "Disabled",
        templates=found.templates,
    )


def _log_level(given: Mapping[str, str], spec: KubeControllersConfigurationSpec) -> str:
    text = given.get("LOG_LEVEL")
    if text is not None and not log.known(text):
        raise ConfigError("LOG_LEVEL", text, "unknown log level")
    return text or spec.logSeverityScreen or "Info"


def _flag(given: Mapping[str, str], name: str, default: bool) -> bool:
    text = given.get(name)
    if text is None:
        return default
    if text not in _TRUE + _FALSE:
        raise ConfigError(name, text, "must be true or false")
    return text in _TRUE


def _duration(given: Mapping[str, str], name: str, stored: str | None, default: float) -> float:
    """Seconds."""
    text = given.get(name, stored)
    if text is None:
        return default
    try:
        seconds = parse_duration(text)
    except ValueError as err:
        raise ConfigError(name, text, str(err)) from None
    if seconds < 0:
        raise ConfigError(name, text, "must not be negative")
    return seconds


# --- as the status shows it ---------------------------------------------------------------------


def _running(settings: Settings) -> KubeControllersConfigurationSpec:
    periodic = {name: PeriodicController(reconcilerPeriod=_go(seconds)) for name, seconds in settings.periods}
    return KubeControllersConfigurationSpec(
        logSeverityScreen=settings.log_level,
        healthChecks=_switch(settings.health),
        etcdV3CompactionPeriod=_go(settings.compaction),
        prometheusMetricsPort=settings.metrics_port,
        controllers=Controllers(
            node=None if settings.node is None else _running_node(settings.node),
            loadBalancer=(
                None
                if settings.load_balancer is None
                else LoadBalancerController(assignIPs=settings.load_balancer)
            ),
            # There is none: `calicoctl datastore migrate-policy-names` does it when a person says so.
            migration=MigrationController(policyNameMigrator="Disabled"),
            **periodic,
        ),
    )


def _running_node(node: NodeSettings) -> NodeController:
    wanted = node.host_endpoints
    return NodeController(
        syncLabels=_switch(node.sync_labels),
        hostEndpoint=AutoHostEndpoints(
            autoCreate=_switch(wanted.create),
            createDefaultHostEndpoint=_switch(wanted.default),
            templates=wanted.templates,
        ),
        leakGracePeriod=_go(node.grace),
    )


def _switch(on: bool) -> str:
    return "Enabled" if on else "Disabled"


def _go(seconds: float) -> str:
    return format_duration(seconds)
