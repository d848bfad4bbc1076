"""Plays policy cases in a lab: many cells side by side, each with its own case, one round after the other.

A round replaces all resources of the one before, waits until every node enforces them, and sends every
probe of every case at once. That a node is so far is seen from a canary, written last in a round, which
lets only this round's packets pass. Felix takes the changes of one kind in order, but follows each kind by
itself: so a packet reaches the canary by one object of every kind of policy and of set.
"""

import asyncio
import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from msgspec import structs

from tests.policy.board import (
    CELL,
    CELL_OF_HOSTS,
    ICMP,
    ICMP6,
    LOW_PORTS,
    ODD,
    PODS,
    SCTP,
    SERVERS,
    Case,
    Cell,
    Json,
    Probe,
)
from tortie.datastore.codec import from_plain
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.connect import connect
from tortie.datastore.kinds import KINDS
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.meta import Resource
from tortie.lab.cluster import Lab, wait_until
from tortie.lab.packets import Attempt, Listeners
from tortie.linux import netns

_NODES = ("node-1", "node-2", "node-3")
_HIGH_PORTS = range(20000, 32000)  # below those that the kernel gives away by itself
# Kinds in the order they are written; deleted the other way round. What is named comes before who names it.
_ORDER = ["Tier", "Profile", "GlobalNetworkSet", "NetworkSet"]
_LAST = ["HostEndpoint"]  # a host endpoint without its policies cuts its host off


class Stage:
    """The lab with everything on it; a context manager. `cells` cases are played at a time."""

    def __init__(self, lab: Lab, cells: int) -> None:
        self.lab = lab
        self._runner = asyncio.Runner()
        self._client = connect(DatastoreConfig(etcdEndpoints=(lab.etcd.endpoint,)))
        self._cells = range(1, cells + 1)
        self.cells: list[Cell] = []
        self.hosts_cell = Cell(0, {})
        self._namespaces: dict[tuple[int, str], int] = {}  # (cell, pod or host) -> open network namespace
        self._listeners: Listeners | None = None
        self._standing: list[Resource] = []  # of the round before
        self._round = 0
        self._low, self._high = 0, 0  # source ports used up

    def __enter__(self) -> Self:
        pools = {pool.spec.cidr for pool in self._do(self._client.list(IPPool)).items}
        four = next(cidr for cidr in pools if ":" not in cidr)
        six = next(cidr for cidr in pools if ":" in cidr)
        for number in self._cells:
            self.cells.append(self._cell(number, CELL, (four, six)))
        self.hosts_cell = self._cell(0, CELL_OF_HOSTS, (four, six))
        self._add_canaries()
        servers = [
            self._namespaces[cell, pod] for cell, pod in self._namespaces if cell == 0 or pod in SERVERS
        ]
        servers += [self.lab.pods[f"canary-{node}"].netns_fd for node in _NODES]
        self._listeners = Listeners(
            servers, tcp=[8080, 8081, 6666], udp=[8080, 5353, 53], protocols=[ICMP, ICMP6, SCTP, ODD]
        )
        self._wait_for_canaries([])
        # Not because the canaries are open still: nodes may be busy with so many new pods.
        wait_until(lambda: not any(self._canaries_hear(0)), "the canaries to be guarded", 120)
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

    def _cell(self, number: int, names: Iterable[str], pools: tuple[str, str]) -> Cell:
        empty = Cell(number, {}, pools)
        for raw in empty.background():
            self._do(self._client.create(_typed(raw)))
        addresses = {}
        for name in names:
            kind = PODS[name]
            if not kind.namespace:
                node = self.lab.nodes[kind.node]
                self._namespaces[number, name] = netns.open(node.box.netns)
                addresses[name] = node.ip, node.ip6
                continue
            pod = self.lab.add_pod(
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
            self._namespaces[number, name] = pod.netns_fd
            addresses[name] = pod.address(4), pod.address(6)
        return Cell(number, addresses, pools)

    def _add_canaries(self) -> None:
        """Two pods on each node, of which one asks the other."""
        self.lab.add_namespace("canary")
        for node in _NODES:
            self.lab.add_pod(f"canary-{node}", node, "canary", {"canary": "yes"}, serving=False)
            self.lab.add_pod(f"asker-{node}", node, "canary", {"asker": "yes"}, serving=False)
        for raw in self._canary():
            self._do(self._client.create(_typed(raw)))

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
        tried = [(case, cell, probe) for case, cell in on_stage for probe in case.probes]
        return self._try(tried, again=2)

    def _try(self, tried: Sequence[tuple[Case, Cell, Probe]], again: int) -> list[str]:
        """A packet may be lost on its way for other reasons: what should have arrived is sent `again`."""
        assert self._listeners is not None
        attempts = [self._attempt(cell, probe) for _, cell, probe in tried]
        expected = [case.expect(probe) for case, _, probe in tried]
        arrived = self._listeners.arrived(attempts, expected)
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
            self._next_port(probe.low),
            probe.icmp,
        )

    def _next_port(self, low: bool) -> int:
        """One not used lately: a connection that is still known would pass as established."""
        if low:
            self._low += 1
            return LOW_PORTS[self._low % len(LOW_PORTS)]
        self._high += 1
        return _HIGH_PORTS[self._high % len(_HIGH_PORTS)]

    # --- resources ------------------------------------------------------------------------------

    def _set(self, resources: Sequence[Json]) -> None:
        for old in reversed(self._standing):
            self._do(self._client.delete(type(old), old.name, old.namespace))
        self._standing = sorted((_typed(raw) for raw in resources), key=_rank)
        for new in self._standing:
            self._do(self._client.create(new))
        self._update_canary()

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
        wait_until(lambda: all(self._canaries_hear(self._code)), what, 120)

    def _canaries_hear(self, code: int) -> list[bool]:
        """Whether an echo request with this code arrives, on each node and in both IP versions."""
        attempts = [
            Attempt(
                self.lab.pods[f"asker-{node}"].netns_fd,
                (canary := self.lab.pods[f"canary-{node}"]).netns_fd,
                canary.address(version),
                ICMP if version == 4 else ICMP6,
                source_port=self._next_port(False),
                icmp=(8 if version == 4 else 128, code),
            )
            for node in _NODES
            for version in (4, 6)
        ]
        assert self._listeners is not None
        return self._listeners.arrived(attempts, [True] * len(attempts), patience=0.1, settle=0)


def _typed(raw: Json) -> Resource:
    return from_plain(KINDS[raw["kind"]].type, raw)


def _rank(resource: Resource) -> int:
    if resource.KIND in _ORDER:
        return _ORDER.index(resource.KIND)
    return len(_ORDER) + (resource.KIND in _LAST)
