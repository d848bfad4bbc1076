"""The worlds of worlds.py on a real node: namespaces for pods, felix's calculation and driver, packets."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.felix.driver_lab import Felix
from tests.felix.nft_rulesets import nft_picture
from tests.felix.node_lab import Node, comparable
from tests.felix.packets import Ear, Identity, Mouth, heard, identity
from tests.felix.worlds import HOST, NODE, OUTSIDE, PODS, SETTINGS, Place
from tests.netns_lab import eventually
from tortie.datastore.keys import Key
from tortie.datastore.syncer import Update
from tortie.felix.calc.graph import Calculation, Inputs, State
from tortie.felix.rules import names
from tortie.felix.rules.evaluate import FORWARDED, INWARD, OUTWARD, Packet, Ruleset, Sets

_STATIC_SETS = (names.MASQUERADED_POOLS, names.ALL_POOLS, names.DSCP_SOURCES, names.THIS_HOST)


def members_of(state: State) -> dict[str, frozenset[str]]:
    """The IP sets of a state, for the evaluator; those for translation are empty in these worlds."""
    members = {ident: frozenset(one.v4 | one.v6) for ident, one in state.sets.items()}
    return {**members, **dict.fromkeys(_STATIC_SETS, frozenset[str]())}


def sets_of(state: State) -> Sets:
    return Sets(members_of(state))


def path_of(packet: Packet) -> tuple[tuple[str, str], ...]:
    """The kernel chains a packet meets."""
    if not packet.in_interface:
        return OUTWARD
    return FORWARDED if packet.out_interface else INWARD


class Cluster:
    def __init__(self, node: Node, backend: str = "nft", **more: Any) -> None:
        """`backend`: `nft` or `legacy` of iptables, or `nftables`; `more`: the driver's options."""
        self.node = node
        for place in PODS:
            node.pod(place.name)
        self.namespaces = {pod.name: pod.ns for pod in node.pods.values()}
        self.namespaces |= {OUTSIDE.name: node.outside, HOST.name: node.ns}
        for way in ("10.65.0.0/16 via 172.16.0.1", "fd65::/64 via fd16::1"):
            node.outside.sh(f"ip route add {way}")
        self.sent = 0  # packets so far: no two may look like one connection
        self.objects: dict[Key, Any] = {}
        self.calc = Calculation(Inputs(NODE))
        self._nftables = backend == "nftables"
        options: dict[str, Any] = {"nftables": True} if self._nftables else {"backend": backend}
        self.felix = Felix(node, settings=SETTINGS, **options, **more)
        self.felix.state = self.calc.state
        self.mouths = {name: Mouth(ns) for name, ns in self.namespaces.items()}
        self.ears = {name: Ear(ns) for name, ns in self.namespaces.items()}

    def become(self, objects: Mapping[Any, Any]) -> None:
        """Tell felix what changed, and let it apply that."""
        self.tell(objects)
        self.apply()

    def tell(self, objects: Mapping[Any, Any]) -> None:
        for key in self.objects.keys() - objects.keys():
            self.calc.update(Update("deleted", key, None))
        for key, value in objects.items():
            if self.objects.get(key) != value:
                self.calc.update(Update("updated", key, value))
        self.objects = dict(objects)

    def apply(self) -> None:
        touched = self.calc.flush()
        eventually(lambda: self.felix.apply(touched))  # as Felix.settle()

    def try_out(self, packets: Sequence[tuple[Place, Place, Packet]], expected: Sequence[bool]) -> list[bool]:
        """Whether each packet came through; those that are expected to are waited for."""
        numbered = [(*one, self.sent + number) for number, one in enumerate(packets)]
        self.sent += len(packets)
        for source, _, packet, number in numbered:
            self.mouths[source.name].send(packet, number)
        wanted: dict[str, set[Identity]] = {}
        for (_, target, packet, number), comes in zip(numbered, expected, strict=True):
            if comes:
                wanted.setdefault(target.name, set()).add(identity(packet, number))
        found = heard(self.ears, wanted)
        return [identity(packet, number) in found[target.name] for _, target, packet, number in numbered]

    def rulesets(self) -> dict[int, Ruleset]:
        """What felix wants to stand in the kernel."""
        return self.felix.driver.rulesets()

    def saved(self) -> dict[str, list[str]]:
        """All chains and sets of the kernel, in an order that does not depend on history."""
        if self._nftables:
            return nft_picture(self.node.ns)
        found = {
            name: _by_chain(self.node.ns.run(name)) for name in ("iptables-nft-save", "ip6tables-nft-save")
        }
        sets = self.node.ns.run("ipset", "save").splitlines()
        # Link-local addresses and the salt of a set's hashes are the kernel's choice.
        found["ipset"] = sorted(
            re.sub(r" (bucketsize|initval) \S+", "", line) for line in sets if " fe80:" not in line
        )
        return found

    def close(self) -> None:
        self.felix.close()
        for mouth in self.mouths.values():
            mouth.close()
        for ear in self.ears.values():
            ear.close()


def _by_chain(text: str) -> list[str]:
    """Lines of iptables-save, those of one chain together and in their order."""
    table, found = "", list[tuple[str, str, int, str]]()
    for number, line in enumerate(comparable(text), 1):
        if line.startswith("*"):
            table = line
        elif line.startswith(":"):
            found.append((table, line[1:].split()[0], 0, line))
        elif line.startswith("-"):
            found.append((table, line.split()[1], number, line))
    return [f"{table} {line}" for table, _, _, line in sorted(found)]
