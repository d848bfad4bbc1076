"""The little cluster that every policy case is played on, and the words in which cases are written.

A case owns one cell: a namespace with two servers and two clients, and a second namespace with a client.
In the text of its resources `@` stands for the cell's number and `%near4%` for an address of a pod of it:
so many cells, each with its own case, fit into one cluster.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.policy.naive import Packet

Json = dict[str, Any]
TCP, UDP, SCTP, ICMP, ICMP6, ODD = 6, 17, 132, 1, 58, 253  # ODD: for experiments (RFC 3692), has no ports


@dataclass(frozen=True)
class PodKind:
    """One pod of a cell, or the host itself if it has no namespace. `ports`: name -> (protocol, number)."""

    namespace: str
    node: str
    labels: Mapping[str, str]
    ports: Mapping[str, tuple[str, int]]
    account: str = ""


def _server(node: str, role: str, **ports: tuple[str, int]) -> PodKind:
    return PodKind("ns@", node, {"app": "server", "role": role}, ports)


def _client(namespace: str, node: str, tier: str, account: str = "") -> PodKind:
    return PodKind(namespace, node, {"app": "client", "tier": tier}, {}, account)


PODS: dict[str, PodKind] = {  # name in a cell -> what it is
    "srv": _server("node-1", "a", http=("TCP", 8080), dns=("UDP", 5353), signal=("SCTP", 8080)),
    "alt": _server("node-2", "b", http=("TCP", 8081), dns=("UDP", 8080), signal=("SCTP", 9000)),
    "near": _client("ns@", "node-1", "front", "bot"),  # beside srv
    "far": _client("ns@", "node-2", "back"),  # beside alt
    "ext": _client("other@", "node-2", "front", "bot"),  # of another namespace
    # Of the one cell that is about host endpoints: all of these serve and ask.
    "in3": PodKind("ns@", "node-3", {"app": "in3"}, {}),
    "by3": PodKind("ns@", "node-3", {"app": "by3"}, {}),
    "out1": PodKind("ns@", "node-1", {"app": "out1"}, {}),
    "host3": PodKind("", "node-3", {}, {}),
    "host1": PodKind("", "node-1", {}, {}),
    "host2": PodKind("", "node-2", {}, {}),
}
CELL = ("srv", "alt", "near", "far", "ext")
SERVERS = ("srv", "alt")
CELL_OF_HOSTS = ("in3", "by3", "out1", "host3", "host1")
NAMESPACES = {"ns@": {"env": "prod"}, "other@": {"env": "dev"}}  # name -> labels
ACCOUNTS = {("ns@", "bot"): {"team": "a"}, ("other@", "bot"): {"team": "b"}}  # (namespace, name) -> labels
LOW_PORTS = range(1000, 2000)  # source ports of probes that say so; the others' are higher


@dataclass(frozen=True)
class Probe:
    """One attempt, by the names of pods and hosts."""

    client: str
    server: str
    protocol: int = TCP
    port: int = 8080
    version: int = 4
    icmp: tuple[int, int] = (8, 0)
    low: bool = False  # from a source port of LOW_PORTS

    @property
    def space(self) -> str:
        """Of the client: ns or other."""
        return PODS[self.client].namespace.rstrip("@")

    @property
    def tier(self) -> str:
        return PODS[self.client].labels["tier"]

    def __str__(self) -> str:
        name = {TCP: "tcp", UDP: "udp", SCTP: "sctp", ICMP: "icmp", ICMP6: "icmpv6"}.get(
            self.protocol, str(self.protocol)
        )
        detail = f"{self.icmp[0]}/{self.icmp[1]}" if self.protocol in (ICMP, ICMP6) else str(self.port)
        low = " from a low port" if self.low else ""
        return f"{self.client} > {self.server} {name} {detail} IPv{self.version}{low}"


Expect = Callable[[Probe], bool]


@dataclass(frozen=True)
class Case:
    """Resources, and which probes then pass. `node3`: about host endpoints, which only node-3 has."""

    name: str
    resources: tuple[Json, ...]
    expect: Expect
    probes: tuple[Probe, ...]
    node3: bool = False


def kit(version: int) -> Iterable[Probe]:
    """What is tried in every case: each client, each protocol, each way packets go."""
    for client in ("near", "far", "ext"):
        yield Probe(client, "srv", TCP, 8080, version)
        yield Probe(client, "srv", TCP, 8081, version)
        yield Probe(client, "srv", TCP, 8080, version, low=True)
        yield Probe(client, "srv", UDP, 8080, version)
        yield Probe(client, "srv", UDP, 5353, version)
        yield Probe(client, "srv", SCTP, 8080, version)
        yield Probe(client, "srv", icmp_of(version), 0, version, echo(version))
        yield Probe(client, "alt", TCP, 8080, version)
        yield Probe(client, "alt", TCP, 8081, version)
    yield Probe("near", "srv", icmp_of(version), 0, version, (echo(version)[0], 1))
    yield Probe("near", "srv", icmp_of(version), 0, version, (13, 0) if version == 4 else (139, 0))
    yield Probe("near", "srv", ODD, 0, version)
    yield Probe("ext", "alt", UDP, 8080, version)
    yield Probe("near", "alt", SCTP, 9000, version)


def icmp_of(version: int) -> int:
    return ICMP if version == 4 else ICMP6


def echo(version: int) -> tuple[int, int]:
    return (8, 0) if version == 4 else (128, 0)


STANDARD = (*kit(4), *kit(6))


# --- cells --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One copy of the pods. `addresses`: pod or host -> (IPv4, IPv6); `pools`: of each version, as CIDRs."""

    number: int
    addresses: Mapping[str, tuple[str, str]]
    pools: tuple[str, str] = ("192.168.0.0/16", "fd10::/48")

    def filled(self, value: Any) -> Any:
        """JSON data with this cell's numbers and addresses in it."""
        text = json.dumps(value).replace("@", str(self.number))
        for pod, pair in self.addresses.items():
            for version, address in zip((4, 6), pair, strict=True):
                text = text.replace(f"%{pod}{version}%", address)
        for version, pool in zip((4, 6), self.pools, strict=True):
            text = text.replace(f"%pool{version}%", pool)
        return json.loads(text)

    def address(self, pod: str, version: int) -> str:
        return self.addresses[pod][0 if version == 4 else 1]

    def pod_labels(self, pod: str) -> dict[str, str]:
        return {**PODS[pod].labels, "cell": f"c{self.number}"}

    def background(self) -> list[Json]:
        """Namespaces' and service accounts' profiles, as kube-controllers or the backend would give them."""
        spaces = [
            _profile(f"kns.{name}", {f"pcns.{k}": v for k, v in labels.items()}
                     | {"pcns.projectcalico.org/name": name}, allow=True)
            for name, labels in NAMESPACES.items()
        ]  # fmt: skip
        accounts = [
            _profile(f"ksa.{space}.{name}", {f"pcsa.{k}": v for k, v in labels.items()}
                     | {"pcsa.projectcalico.org/name": name}, allow=False)
            for (space, name), labels in ACCOUNTS.items()
        ]  # fmt: skip
        return list(self.filled([*spaces, *accounts]))

    def endpoints(self) -> list[Json]:
        """The pods' WorkloadEndpoints, as the CNI plugin writes them."""
        return [self.endpoint(pod) for pod in self.addresses if PODS[pod].namespace]

    def hosts(self) -> dict[str, list[str]]:
        """Node -> its addresses."""
        return {
            PODS[one].node: list(self.addresses[one]) for one in self.addresses if not PODS[one].namespace
        }

    def endpoint(self, pod: str) -> Json:
        kind = PODS[pod]
        four, six = self.addresses[pod]
        profiles = [f"kns.{kind.namespace}"]
        if kind.account:
            profiles.append(f"ksa.{kind.namespace}.{kind.account}")
        return self.filled(  # type: ignore[no-any-return]
            {
                "kind": "WorkloadEndpoint",
                "metadata": {
                    "name": f"{kind.node.replace('-', '--')}-k8s-{pod}@-eth0",
                    "namespace": kind.namespace,
                    "labels": {**self.pod_labels(pod)},
                },
                "spec": {
                    "orchestrator": "k8s",
                    "node": kind.node,
                    "pod": f"{pod}@",
                    "endpoint": "eth0",
                    "serviceAccountName": kind.account,
                    "ipNetworks": [f"{four}/32", f"{six}/128"],
                    "interfaceName": f"cali{self.number:03}{pod}",
                    "profiles": profiles,
                    "ports": [
                        {"name": name, "protocol": protocol, "port": port}
                        for name, (protocol, port) in kind.ports.items()
                    ],
                },
            }
        )


