"""Many sources of parameters into one set of values: Felix's precedence, in one pure function.

Internal override > environment > file > the node's own resource > a resource selecting the node > the
resource `default` > built-in default. The highest source that names a parameter decides it, also when its
value cannot be read: then the built-in default holds, not the next source (or Felix must not start, for
parameters marked fatal).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any

from tortie.core.errors import ConfigError, printable
from tortie.datastore.felixparams.param import FATAL, LOCAL, NON_ZERO, Param
from tortie.datastore.felixparams.sources import Raw, by_selector, from_cluster, from_node, from_resource
from tortie.datastore.felixparams.table import BY_LOWER_NAME, PARAMS
from tortie.datastore.types.cluster import ClusterInformation, FelixConfiguration
from tortie.datastore.types.node import Node


class Source(IntEnum):
    """Where a value comes from; a higher number wins."""

    DEFAULT = 0
    GLOBAL = 1
    PER_SELECTOR = 2
    PER_HOST = 3
    FILE = 4
    ENVIRONMENT = 5
    OVERRIDE = 6

    def __str__(self) -> str:
        return _LABELS[self]

    @property
    def local(self) -> bool:
        return self not in (Source.GLOBAL, Source.PER_SELECTOR, Source.PER_HOST)


_LABELS = {  # as Felix logs them
    Source.DEFAULT: "<default>",
    Source.GLOBAL: "datastore (global)",
    Source.PER_SELECTOR: "datastore (per-node-selector)",
    Source.PER_HOST: "datastore (per-host)",
    Source.FILE: "config file",
    Source.ENVIRONMENT: "environment variable",
    Source.OVERRIDE: "internal override",
}


@dataclass(frozen=True, slots=True)
class Resolved:
    """Every parameter's value and where it comes from; times are seconds, lists tuples.

    `ignored` says, one sentence each, which values were not taken and why: for the log, once.
    """

    values: Mapping[str, Any]  # parameter -> parsed value
    sources: Mapping[str, Source]  # parameter -> the source that decided it
    ignored: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def changed(self, other: "Resolved") -> set[str]:
        """The parameters whose values differ."""
        return {name for name, value in self.values.items() if value != other.values[name]}

    def without(self, name: str, why: str) -> "Resolved":
        """With the default in the place of a value that turned out to be of no use."""
        return Resolved(
            MappingProxyType({**self.values, name: PARAMS[name].default}),
            MappingProxyType({**self.sources, name: Source.DEFAULT}),
            (*self.ignored, why),
        )

    def describe(self) -> Iterable[str]:
        """What was set and by whom, for the log at start."""
        for name, source in self.sources.items():
            if source is not Source.DEFAULT:
                yield f"{name} = {self.values[name]!r} (from {source})"


@dataclass(slots=True)
class _Decision:
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def resolve(layers: Mapping[Source, Mapping[str, str]], hostname: str = "") -> Resolved:
    """One value for each parameter. `hostname` is FelixHostname unless a source names another.

    Raises ConfigError for a value that Felix must not start with.
    """
    decision = _Decision()
    for source in sorted(layers, reverse=True):
        for raw_name, text in sorted(layers[source].items()):
            if text != "":  # an empty value counts as not set
                _decide(decision, source, raw_name, text)
    for name, param in PARAMS.items():
        if name not in decision.values:
            decision.values[name] = param.default
            decision.sources[name] = Source.DEFAULT
    if decision.sources["FelixHostname"] is Source.DEFAULT:
        decision.values["FelixHostname"] = hostname
    ordered = {name: decision.values[name] for name in PARAMS}
    return Resolved(MappingProxyType(ordered), MappingProxyType(decision.sources), tuple(decision.ignored))


def resolve_stored(
    local: Mapping[Source, Mapping[str, str]], stored: Mapping[Source, Mapping[str, str]], hostname: str = ""
) -> Resolved:
    """resolve() for a process that runs: raises ConfigError for values of the local sources only.

    A value in the datastore that Calico's Felix would die of is ignored, and said to be, because whoever can
    write there must not be able to stop every node.
    """
    try:
        return resolve({**local, **stored}, hostname)
    except ConfigError:
        refused = {
            (source, name): why
            for source, raw in stored.items()
            for name, text in raw.items()
            if (why := _why_fatal(source, name, text))
        }
    kept = {
        source: {name: text for name, text in raw.items() if (source, name) not in refused}
        for source, raw in stored.items()
    }
    resolved = resolve({**local, **kept}, hostname)
    return replace(resolved, ignored=(*resolved.ignored, *refused.values()))


def _why_fatal(source: Source, name: str, text: str) -> str:
    try:
        resolve({source: {name: text}})
    except ConfigError as err:
        return str(err)
    return ""


def _decide(decision: _Decision, source: Source, raw_name: str, text: str) -> None:
    param = BY_LOWER_NAME.get(raw_name.lower())
    if param is None:
        decision.ignored.append(f"unknown parameter {raw_name[:80]!r} from {source}")
    elif LOCAL in param.traits and not source.local:
        decision.ignored.append(f"{param.name} from {source}: can only be set by environment or file")
    elif param.name in decision.sources:
        # Read all the same: a value that Felix must not start with stops it wherever it stands.
        _read(param, source, text, _Decision())
    else:
        decision.values[param.name] = _read(param, source, text, decision)
        decision.sources[param.name] = source


def _read(param: Param, source: Source, text: str, decision: _Decision) -> Any:
    if text.lower() == "none" and not param.kind.has_none:
        if NON_ZERO in param.traits:
            raise ConfigError(_where(param, source), text, "non-zero field cannot be set to none")
        return param.kind.zero
    try:
        return param.kind.parse(text)
    except ValueError as err:
        if FATAL in param.traits:
            raise ConfigError(_where(param, source), text[:200], printable(err)) from err
        decision.ignored.append(
            f"{_where(param, source)} = {text[:200]!r}: {printable(err)}; "
            f"using the default {param.default_text!r}"
        )
        return param.default


def _where(param: Param, source: Source) -> str:
    return f"{param.name} from {source}"


def datastore_layers(
    configurations: Iterable[FelixConfiguration],
    hostname: str,
    node: Node | None = None,
    information: ClusterInformation | None = None,
) -> dict[Source, Raw]:
    """What the datastore says to the Felix of one node."""
    by_name = {configuration.name: configuration for configuration in configurations}
    layers: dict[Source, Raw] = {Source.GLOBAL: {}, Source.PER_SELECTOR: {}, Source.PER_HOST: {}}
    if (default := by_name.get("default")) is not None:
        layers[Source.GLOBAL] = from_resource(default)
    if information is not None:
        layers[Source.GLOBAL] |= from_cluster(information)
    chosen = by_selector(by_name.values(), None if node is None else node.labels)
    if chosen is not None:
        layers[Source.PER_SELECTOR] = from_resource(chosen)
    if (own := by_name.get(f"node.{hostname}")) is not None:
        layers[Source.PER_HOST] = from_resource(own)
    if node is not None:
        layers[Source.PER_HOST] |= from_node(node)
    return layers
