"""BGP as a user of the cluster meets it: BGPPeer resources, and what `calicoctl node status` says."""

import json
import re
from collections.abc import Iterable

from tests.support.routingtables import OURS, OURS_WITH_BIRD, shapes
from tortie.bgp import ask
from tortie.bgp.status import Status
from tortie.core.paths import Paths
from tortie.lab.cluster import Lab, LabNode, wait_until


class Peers:
    """BGPPeer resources, stored as a user would."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._names: set[str] = set()

    def apply(self, name: str, **spec: object) -> None:
        apply(self._lab, "BGPPeer", name, spec)
        self._names.add(name)

    def clear(self) -> None:
        for name in sorted(self._names):
            calicoctl(self._lab, "delete", "bgppeer", name)
        self._names.clear()


def apply(lab: Lab, kind: str, name: str, spec: object) -> None:
    resource = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec}
    calicoctl(lab, "apply", "-f", "-", stdin=json.dumps(resource))


def calicoctl(lab: Lab, *args: str, stdin: str = "") -> None:
    answer = lab.calicoctl(*args, stdin=stdin)
    assert answer.returncode == 0, answer.stderr + answer.stdout


def status(lab: Lab, node: LabNode, address: str) -> tuple[str, ...]:
    """The peer's row of `calicoctl node status`: type, state, info; () if it is not there."""
    shown = lab.calicoctl("node", "status", node=node.name).stdout
    cells = rf"\| {re.escape(address)} +\| (.*\S) +\| (\S+) +\| \d\d:\d\d:\d\d \| (.*\S) +\|"
    row = re.search(f"^{cells}$", shown, re.M)
    return tuple(cell.rstrip() for cell in row.groups()) if row else ()


_LEARNED = {"exabgp": "proto bgp onlink", "bird": "proto bird metric 1024"}  # speaker -> a route's end


def check_routes(lab: Lab, node: LabNode) -> None:
    """The node's IPv4 routes are those to its pods and the other nodes' blocks, each as people know it.

    Waits for them: that pods reach each other says nothing of the route to the node's own block.
    """
    learned = _LEARNED[node.speaker]
    pods = [pod.address() for pod in lab.pods.values() if pod.box is node.box]
    others = [other.ip for other in lab.nodes.values() if other is not node]
    block = r"192\.168\.\d+\.\d+/26"
    lines = [
        rf"blackhole {block} {' '.join(learned.split()[:2])} ",
        *(rf"{re.escape(pod)} dev cali[0-9a-f]{{11}} scope link " for pod in pods),
        *(rf"{block} via {re.escape(other)} dev eth0 {learned} " for other in others),
    ]
    shown: list[str] = []

    def shape(text: str) -> bool:
        return shapes(text) == (OURS if node.speaker == "exabgp" else OURS_WITH_BIRD)["direct"]

    def so() -> bool:
        text = node.box.output("ip", "route")
        shown[:] = [text, *(line for line in lines if len(re.findall(f"^{line}$", text, re.M)) != 1)]
        return len(shown) == 1 and shape(text)

    wait_until(so, f"the routes of {node.name}", 240, lambda: "\nnot once: ".join(shown))


def bgp_status(node: LabNode) -> Status | None:
    """What the node's BGP speaker does, whichever it is."""
    return ask.status(Paths(run=str(node.box.path("/run/calico"))))


def hold_times(lab: Lab) -> set[int]:
    """Seconds, of all established sessions; empty while any node has one that is not, or a reload to do."""
    found: set[int] = set()
    for node in lab.nodes.values():
        said = bgp_status(node)
        if said is None or said.configuration != "loaded" or any(p.state != "up" for p in said.peers):
            return set()
        found.update(peer.hold_time for peer in said.peers)
    return found


def await_status(lab: Lab, node: LabNode, address: str, *words: str, timeout: float = 240) -> None:
    """Wait for a row that begins so; without words, for there to be none."""

    def so() -> bool:
        found = status(lab, node, address)
        return found[: len(words)] == words if words else not found

    def shown() -> str:
        return lab.calicoctl("node", "status", node=node.name).stdout

    wait_until(so, f"{address} to be {words} on {node.name}", timeout, shown)


def await_heard(node: LabNode, addresses: Iterable[str], count: int) -> None:
    """Wait until each of these peers has told the node so many prefixes; Established says nothing yet."""

    def heard() -> dict[str, int]:
        said = bgp_status(node)
        return {peer.address: peer.received for peer in said.peers} if said else {}

    def so() -> bool:
        found = heard()
        return all(found.get(address) == count for address in addresses)

    wait_until(so, f"{count} prefixes on {node.name} from {addresses}", 240, lambda: str(heard()))