def _profile(name: str, labels: dict[str, str], *, allow: bool) -> Json:
    rules = [{"action": "Allow"}] if allow else []
    spec = {"ingress": rules, "egress": rules, "labelsToApply": labels}
    return {"kind": "Profile", "metadata": {"name": name}, "spec": spec}


BUILT_IN_TIERS: list[Json] = [  # what every cluster has in its datastore
    {"kind": "Tier", "metadata": {"name": name}, "spec": {"order": order, "defaultAction": action}}
    for name, (order, action) in {
        "kube-admin": (1000, "Pass"),
        "default": (1_000_000, "Deny"),
        "kube-baseline": (10_000_000, "Pass"),
    }.items()
]


def imaginary(number: int, pods: tuple[str, ...] = CELL) -> Cell:
    """A cell for tests without a cluster."""
    addresses = {
        pod: (f"192.168.{number}.{index}", f"fd10::{number:x}:{index:x}") for index, pod in enumerate(pods, 1)
    }
    return Cell(number, addresses)


# --- resources, as short to write as cases want them --------------------------------------------


def policy(name: str, **spec: Any) -> Json:
    """A NetworkPolicy in the cell's own namespace."""
    return {"kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "ns@"}, "spec": spec}


def global_policy(name: str, **spec: Any) -> Json:
    """A GlobalNetworkPolicy; `selector` is limited to the pods of the cell, or those labels it names."""
    selector = spec.pop("selector", "")
    limited = f"({selector}) && cell == 'c@'" if selector else "cell == 'c@'"
    return {
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": f"{name}-c@"},
        "spec": {"selector": limited, **spec},
    }


def tier(name: str, order: float | None = None, action: str = "Deny") -> Json:
    spec: Json = {"defaultAction": action} | ({} if order is None else {"order": order})
    return {"kind": "Tier", "metadata": {"name": f"{name}-c@"}, "spec": spec}


def rule(action: str = "Allow", **fields: Any) -> Json:
    return {"action": action, **fields}


def packet_of(probe: Probe, cell: Cell) -> Packet:
    return Packet(
        cell.address(probe.client, probe.version),
        cell.address(probe.server, probe.version),
        probe.protocol,
        probe.port,
        1000 if probe.low else 40000,
        probe.icmp,
    )
