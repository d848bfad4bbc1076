"""ClusterInformation and KubeControllersConfiguration."""

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET, structs

from tortie.datastore.types.cluster import AutoHostEndpoints, KubeControllersConfiguration
from tortie.datastore.validate.addresses import cidr
from tortie.datastore.validate.fields import (
    Check,
    Problems,
    boolean,
    integer,
    listing,
    mapping,
    one_of,
    struct,
    text,
)
from tortie.datastore.validate.formats import (
    MAX_NAME,
    canonical_duration,
    duration,
    label_value,
    name,
    qualified_name,
    regexp,
    selector,
)
from tortie.datastore.validate.metadata import check_annotations

information: Check = struct(
    {
        "spec": struct(
            {
                "clusterGUID": text(),
                "clusterType": text(),
                "calicoVersion": text(),
                "datastoreReady": boolean,
                "variant": text(),
            }
        )
    }
)

# --- KubeControllersConfiguration ---------------------------------------------------------------

_PERIODIC = ("policy", "workloadEndpoint", "serviceAccount", "namespace")  # controllers with a period only
_DEFAULTS: dict[str, dict[str, Any]] = {  # controller -> what is written where it is configured at all
    "node": {"leakGracePeriod": "15m0s"},
    "loadBalancer": {"assignIPs": "AllServices"},
    "migration": {"policyNameMigrator": "Enabled"},
}
_DURATIONS = ("reconcilerPeriod", "leakGracePeriod")


def controllers_defaults(configuration: KubeControllersConfiguration) -> KubeControllersConfiguration:
    """The defaults of Calico's client and of the schema; a controller that is absent stays absent."""
    spec = configuration.spec
    given = {name: getattr(spec.controllers, name) for name in spec.controllers.__struct_fields__}
    controllers = {
        name: _controller_defaults(controller, _DEFAULTS.get(name, {}))
        for name, controller in given.items()
        if controller is not None
    }
    spec = structs.replace(
        spec,
        healthChecks=spec.healthChecks or "Enabled",
        prometheusMetricsPort=9094 if spec.prometheusMetricsPort is UNSET else spec.prometheusMetricsPort,
        etcdV3CompactionPeriod=canonical_duration(spec.etcdV3CompactionPeriod),
        controllers=structs.replace(spec.controllers, **controllers),
    )
    return structs.replace(configuration, spec=spec)


def _controller_defaults(controller: Any, defaults: Mapping[str, Any]) -> Any:
    missing = {name: value for name, value in defaults.items() if not getattr(controller, name)}
    periods = {name: canonical_duration(getattr(controller, name, None)) for name in _DURATIONS}
    return structs.replace(controller, **{name: value for name, value in periods.items() if value} | missing)


_TEMPLATES = "KubeControllersConfiguration.Node.HostEndpoint.Templates"


def _template_rules(problems: Problems, _path: str, spec: AutoHostEndpoints) -> None:
    """Field names and reasons are those of Calico's client."""
    seen: set[str] = set()
    for template in spec.templates:
        generated = template.generateName
        if not generated:
            problems.add(_TEMPLATES, None, "Template name must be specified")
        elif generated in seen:
            problems.add(f"{_TEMPLATES}.{generated[:MAX_NAME]}", None, "Template name must be unique")
        seen.add(generated)
        if not template.interfaceCIDRs and not template.interfacePattern:
            where = f"{_TEMPLATES}.{generated[:MAX_NAME]}"
            problems.add(where, None, "InterfaceCIDRs or InterfacePattern must be specified")


def _annotations(problems: Problems, path: str, value: Any) -> None:
    check_annotations(value, problems, path)


def _string(problems: Problems, path: str, value: Any) -> None:
    if not isinstance(value, str):
        problems.add(path, value, "expected a string")


_template = struct(
    {
        "generateName": name,
        "interfaceCIDRs": listing(cidr, unique=True),
        "interfacePattern": regexp,
        "labels": mapping(qualified_name, label_value),
        "annotations": _annotations,
        "nodeSelector": selector,
    }
)


_enabled = one_of("Enabled", "Disabled")
_host_endpoint = struct(
    {"autoCreate": _enabled, "createDefaultHostEndpoint": _enabled, "templates": listing(_template)},
    _template_rules,
)
_node = struct(
    {
        "reconcilerPeriod": duration,
        "syncLabels": _enabled,
        "leakGracePeriod": duration,
        "hostEndpoint": _host_endpoint,
    }
)
_controllers = struct(
    {key: struct({"reconcilerPeriod": duration}) for key in _PERIODIC}
    | {
        "node": _node,
        "loadBalancer": struct({"assignIPs": one_of("AllServices", "RequestedServicesOnly")}),
        "migration": struct({"policyNameMigrator": _enabled}),
    }
)
_spec = struct(
    {
        "logSeverityScreen": one_of("None", "Debug", "Info", "Warning", "Error", "Fatal", "Panic"),
        "healthChecks": _enabled,
        "etcdV3CompactionPeriod": duration,
        "prometheusMetricsPort": integer(0, 65535),
        "debugProfilePort": integer(0, 65535),
        "controllers": _controllers,
    }
)

controllers: Check = struct({"spec": _spec, "status": struct({"environmentVars": mapping(text(), _string)})})
