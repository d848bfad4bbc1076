"""GC and STATUS of the `calico` plugin: what concerns a network as a whole.

GC removes what containers left behind that the runtime does not know any more: endpoints, interfaces,
addresses, of this node and this network only. What cannot be told to be this network's stays: a leak
can be cleaned up later, a running pod's address given away cannot. (CNI specification 1.1.0.)
"""

import logging
from collections.abc import Awaitable, Callable, Iterable

from tortie.cni import wiring
from tortie.cni.addressing import AddressManager, holdings
from tortie.cni.identity import CNI, K8S, alias
from tortie.cni.operation import Operation, in_thread
from tortie.cni.protocol import Code
from tortie.core.errors import CniError, DatastoreUnreachable, ResourceDoesNotExist, TortieError
from tortie.datastore.keys import BlockList
from tortie.datastore.types.endpoint import WorkloadEndpoint

_log = logging.getLogger(__name__)

_LIMIT = 60.0  # seconds for deleting interfaces; twenty milliseconds each


async def collect(op: Operation, manager: AddressManager, others_busy: Callable[[str], bool]) -> None:
    """Goes on after errors and raises CniError with all of them at the end.

    `others_busy(container_id)`: whether a call for that container is under way or waiting.
    """
    if op.conf.valid_attachments is None:
        raise CniError(Code.INVALID_NETWORK_CONFIG, "GC needs cni.dev/valid-attachments")
    await op.store.ensure_ready()
    valid = frozenset(one.containerID for one in op.conf.valid_attachments)
    marks = {alias(op.conf.name, one.containerID, one.ifname) for one in op.conf.valid_attachments}
    errors: list[str] = []

    async def attempt(what: str, step: Callable[[], Awaitable[object]]) -> None:
        try:
            await step()
        except TortieError as err:
            errors.append(f"{what}: {err}")

    async def endpoints() -> None:
        for stale in await _stale_endpoints(op, valid):
            if not others_busy(stale.spec.containerID):
                _log.info("deleting endpoint %s of a container that is gone", stale.name)
                await attempt(f"endpoint {stale.name}", lambda stale=stale: _delete(op, stale))  # type: ignore[misc]

    def keep(mark: str) -> bool:
        network, _, rest = mark.partition("/")
        return network != op.conf.name or mark in marks or others_busy(rest.partition("/")[0])

    await attempt("endpoints", endpoints)
    await attempt("interfaces", lambda: in_thread(_LIMIT, wiring.delete_marked, keep))
    await attempt("addresses", lambda: manager.collect(op, valid))
    if errors:
        raise CniError(Code.INTERNAL, f"garbage collection is incomplete: {errors[0]}", "; ".join(errors[1:]))


async def _stale_endpoints(op: Operation, valid: frozenset[str]) -> list[WorkloadEndpoint]:
    client = op.store.client
    blocks = await client.backend.list(BlockList())
    held = holdings((kv.value for kv in blocks.items), op.identity.node)
    marks = await in_thread(_LIMIT, wiring.marks)
    networks = {container: network for network, container in held}
    networks |= {mark.split("/")[1]: mark.split("/")[0] for mark in marks if mark.count("/") == 2}
    listed = await client.list(WorkloadEndpoint)
    return list(stale_endpoints(listed.items, op.identity.node, op.conf.name, valid, networks))


def stale_endpoints(
    listed: Iterable[WorkloadEndpoint],
    node: str,
    network: str,
    valid: frozenset[str],
    networks: dict[str, str],
) -> Iterable[WorkloadEndpoint]:
    """Endpoints of this node and network whose container is not valid. Pure.

    Endpoints of pods do not say which network they are of. `networks` (container ID -> network) does for
    a container that still holds addresses or an interface; one that holds neither is nobody's.
    """
    for one in listed:
        spec = one.spec
        if spec.node != node or spec.orchestrator not in (K8S, CNI) or not spec.containerID:
            continue
        if spec.containerID in valid:
            continue
        if network in spec.profiles or networks.get(spec.containerID, network) == network:
            yield one


async def _delete(op: Operation, stale: WorkloadEndpoint) -> None:
    try:
        await op.store.client.delete(WorkloadEndpoint, stale.name, stale.namespace, stale.revision)
    except ResourceDoesNotExist:
        return


async def status(op: Operation, manager: AddressManager) -> None:
    """Raises CniError (50) if a container could not be added now.

    That the pools are full is not reported: it would make the whole node unready, and its pods be
    moved away, while deleting one pod is all that is needed.
    """
    try:
        await op.store.ensure_ready(fresh=True)
        await manager.status(op)
    except DatastoreUnreachable as err:
        raise CniError(Code.NOT_AVAILABLE, "the datastore does not answer", str(err)) from err
    except CniError as err:
        raise CniError(Code.NOT_AVAILABLE, err.msg, err.details) from err
    except TortieError as err:
        raise CniError(Code.NOT_AVAILABLE, str(err)) from err
