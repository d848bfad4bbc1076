"""ClusterInformation and KubeControllersConfiguration."""

from typing import Any

from msgspec import structs

from tortie.datastore.types.cluster import KubeControllersConfiguration
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


def controllers_defaults(configuration: KubeControllersConfiguration) -> KubeControllersConfiguration:
    """The defaults of Calico's client and of the schema; a controller that is absent stays absent."""
    spec: dict[str, Any] = {"healthChecks": "Enabled", "prometheusMetricsPort": 9094} | configuration.spec
    _spell_duration(spec, "etcdV3CompactionPeriod")
    if not isinstance(given := spec.get("controllers", {}), dict):
        return structs.replace(configuration, spec=spec)
    controllers = {key: dict(value) if isinstance(value, dict) else value for key, value in given.items()}
    for key, defaults in _CONTROLLER_DEFAULTS.items():
        if isinstance(controllers.get(key), dict):
            controllers[key] = defaults | controllers[key]
    for controller in controllers.values():
        if isinstance(controller, dict):
            _spell_duration(controller, "reconcilerPeriod")
            _spell_duration(controller, "leakGracePeriod")
    return structs.replace(configuration, spec=spec | {"controllers": controllers})


_CONTROLLER_DEFAULTS = {  # controller -> defaults written where it is configured at all
    "node": {"leakGracePeriod": "15m0s"},
    "loadBalancer": {"assignIPs": "AllServices"},
    "migration": {"policyNameMigrator": "Enabled"},
}


def _spell_duration(fields: dict[str, Any], field: str) -> None:
    if field in fields:
        fields[field] = canonical_duration(fields[field])


_TEMPLATES = "KubeControllersConfiguration.Node.HostEndpoint.Templates"


def _template_rules(problems: Problems, _path: str, templates: Any) -> None:
    """Field names and reasons are those of Calico's client."""
    seen: set[str] = set()
    for template in templates if isinstance(templates, list) else []:
        if not isinstance(template, dict):
            continue
        generated = str(template.get("generateName") or "")
        if not generated:
            problems.add(_TEMPLATES, None, "Template name must be specified")
        elif generated in seen:
            problems.add(f"{_TEMPLATES}.{generated[:MAX_NAME]}", None, "Template name must be unique")
        seen.add(generated)
        if not template.get("interfaceCIDRs") and not template.get("interfacePattern"):
            where = f"{_TEMPLATES}.{generated[:MAX_NAME]}"
            problems.add(where, None, "InterfaceCIDRs or InterfacePattern must be specified")


def _annotations(problems: Problems, path: str, value: Any) -> None:
    mapping(text(MAX_NAME * 2), _string)(problems, path, value)
    if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
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


def _templates(problems: Problems, path: str, value: Any) -> None:
    listing(_template)(problems, path, value)
    _template_rules(problems, path, value)


_enabled = one_of("Enabled", "Disabled")
_host_endpoint = struct(
    {"autoCreate": _enabled, "createDefaultHostEndpoint": _enabled, "templates": _templates}
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
