"""Raw parameters - name -> text - out of each place they can come from. All pure.

Names are taken as they are found, in any case; resolve() knows them. What is meant to be ignored there
(unknown names, parameters that must be local) is not the business of the sources.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tortie.core.errors import ConfigError
from tortie.datastore.felixparams.param import Param
from tortie.datastore.felixparams.table import BY_FIELD
from tortie.datastore.selector import SelectorError
from tortie.datastore.selector import parse as parse_selector
from tortie.datastore.types.cluster import ClusterInformation, FelixConfiguration
from tortie.datastore.types.node import Node

Raw = dict[str, str]

DEFAULT_FILE = "/etc/calico/felix.cfg"
_ENVIRONMENT_PREFIX = "felix_"  # in any case
_ANNOTATION_PREFIX = "config.projectcalico.org/"
_NODE_PREFIX = "node."


def from_environment(environ: Mapping[str, str]) -> Raw:
    """FELIX_<PARAMETER> variables; the name's case does not matter."""
    return {
        name[len(_ENVIRONMENT_PREFIX) :].lower(): value
        for name, value in environ.items()
        if name.lower().startswith(_ENVIRONMENT_PREFIX)
    }


def from_file(text: str, path: str = DEFAULT_FILE) -> Raw:
    """The content of an INI file; its sections do not matter. Raises ConfigError naming the line."""
    raw: Raw = {}
    for number, line in enumerate(_joined_lines(text), 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("[") and line.endswith("]"):
            continue
        delimiters = [position for position in map(line.find, "=:") if position > 0]
        if not delimiters:
            raise ConfigError(f"{path} line {number}", line[:80], "expected <parameter> = <value>")
        name, value = line[: min(delimiters)].strip(), line[min(delimiters) + 1 :].strip()
        raw[name] = _ini_value(value)
    return raw


def _joined_lines(text: str) -> list[str]:
    """Lines; those ending in a backslash together with the next, so that numbers are of joined lines."""
    return text.replace("\r\n", "\n").replace("\\\n", "").split("\n")


_QUOTED = re.compile(r"""(["'`])(.*)\1\s*(?:[#;].*)?""")


def _ini_value(value: str) -> str:
    """Quotes protect a value; without them # and ; begin a comment."""
    if match := _QUOTED.fullmatch(value):
        return match[2]
    return re.split("[#;]", value, maxsplit=1)[0].strip()


def from_resource(configuration: FelixConfiguration) -> Raw:
    """The fields of a resource as text, under its annotations that override them."""
    raw: Raw = {}
    for field, value in configuration.spec.items():
        if (param := BY_FIELD.get(field)) is not None and value is not None and value != "":
            raw[param.name] = _text(param, value)
    overrides = {
        name.removeprefix(_ANNOTATION_PREFIX): value
        for name, value in configuration.metadata.annotations.items()
        if name.startswith(_ANNOTATION_PREFIX)
    }
    named = {name.lower() for name in overrides}
    return {name: value for name, value in raw.items() if name.lower() not in named} | overrides


def _text(param: Param, value: Any) -> str:
    """What is not of the field's type at all (written past validation) becomes text that no parser takes."""
    try:
        return param.kind.text(value)
    except (AttributeError, LookupError, TypeError, ValueError):
        return f"invalid {value!r}"


def from_node(node: Node) -> Raw:
    """What Felix takes from its own Node: the addresses of its tunnels."""
    spec = node.spec
    values = {
        "IpInIpTunnelAddr": spec.bgp.ipv4IPIPTunnelAddr if spec.bgp else "",
        "IPv4VXLANTunnelAddr": spec.ipv4VXLANTunnelAddr,
        "VXLANTunnelMACAddr": spec.vxlanTunnelMACAddr,
        "IPv6VXLANTunnelAddr": spec.ipv6VXLANTunnelAddr,
        "VXLANTunnelMACAddrV6": spec.vxlanTunnelMACAddrV6,
    }
    return {name: value for name, value in values.items() if value}


def from_cluster(information: ClusterInformation) -> Raw:
    spec = information.spec
    values = {
        "ClusterGUID": spec.clusterGUID,
        "ClusterType": spec.clusterType,
        "CalicoVersion": spec.calicoVersion,
        "Variant": spec.variant,
    }
    return {name: value for name, value in values.items() if value}


def by_selector(
    configurations: Iterable[FelixConfiguration], labels: Mapping[str, str] | None
) -> FelixConfiguration | None:
    """Of the resources that select a node with these labels the oldest, then the first by name.

    Exactly one counts, so that a new resource cannot disturb one that works. Without a Node (None), without
    a selector, or with one that cannot be read, nothing is selected.
    """
    matching = [
        configuration
        for configuration in configurations
        if not _is_fixed(configuration) and labels is not None and _selects(configuration, labels)
    ]
    return min(matching, key=lambda found: (found.metadata.creationTimestamp or "", found.name), default=None)


def _is_fixed(configuration: FelixConfiguration) -> bool:
    return configuration.name == "default" or configuration.name.startswith(_NODE_PREFIX)


def _selects(configuration: FelixConfiguration, labels: Mapping[str, str]) -> bool:
    text: Any = configuration.spec.get("nodeSelector")
    if not isinstance(text, str) or not text:
        return False
    try:
        return parse_selector(text).evaluate(labels)
    except SelectorError:
        return False
