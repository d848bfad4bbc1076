"""Felix's figures under Calico's names, for Prometheus; counted only where prometheusMetricsEnabled says so.

(Reference: felix/calc/stats_collector.go, policy_resolver.go, async_calc_graph.go;
felix/dataplane/linux/int_dataplane.go; felix/iptables/table.go, felix/nftables/table.go,
felix/ipsets/ipset_defs.go.)
"""

import resource
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tortie.core import exposition
from tortie.core.errors import ConfigError
from tortie.core.exposition import Labels, Metric
from tortie.datastore.felixparams import Resolved
from tortie.datastore.keys import ResourceKey
from tortie.datastore.syncer import Batch
from tortie.felix.calc.graph import State
from tortie.felix.calc.policies import KINDS as POLICY_KINDS
from tortie.linux.process import Ran

_PAGE = resource.getpagesize()
_CERTIFICATES = {  # prometheusMetricsClientAuth (Go's crypto/tls.ClientAuthType) -> ours
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    # OpenSSL takes no certificate that it does not verify: the first is as strict as the second.
    "RequireAnyClientCert": ssl.CERT_REQUIRED,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


@dataclass(frozen=True, slots=True)
class Port:
    """Where the figures are asked for. `host` "": all addresses; `files`: authority, certificate, key."""

    number: int
    host: str = ""
    files: tuple[str, str, str] = ("", "", "")
    client_auth: str = "NoClientCert"
    process: bool = True  # figures of the process, too


def port(params: Resolved) -> Port | None:
    """None: nobody is to ask."""
    if not params["PrometheusMetricsEnabled"]:
        return None
    return Port(
        params["PrometheusMetricsPort"],
        params["PrometheusMetricsHost"],
        (
            params["PrometheusMetricsCAFile"],
            params["PrometheusMetricsCertFile"],
            params["PrometheusMetricsKeyFile"],
        ),
        params["PrometheusMetricsClientAuth"],
        params["PrometheusProcessMetricsEnabled"],
    )


def tls(wanted: Port) -> ssl.SSLContext | None:
    """None: in plain text. Raises ConfigError."""
    authority, certificate, key = wanted.files
    if not (certificate and key):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        if authority:
            context.load_verify_locations(authority)
    except OSError as err:
        raise ConfigError("prometheusMetricsCertFile", certificate, f"cannot be used: {err}") from err
    context.verify_mode = _CERTIFICATES[wanted.client_auth]
    return context


# --- what is counted --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Summary:
    """The time that what happened so often took together."""

    count: int = 0
    time: float = 0.0

    def add(self, time: float) -> None:
        self.count += 1
        self.time += time

    def samples(self) -> list[tuple[Labels, float]]:
        return [({"part": "sum"}, self.time), ({"part": "count"}, float(self.count))]


class Meter:
    def __init__(self) -> None:
        self._status = -1  # no batch yet
        self._resyncs = 0
        self._updates: Counter[str] = Counter()  # kind -> updates
        self._keys: dict[str, set[tuple[str, str]]] = {}  # kind -> (namespace, name) of all there are
        self._calculations, self._passes = _Summary(), _Summary()
        self._first_pass = 0.0  # seconds
        self._failures = 0

    def batch(self, batch: Batch, seconds: float) -> None:
        """One batch of the datastore's, and how long it took to take it."""
        if batch.status == 1 and self._status != 1:
            self._resyncs += 1
        self._status = batch.status
        for update in batch.updates:
            if isinstance(update.key, ResourceKey):
                self._note(update.key, update.value)
        self._calculations.add(seconds)

    def _note(self, key: ResourceKey, value: Any) -> None:
        self._updates[key.kind] += 1
        known = self._keys.setdefault(key.kind, set())
        (known.discard if value is None else known.add)((key.namespace, key.name))

    def applied(self, seconds: float, done: bool, *, first: bool) -> None:
        """One pass over the dataplane; `first`: nothing had been written whole before."""
        self._failures += not done
        if not first:
            self._passes.add(seconds)
        elif done:
            self._first_pass = seconds

    def metrics(self, state: State) -> Iterator[Metric]:
        """What is known by counting, and by looking at the state."""
        yield _gauge("felix_resync_state", "Current datastore state.", max(0, self._status) + 1)
        yield _counter("felix_resyncs_started", "Times the datastore was read anew.", self._resyncs)
        for name, kinds in _CLUSTER.items():
            total = sum(len(self._keys.get(kind, ())) for kind in kinds)
            yield _gauge(f"felix_cluster_num_{name}", f"Total number of {name.replace('_', ' ')}.", total)
        active = len(state.workloads) + len(state.hosts)
        yield _gauge("felix_active_local_endpoints", "Number of active endpoints on this host.", active)
        yield _gauge(
            "felix_active_local_policies", "Number of active policies on this host.", len(state.policies)
        )
        yield _gauge(
            "felix_active_local_selectors", "Number of active selectors on this host.", len(state.sets)
        )
        yield Metric(
            "felix_calc_graph_updates_processed",
            "Number of datastore updates processed by the calculation graph.",
            [({"type": kind}, float(count)) for kind, count in sorted(self._updates.items())],
            "counter",
        )
        yield Metric(
            "felix_calc_graph_update_time_seconds",
            "Seconds to update calculation graph for each datastore OnUpdate call.",
            self._calculations.samples(),
            "summary",
        )
        yield Metric(
            "felix_int_dataplane_apply_time_seconds",
            "Time in seconds for each incremental update to the dataplane (after the initial resync).",
            self._passes.samples(),
            "summary",
        )
        yield _gauge(
            "felix_int_dataplane_initial_resync_time_seconds",
            "Time in seconds that the first pass over the dataplane took.",
            self._first_pass,
        )
        yield _counter(
            "felix_int_dataplane_failures",
            "Number of times dataplane updates failed and will be retried.",
            self._failures,
        )


_CLUSTER = {  # what is counted cluster-wide -> its kinds
    "hosts": ("Node",),
    "workload_endpoints": ("WorkloadEndpoint",),
    "host_endpoints": ("HostEndpoint",),
    "policies": POLICY_KINDS,
    "profiles": ("Profile",),
    "tiers": ("Tier",),
}

Written = Mapping[int, tuple[Mapping[Any, Any], Mapping[Any, Any]]]  # IP version -> (chains, sets)


def dataplane(written: Written, routes: int, *, nftables: bool) -> Iterator[Metric]:
    """What is to stand in the kernel. Calico names it by what enforces."""
    chains: Counter[tuple[int, str]] = Counter()  # (IP version, table) -> number
    rules: Counter[tuple[int, str]] = Counter()
    for version, (contents, _) in written.items():
        for (table, _), content in contents.items():
            where = version, "" if nftables else table
            chains[where] += 1
            rules[where] += sum(len(getattr(content, part, ())) for part in ("rules", "first", "last"))
    kind = "nft" if nftables else "iptables"
    for name, counted in (("chains", chains), ("rules", rules)):
        yield Metric(f"felix_{kind}_{name}", f"Number of active {kind} {name}.", _labelled(counted))
    sets = [({"ip_version": str(version)}, float(len(found))) for version, (_, found) in written.items()]
    yield Metric(
        "felix_nft_sets" if nftables else "felix_ipsets_calico", "Number of active Calico IP sets.", sets
    )
    yield Metric(
        "felix_route_table_num_routes",
        "Number of routes that Felix is managing in the particular routing table.",
        [({"table": "254"}, float(routes))],
    )


def _labelled(counted: Mapping[tuple[int, str], int]) -> Iterator[tuple[Labels, float]]:
    for (version, table), count in sorted(counted.items()):
        yield {"ip_version": str(version), **({"table": table} if table else {})}, float(count)


def _is_iptables(command: Sequence[str], tool: str) -> bool:
    """Whatever the family and the back-end: `ip6tables-legacy-save`."""
    return "tables-" in command[0] and command[0].endswith(f"-{tool}")


_COMMANDS: Mapping[str, tuple[str, Callable[[Sequence[str]], bool]]] = {  # name -> what, which command it is
    "felix_iptables_restore": ("iptables-restore", lambda command: _is_iptables(command, "restore")),
    "felix_iptables_save": ("iptables-save", lambda command: _is_iptables(command, "save")),
    "felix_ipset": ("ipset", lambda command: command[0] == "ipset"),
    "felix_nft": ("nft write", lambda command: command[:2] == ("nft", "-f")),
    "felix_nft_list": ("nft list", lambda command: command[0] == "nft" and "list" in command),
}


def commands(ran: Mapping[tuple[str, ...], Ran]) -> Iterator[Metric]:
    """What programs were run for, as `linux.process` counts it; nft's elements need none."""
    for name, (what, chosen) in _COMMANDS.items():
        runs = [one for command, one in ran.items() if chosen(command)]
        yield _counter(f"{name}_calls", f"Number of {what} calls.", sum(one.calls for one in runs))
        yield _counter(f"{name}_errors", f"Number of {what} errors.", sum(one.failures for one in runs))
    total = _Summary(sum(one.calls for one in ran.values()), sum(one.seconds for one in ran.values()) * 1e6)
    yield Metric(
        "felix_exec_time_micros",
        "Summary of time taken to fork/exec child processes",
        total.samples(),
        "summary",
    )


def process() -> Iterator[Metric]:
    """Of this process, as Prometheus' own clients name it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    yield _counter(
        "process_cpu_seconds_total", "Total user and system CPU time.", used.ru_utime + used.ru_stime
    )
    yield _gauge("process_resident_memory_bytes", "Resident memory size in bytes.", pages * _PAGE)
    files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    yield _gauge("process_open_fds", "Number of open file descriptors.", files)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return Metric(name, meaning, [({}, float(value))])


def _counter(name: str, meaning: str, value: float) -> Metric:
    return Metric(name, meaning, [({}, float(value))], "counter")


def answers(
    wanted: Port, figures: Callable[[], Iterable[Metric]]
) -> Callable[[str], tuple[bool, str] | None]:
    """For core.serving: what GET /metrics gets, and nobody else."""

    def answer(path: str) -> tuple[bool, str] | None:
        if path != "/metrics":
            return None
        return True, exposition.text([*figures(), *(process() if wanted.process else ())])

    return answer
