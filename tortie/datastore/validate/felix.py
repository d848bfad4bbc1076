"""FelixConfiguration: everything from the table of Felix parameters, and the few rules across fields."""

from typing import Any

from msgspec import structs

from tortie.datastore.felixparams.kinds import MILLISECONDS, SECONDS
from tortie.datastore.felixparams.table import BY_FIELD
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.validate.fields import Check, Problems, is_empty, struct
from tortie.datastore.validate.formats import (
    canonical_duration,
    canonical_number,
    canonical_port,
    selector,
)

# Written into every FelixConfiguration, so that a per-node one hides the global values of these five.
_PINNED = {
    "floatingIPs": "Disabled",
    "bpfConnectTimeLoadBalancing": "TCP",
    "bpfHostNetworkedNATWithoutCTLB": "Enabled",
    "nftablesMode": "Auto",
    "nftablesFlowTableOffload": "Disabled",
}


def defaults(configuration: FelixConfiguration) -> FelixConfiguration:
    given = {field: value for field, value in configuration.spec.items() if value is not None}
    spec = {field: _canonical(field, value) for field, value in given.items()} | {
        field: value for field, value in _PINNED.items() if given.get(field) in (None, "")
    }
    if isinstance(enabled := spec.get("bpfConnectTimeLoadBalancingEnabled"), bool):  # the field's old form
        spec["bpfHostNetworkedNATWithoutCTLB"] = "Disabled"
        spec["bpfConnectTimeLoadBalancing"] = "Enabled" if enabled else "Disabled"
    return structs.replace(configuration, spec=spec)


def _canonical(field: str, value: Any) -> Any:
    """Durations, ports and DSCP values as Calico writes them; anything wrong stays for the check."""
    if field in _DURATIONS:
        return canonical_duration(value)
    if field in ("natPortRange", "bpfPSNATPorts") and isinstance(value, str | int):
        return canonical_port(value)
    if field == "kubeNodePortRanges" and isinstance(value, list):
        return [canonical_port(item) if isinstance(item, str | int) else item for item in value]
    if field == "istioDSCPMark":
        return canonical_number(value)
    if field == "healthTimeoutOverrides" and isinstance(value, list):
        return [_canonical_override(item) for item in value]
    return value


def _canonical_override(item: Any) -> Any:
    if not isinstance(item, dict) or "timeout" not in item:
        return item
    return item | {"timeout": canonical_duration(item["timeout"])}


_DURATIONS = {field for field, param in BY_FIELD.items() if param.kind in (SECONDS, MILLISECONDS)}


def _name_and_selector(problems: Problems, _path: str, configuration: FelixConfiguration) -> None:
    scoped = configuration.name == "default" or configuration.name.startswith("node.")
    if scoped and not is_empty(configuration.spec.get("nodeSelector")):
        problems.add(
            "spec.nodeSelector", configuration.spec["nodeSelector"],
            "nodeSelector must not be set on the 'default' or per-node ('node.*') FelixConfiguration",
        )  # fmt: skip


def _one_kind_of_tables(problems: Problems, path: str, spec: dict[str, Any]) -> None:
    if not is_empty(spec.get("routeTableRange")) and not is_empty(spec.get("routeTableRanges")):
        reason = "routeTableRange and routeTableRanges cannot both be set"
        problems.add(f"{path}.routeTableRanges", None, reason)


configuration: Check = struct(
    {
        "spec": struct(
            {field: param.check for field, param in BY_FIELD.items()} | {"nodeSelector": selector},
            _one_kind_of_tables,
        )
    },
    _name_and_selector,
)
