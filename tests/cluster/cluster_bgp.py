"""BGP as a user of the cluster meets it: BGPPeer resources, and what `calicoctl node status` says."""

import json
import re
from collections.abc import Iterable

from tortie.bgp.status import read as read_status
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


def hold_times(lab: Lab) -> set[int]:
    """Seconds, of all established sessions; empty while any node has one that is not, or a reload to do."""
    found: set[int] = set()
    for node in lab.nodes.values():
        said = read_status(str(node.box.path("/run/calico/bgp-status.json")))
        if said is None or said.configuration != "loaded" or any(p.state != "up" for p in said.peers):
            return set()
        found.update(peer.hold_time for peer in said.peers)
    return found


def await_status(lab: Lab, node: LabNode, address: str, *words: str, timeout: float = 60) -> None:
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
        said = read_status(str(node.box.path("/run/calico/bgp-status.json")))
        return {peer.address: peer.received for peer in said.peers} if said else {}

    def so() -> bool:
        found = heard()
        return all(found.get(address) == count for address in addresses)

    wait_until(so, f"{count} prefixes on {node.name} from {addresses}", 60, lambda: str(heard()))
