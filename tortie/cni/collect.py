"""GC and STATUS of the `calico` plugin: what concerns a network as a whole.

GC removes what containers left behind that the runtime does not know any more: endpoints, interfaces,
addresses, of this node and this network only. What cannot be told to be this network's stays: a leak
can be cleaned up later, a running pod's address given away cannot. (CNI specification 1.1.0.)
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

from tortie.cni import wiring
from tortie.cni.addressing import AddressManager, Holder, holders
from tortie.cni.identity import CNI, K8S, alias, marked
from tortie.cni.operation import Operation, in_thread
from tortie.cni.protocol import Code
from tortie.core.errors import CniError, DatastoreUnreachable, ResourceDoesNotExist, TortieError
from tortie.datastore.keys import BlockList
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.linux.links import Link

_log = logging.getLogger(__name__)

_LIMIT = 60.0  # seconds for deleting interfaces; twenty milliseconds each


@dataclass(frozen=True, slots=True)
class Scope:
    """What a GC is about. `busy(container)`: a call for it is under way or waiting."""

    network: str
    valid: frozenset[str]  # container IDs
    marks: frozenset[str]  # aliases of the valid attachments' interfaces
    busy: Callable[[str], bool]

    def spared(self, container: str) -> bool:
        return container in self.valid or self.busy(container)


async def collect(op: Operation, manager: AddressManager, busy: Callable[[str], bool]) -> None:
    """Goes on after errors and raises CniError with all of them at the end; `busy` as in Scope."""
    if op.conf.valid_attachments is None:
        raise CniError(Code.INVALID_NETWORK_CONFIG, "GC needs cni.dev/valid-attachments")
    await op.store.ensure_ready()
    network, attachments = op.conf.name, op.conf.valid_attachments
    scope = Scope(
        network=network,
        valid=frozenset(one.containerID for one in attachments),
        marks=frozenset(alias(network, one.containerID, one.ifname) for one in attachments),
        busy=busy,
    )
    await op.later.forgive(lambda one: one.network == network and not scope.spared(one.container_id))
    errors: list[str] = []

    async def attempt(what: str, step: Callable[[], Awaitable[object]]) -> None:
        try:
            await step()
        except TortieError as err:
            errors.append(f"{what}: {err}")

    async def endpoints_and_interfaces() -> None:
        held, links, listed = await _look(op)
        for stale in stale_endpoints(scope, listed, held, links):
            _log.info("deleting endpoint %s of a container that is gone", stale.name)
            await attempt(f"endpoint {stale.name}", partial(_delete, op, stale))
        for name in stale_interfaces(scope, listed, held, links):
            _log.info("deleting interface %s of a container that is gone", name)
            await attempt(f"interface {name}", partial(in_thread, _LIMIT, wiring.delete_name, name))

    await attempt("looking", endpoints_and_interfaces)
    await attempt("addresses", lambda: manager.collect(op, scope.spared))
    if errors:
        raise CniError(Code.INTERNAL, f"garbage collection is incomplete: {errors[0]}", "; ".join(errors[1:]))
    op.later.forget_gone(network, scope.spared)


async def _look(op: Operation) -> tuple[set[Holder], list[Link], list[WorkloadEndpoint]]:
    blocks = await op.store.client.backend.list(BlockList())
    held = holders((kv.value for kv in blocks.items), op.identity.node, op.identity.prefix)
    links = await in_thread(_LIMIT, wiring.host_links)
    listed = await op.store.client.list(WorkloadEndpoint)
    return held, links, [one for one in listed.items if one.spec.node == op.identity.node]


async def _delete(op: Operation, stale: WorkloadEndpoint) -> None:
    try:
        await op.store.client.delete(WorkloadEndpoint, stale.name, stale.namespace, stale.revision)
    except ResourceDoesNotExist:
        return


# --- what is stale; pure ------------------------------------------------------------------------


def stale_endpoints(
    scope: Scope, listed: Iterable[WorkloadEndpoint], held: Iterable[Holder], links: Iterable[Link]
) -> list[WorkloadEndpoint]:
    """Endpoints of the network's containers that are not spared.

    Endpoints of pods do not say which network they are of. Their interfaces do, else whatever addresses
    and interfaces the container still has; one that has neither is nobody's.
    """
    marks = {link.name: marked_for(link) for link in links}  # interface -> (network, container)
    networks: dict[str, set[str]] = {}  # container -> its networks
    for network, container in (*((one.network, one.container) for one in held), *marks.values()):
        networks.setdefault(container, set()).add(network)

    def of(one: WorkloadEndpoint) -> set[str]:
        network, container = marks.get(one.spec.interfaceName, ("", ""))
        if container == one.spec.containerID:
            return {network}
        return networks.get(one.spec.containerID, {scope.network})

    return [
        one
        for one in listed
        if one.spec.orchestrator in (K8S, CNI)
        and one.spec.containerID
        and not scope.spared(one.spec.containerID)
        and (scope.network in one.spec.profiles or scope.network in of(one))
    ]


def stale_interfaces(
    scope: Scope, listed: Iterable[WorkloadEndpoint], held: Iterable[Holder], links: Iterable[Link]
) -> list[str]:
    """Interfaces marked as the network's, and unmarked ones that only a container that is gone could have.

    The latter are left by a crash between making and marking one. Never one that an endpoint of a
    living container names: a pod's name, and so its interface's, outlives its containers.
    """
    living = {one.spec.interfaceName for one in listed if scope.spared(one.spec.containerID)}
    dead = (one for one in held if one.network == scope.network and not scope.spared(one.container))
    orphans = {one.interface for one in dead} - living
    found = []
    for link in links:
        network, container = marked_for(link)
        if (network == scope.network and link.alias not in scope.marks and not scope.busy(container)) or (
            not link.alias and link.name in orphans
        ):
            found.append(link.name)
    return found


def marked_for(link: Link) -> tuple[str, str]:
    """(network, container) of an interface that this plugin made; '' and '' of any other."""
    return marked(link.alias)


async def status(op: Operation, manager: AddressManager) -> None:
    """Raises CniError (50) if a container could not be added now.

    That the pools are full is not reported: it would make the whole node unready, and its pods be
    moved away, while deleting one pod is all that is needed.
    """
    try:
        await op.store.ensure_ready(fresh=True)
        await manager.status(op)
        if problem := op.later.problem:
            raise CniError(Code.NOT_AVAILABLE, problem)
    except DatastoreUnreachable as err:
        raise CniError(Code.NOT_AVAILABLE, "the datastore does not answer", str(err)) from err
    except CniError as err:
        raise CniError(Code.NOT_AVAILABLE, err.msg, err.details) from err
    except TortieError as err:
        raise CniError(Code.NOT_AVAILABLE, str(err)) from err
