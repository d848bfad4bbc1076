"""Which addresses nobody uses any more, and of which nodes nothing is left. Pure.

An address whose pod is gone is a candidate; after the grace period it is a leak. Of a node that is gone
every such address is one at once, but only if no pod still speaks for the node: as long as one does, it
may come back. A handle is one owner's: it is given up as a whole or not at all.
A VM's address outlives its pods, and is a leak when the VM is gone (machines.py). What cannot be judged,
because no pod is named, counts as used.
(Reference: kube-controllers/pkg/controllers/node/ipam.go; design/ipam/ipam-gc.md.)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tortie.controllers.machines import Machines, Name, runs
from tortie.datastore.types.pod import Pod
from tortie.ipam import addresses
from tortie.ipam.audit import Allocation
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.names import (
    NAMESPACE,
    NODE,
    POD,
    TUNNEL_HANDLES,
    TYPE,
    WINDOWS_RESERVED_HANDLE,
    clean_handle,
    is_warm,
)
from tortie.ipam.owners import is_machines

Id = tuple[str, str, int]  # handle, address, sequence number: the same address given anew is another
_MACHINE_GRACE = 300.0  # seconds at least for a VM's, Calico's: also where there is none for pods


class Home(Enum):
    """What is known of the node that uses an address."""

    HERE = "here"
    GONE = "gone"
    FOREIGN = "foreign"  # no Kubernetes node, so Kubernetes says nothing about it


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is judged. `owners`: nodes that own blocks, also empty ones; `machines` None: not known."""

    allocations: Sequence[Allocation]
    owners: Iterable[str]
    home: Callable[[str], Home]
    pods: Mapping[Name, Pod]
    kubernetes_name: Callable[[str], str] = lambda node: node  # of a node; "" if not known
    machines: Machines | None = None


@dataclass(slots=True)
class Verdict:
    """`suspects` is to be given to the next judgement: candidate -> since when (clock time)."""

    suspects: dict[Id, float] = field(default_factory=dict)
    leaked: list[Allocation] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)  # nodes whose blocks are to be released, after the leaks
    next_at: float | None = None  # when a candidate becomes a leak


def judge(picture: Picture, suspects: Mapping[Id, float], now: float, grace: float) -> Verdict:
    """`grace` in seconds; 0: pods' addresses of nodes that exist are never leaks, only candidates."""
    verdict = Verdict()
    confirmed: list[Allocation] = []
    by_node: dict[str, list[Allocation]] = {node: [] for node in picture.owners}
    for one in picture.allocations:
        by_node.setdefault(one.node, []).append(one)
    for node, found in sorted(by_node.items()):
        if not node:  # a stopped VM's in a block that nobody owns; of others nothing can be told
            found = [one for one in found if is_machines(one.attribute)]
        home = picture.home(node) if node else Home.HERE
        if home is Home.GONE:
            confirmed += _of_gone_node(node, found, picture, verdict)
        elif home is Home.HERE:
            confirmed += _of_node(found, picture, suspects, now, grace, verdict)
    verdict.leaked = _whole_handles(confirmed, picture.allocations)
    return verdict


def _of_node(
    found: Iterable[Allocation],
    picture: Picture,
    suspects: Mapping[Id, float],
    now: float,
    grace: float,
    verdict: Verdict,
) -> list[Allocation]:
    confirmed = []
    for one in found:
        if in_use(one, True, picture):
            continue
        since = verdict.suspects[id_of(one)] = suspects.get(id_of(one), now)
        patience = max(grace, _MACHINE_GRACE) if is_machines(one.attribute) else grace
        if patience > 0 and now >= since + patience:
            confirmed.append(one)
        elif patience > 0:
            verdict.next_at = min(verdict.next_at or since + patience, since + patience)
    return confirmed


def _of_gone_node(
    node: str, found: Iterable[Allocation], picture: Picture, verdict: Verdict
) -> list[Allocation]:
    """The tunnels' addresses go last: with them goes the node."""
    confirmed, nodes_own, somebody = [], [], False
    for one in found:
        if _is_windows(one) or one.cooling:
            continue  # these go with their block
        if _is_nodes_own(one):
            nodes_own.append(one)
        elif in_use(one, False, picture):
            somebody = True
        else:
            confirmed.append(one)
    if not somebody:
        confirmed += nodes_own
        verdict.gone.append(node)
    return confirmed


def _whole_handles(confirmed: Sequence[Allocation], everything: Iterable[Allocation]) -> list[Allocation]:
    """Without those whose handle still holds an address that is none of them."""
    leaked = {id_of(one) for one in confirmed}
    kept = {one.handle for one in everything if one.handle and not one.cooling and id_of(one) not in leaked}
    return [one for one in confirmed if one.handle not in kept]


# --- one address --------------------------------------------------------------------------------


def id_of(one: Allocation) -> Id:
    return one.handle, one.address, one.sequence_number


def pod_of(one: Allocation) -> Name:
    return one.known(NAMESPACE), one.known(POD)


def release_of(one: Allocation) -> ReleaseRequest:
    """Only if it is still the very allocation that was judged."""
    return ReleaseRequest(one.address, one.handle, one.sequence_number)


def in_use(one: Allocation, node_exists: bool, picture: Picture) -> bool:
    """Whether somebody uses an address, as far as can be told: in doubt, yes."""
    if one.cooling or _is_windows(one):
        return True
    if is_machines(one.attribute):
        return picture.machines is None or runs(one, picture.pods) or picture.machines.has(one)
    if _is_nodes_own(one):
        return node_exists
    if not all(pod_of(one)):
        return True
    pod = picture.pods.get(pod_of(one))
    return pod is not None and _has(pod, one, picture.kubernetes_name(one.known(NODE)))


def _has(pod: Pod, one: Allocation, node: str) -> bool:
    """Whether a pod of that name is the one that the address was given to."""
    if pod.spec.nodeName and node and pod.spec.nodeName != node:
        return False  # it is another one, elsewhere
    if pod.status.phase == "Failed" and pod.status.reason == "Evicted":
        return False  # kubelet keeps it only to be read
    if not pod.status.podIP and not pod.status.podIPs:
        return True  # kubelet has not told yet
    named = {pod.status.podIP, *(each.ip for each in pod.status.podIPs)} - {""}
    # A pod with several networks tells only the first one's addresses.
    return pod.metadata.annotations.get(_NETWORKS) is not None or one.address in map(_canonical, named)


_NETWORKS = "k8s.v1.cni.cncf.io/network-status"  # annotation that Multus writes


def _canonical(text: str) -> str:
    try:
        return str(addresses.address(text))
    except ValueError:
        return text


def _is_nodes_own(one: Allocation) -> bool:
    """A tunnel's address, or one that is kept for the node's next pod."""
    return one.known(TYPE) in TUNNEL_HANDLES or is_warm(one.attribute.handle_id)


def _is_windows(one: Allocation) -> bool:
    return clean_handle(one.attribute.handle_id).lower() == WINDOWS_RESERVED_HANDLE
