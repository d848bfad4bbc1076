"""Plays policy cases in a lab: many cells side by side, each with its own case, one round after the other.

A round replaces all resources of the one before, waits until every node enforces them, and sends every
probe of every case at once. That a node is so far is seen from a canary, written last in a round, which
lets only this round's packets pass. Felix takes the changes of one kind in order, but follows each kind by
itself: so a packet reaches the canary by one object of every kind of policy and of set.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from msgspec import structs

from tests.policy.board import (
    ACCOUNTS,
    CELL,
    CELL_OF_HOSTS,
    ICMP,
    ICMP6,
    LOW_PORTS,
    NAMESPACES,
    ODD,
    PODS,
    SCTP,
    SERVERS,
    Case,
    Cell,
    Json,
    Probe,
)
from tests.policy.kubernetes import NATIVE
from tortie.datastore import config
from tortie.datastore.codec import from_plain
from tortie.datastore.connect import connect
from tortie.datastore.kinds import KINDS
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.meta import Resource
from tortie.lab.cluster import wait_until
from tortie.lab.packets import Attempt, Listeners
from tortie.linux import netns

_NODES = ("node-1", "node-2", "node-3")
_NO_POOL = "fd10::/48"  # what stands for the pool of IPv6 where there is none
_HIGH_PORTS = range(20000, 32000)  # below those that the kernel gives away by itself
# Kinds in the order they are written; deleted the other way round. What is named comes before who names it.
_ORDER = ["Tier", "Profile", "GlobalNetworkSet", "NetworkSet"]
_LAST = ["HostEndpoint"]  # a host endpoint without its policies cuts its host off


class Place(Protocol):
    """What a stage is built in: a lab.cluster.Lab, or what looks like one."""

    @property
    def nodes(self) -> Mapping[str, Any]: ...
    @property
    def pods(self) -> Mapping[str, Any]: ...
    @property
    def kubernetes(self) -> Any: ...
    def datastore_env(self, user: str) -> dict[str, str]: ...
    def add_namespace(self, name: str) -> None: ...
    def add_pod(
        self, name: str, node: str, namespace: str, labels: Mapping[str, str], *, serving: bool, **args: Any
    ) -> Any: ...


class Stage:
    """The lab with everything on it; a context manager. `cells` cases are played at a time.

    `hosts`: also the cell for cases about host endpoints. `versions`: of IP, that its pods have.
    """

    def __init__(
        self, lab: Place, cells: int, *, hosts: bool = True, versions: Sequence[int] = (4, 6)
    ) -> None:
        self.lab = lab
        self._with_hosts, self._versions = hosts, versions
        self._runner = asyncio.Runner()
        self._client = connect(config.from_env(lab.datastore_env("admin")))
        self._cells = range(1, cells + 1)
        self.cells: list[Cell] = []
        self.hosts_cell = Cell(0, {})
        self._namespaces: dict[tuple[int, str], int] = {}  # (cell, pod or host) -> open network namespace
        self._listeners: Listeners | None = None
        self._standing: list[Resource] = []  # of the round before
        self._native: list[Json] = []  # Kubernetes' own policies of the round before
        self._round = 0
        self._low, self._high, self._echo = 0, 0, 0  # source ports and echo requests' numbers used up

    def __enter__(self) -> Self:
        pools = {pool.spec.cidr for pool in self._do(self._client.list(IPPool)).items}
        four = next(cidr for cidr in pools if ":" not in cidr)
        six = next((cidr for cidr in pools if ":" in cidr), _NO_POOL)
        cells = dict.fromkeys(self._cells, CELL) | ({0: CELL_OF_HOSTS} if self._with_hosts else {})
        built = {number: self._build(number, names) for number, names in cells.items()}
        self._add_canaries()
        made = {number: self._cell(number, pods, (four, six)) for number, pods in built.items()}
        self.hosts_cell = made.pop(0, self.hosts_cell)
        self.cells = list(made.values())
        for raw in self._canary():
            self._do(self._client.create(_typed(raw)))
        servers = [
            self._namespaces[cell, pod] for cell, pod in self._namespaces if cell == 0 or pod in SERVERS
        ]
        servers += [self.lab.pods[f"canary-{node}"].netns_fd for node in _NODES]
        self._listeners = Listeners(
            servers, tcp=[8080, 8081, 6666], udp=[8080, 5353, 53], protocols=[ICMP, ICMP6, SCTP, ODD]
        )
        self._wait_for_canaries([])
        # Not because the canaries are open still: nodes may be busy with so many new pods.
        wait_until(lambda: not any(self._canaries_hear(0)), "the canaries to be guarded", 300)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listeners is not None:
            self._listeners.__exit__()
        for (_, name), fd in self._namespaces.items():
            if not PODS[name].namespace:
                os.close(fd)
        self._do(self._client.close())
        self._runner.close()

    def _do(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine)

    # --- building -------------------------------------------------------------------------------

    def _build(self, number: int, names: Iterable[str]) -> dict[str, Any]:
        """Name -> pod, or node."""
        empty = Cell(number, {})
        self._add_background(empty)
        built = {}
        for name in names:
            kind = PODS[name]
            if not kind.namespace:
                built[name] = self.lab.nodes[kind.node]
                continue
            built[name] = self.lab.add_pod(
                f"{name}{number}",
                kind.node,
                kind.namespace.replace("@", str(number)),
                empty.pod_labels(name),
                serving=False,
                serviceAccountName=kind.account,
                ports=[
                    {"name": port, "protocol": protocol, "containerPort": value}
                    for port, (protocol, value) in kind.ports.items()
                ],
            )
        return built

    def _cell(self, number: int, built: Mapping[str, Any], pools: tuple[str, str]) -> Cell:
        addresses = {}
        for index, (name, one) in enumerate(built.items(), 1):
            if PODS[name].namespace:
                self._namespaces[number, name] = one.netns_fd
                six = one.address(6) if 6 in self._versions else f"fd10::{number:x}:{index:x}"  # as if
                addresses[name] = one.address(4), six
            else:
                self._namespaces[number, name] = netns.open(one.box.netns)
                addresses[name] = one.ip, one.ip6
        return Cell(number, addresses, pools)

    def _add_background(self, cell: Cell) -> None:
        """Namespaces and service accounts."""
        api = self.lab.kubernetes
        if api is None:
            for raw in cell.background():
                self._do(self._client.create(_typed(raw)))
            return
        for name, labels in NAMESPACES.items():
            api.add_namespace(cell.filled(name), cell.filled(labels))
        for (space, name), labels in ACCOUNTS.items():
            body = {"metadata": {"name": name, "labels": cell.filled(labels)}}
            api.ask("POST", f"/api/v1/namespaces/{cell.filled(space)}/serviceaccounts", body)

    def _add_canaries(self) -> None:
        """Two pods on each node, of which one asks the other."""
        self.lab.add_namespace("canary")
        for node in _NODES:
            self.lab.add_pod(f"canary-{node}", node, "canary", {"canary": "yes"}, serving=False)
            self.lab.add_pod(f"asker-{node}", node, "canary", {"asker": "yes"}, serving=False)

    # --- playing --------------------------------------------------------------------------------

    def play(self, cases: Sequence[Case]) -> list[str]:
        """What went otherwise than expected, case by case."""
        waiting = [case for case in cases if not case.node3]
        of_hosts = [case for case in cases if case.node3]
        wrong: list[str] = []
        while waiting or of_hosts:
            now, waiting = waiting[: len(self.cells)], waiting[len(self.cells) :]
            on_stage = list(zip(now, self.cells, strict=False))
            on_stage += [(case, self.hosts_cell) for case in of_hosts[:1]]
            of_hosts = of_hosts[1:]
            wrong += self._play_round(on_stage)
        self._set([])
        return wrong

    def _play_round(self, on_stage: Sequence[tuple[Case, Cell]]) -> list[str]:
        self._round += 1
        resources = [raw for case, cell in on_stage for raw in cell.filled(list(case.resources))]
        self._set(resources)
        names = [case.name for case, _ in on_stage]
        self._wait_for_canaries(names)
        if any(case.node3 for case, _ in on_stage):
            # The tables are written one after the other, and the canary is in one of them only. What is
            # written for a second change comes after all of the first.
            self._round += 1
            self._update_canary()
            self._wait_for_canaries(names)
        tried = [
            (case, cell, probe)
            for case, cell in on_stage
            for probe in case.probes
            if probe.version in self._versions
        ]
        return self._try(tried, again=2)

    def _try(self, tried: Sequence[tuple[Case, Cell, Probe]], again: int) -> list[str]:
        """A packet may be lost on its way for other reasons: what should have arrived is sent `again`."""
        assert self._listeners is not None
        attempts = [self._attempt(cell, probe) for _, cell, probe in tried]
        expected = [case.expect(probe) for case, _, probe in tried]
        arrived = self._listeners.arrived(attempts, expected, patience=10.0)
        wrong, lost = [], []
        for one, should, did in zip(tried, expected, arrived, strict=True):
            if did and not should:
                wrong.append(f"{one[0].name}: {one[2]}: passed, but must be dropped")
            elif should and not did:
                lost.append(one)
        if lost and again:
            return wrong + self._try(lost, again - 1)
        return wrong + [f"{case.name}: {probe}: did not pass" for case, _, probe in lost]

    def _attempt(self, cell: Cell, probe: Probe) -> Attempt:
        return Attempt(
            self._namespaces[cell.number, probe.client],
            self._namespaces[cell.number, probe.server],
            cell.address(probe.server, probe.version),
            probe.protocol,
            probe.port,
            self._next_echo() if probe.protocol in (ICMP, ICMP6) else self._next_port(probe.low),
            probe.icmp,
        )

    def _next_port(self, low: bool) -> int:
        """One not used lately: a connection that is still known would pass as established."""
        if low:
            self._low += 1
            return LOW_PORTS[self._low % len(LOW_PORTS)]
        self._high += 1
        return _HIGH_PORTS[self._high % len(_HIGH_PORTS)]

    def _next_echo(self) -> int:
        """One not used for long: hosts answer, so its connection is known as established for 30 s."""
        self._echo = self._echo % 0xFFFF + 1
        return self._echo

    # --- resources ------------------------------------------------------------------------------

    def _set(self, resources: Sequence[Json]) -> None:
        for old in reversed(self._standing):
            self._do(self._client.delete(type(old), old.name, old.namespace))
        native = [raw for raw in resources if raw["kind"] == NATIVE]
        self._standing = sorted((_typed(raw) for raw in resources if raw["kind"] != NATIVE), key=_rank)
        for new in self._standing:
            self._do(self._client.create(new))
        if native or self._native:
            self._set_native(native)
        self._update_canary()

    def _set_native(self, policies: Sequence[Json]) -> None:
        """Felix follows them by themselves: the last of them, which forbids nothing that the canary's own
        policy allows, shows in the kernel that it has seen them all."""
        assert self.lab.kubernetes is not None
        ask = self.lab.kubernetes.ask
        for old in self._native:
            ask("DELETE", f"{_native_path(old)}/{old['metadata']['name']}")
        mark = f"round-{self._round}"
        spec = {"podSelector": {"matchLabels": {"canary": "yes"}}, "policyTypes": ["Ingress"]}
        last = {"metadata": {"name": mark, "namespace": "canary"}, "spec": spec}
        self._native = [*policies, last]
        for new in self._native:
            ask("POST", _native_path(new), {name: new[name] for name in ("metadata", "spec")})

        def seen() -> bool:
            # Cut short, and a failure, where a set that it names goes while it is listing.
            tables = [
                node.box.run(f"{tables}-save", "-t", "filter", check=False).stdout
                for node in self.lab.nodes.values()
                for tables in ("iptables", "ip6tables")[: len(self._versions)]
            ]
            return all(f"knp.default.{mark} " in table for table in tables)

        wait_until(seen, f"Kubernetes' policies of {mark}", 300)

    def _update_canary(self) -> None:
        for raw in self._canary():
            new = _typed(raw)
            old = self._do(self._client.get(type(new), new.name, new.namespace))
            metadata = structs.replace(old.metadata, labels=new.metadata.labels)
            self._do(self._client.update(structs.replace(new, metadata=metadata)))

    def _canary(self) -> list[Json]:
        """Only echo requests with this round's code leave the askers, and reach the canaries."""
        this = f"round == '{self._round}'"

        def rules(end: str) -> list[Json]:
            echo = [("ICMP", 8), ("ICMPv6", 128)]
            return [
                {
                    "action": "Allow",
                    "protocol": name,
                    "icmp": {"type": kind, "code": self._code},
                    end: {"selector": this},
                }
                for name, kind in echo
            ]

        def of_pods(kind: str, pods: str, **where: str) -> Json:
            nets = [address for node in _NODES for address in self.lab.pods[f"{pods}-{node}"].addresses]
            meta = {"name": "canary", "labels": {"round": f"{self._round}"}, **where}
            return {"kind": kind, "metadata": meta, "spec": {"nets": nets}}

        leave = {"selector": "asker == 'yes'", "types": ["Egress"], "egress": rules("destination")}
        reach = {"selector": "canary == 'yes'", "types": ["Ingress"], "ingress": rules("source")}
        here = {"name": "canary", "namespace": "canary"}
        return [
            of_pods("GlobalNetworkSet", "canary"),
            of_pods("NetworkSet", "asker", namespace="canary"),
            {"kind": "GlobalNetworkPolicy", "metadata": {"name": "canary"}, "spec": leave},
            {"kind": "NetworkPolicy", "metadata": here, "spec": reach},
        ]

    @property
    def _code(self) -> int:
        return 1 + self._round % 250  # 0 is what any other echo request has

    def _wait_for_canaries(self, names: Sequence[str]) -> None:
        what = f"the nodes to enforce round {self._round}: {'; '.join(names)}"
        wait_until(lambda: all(self._canaries_hear(self._code)), what, 300)

    def _canaries_hear(self, code: int) -> list[bool]:
        """Whether an echo request with this code arrives, on each node and in both IP versions."""
        attempts = [
            Attempt(
                self.lab.pods[f"asker-{node}"].netns_fd,
                (canary := self.lab.pods[f"canary-{node}"]).netns_fd,
                canary.address(version),
                ICMP if version == 4 else ICMP6,
                source_port=self._next_echo(),
                icmp=(8 if version == 4 else 128, code),
            )
            for node in _NODES
            for version in self._versions
        ]
        assert self._listeners is not None
        return self._listeners.arrived(attempts, [True] * len(attempts), patience=0.1, settle=0)


def _typed(raw: Json) -> Resource:
    return from_plain(KINDS[raw["kind"]].type, raw)


def _native_path(policy: Json) -> str:
    return f"/apis/networking.k8s.io/v1/namespaces/{policy['metadata']['namespace']}/networkpolicies"


def _rank(resource: Resource) -> int:
    if resource.KIND in _ORDER:
        return _ORDER.index(resource.KIND)
    return len(_ORDER) + (resource.KIND in _LAST)
