"""A workload's endpoints in the datastore: found, written, deleted, whoever else changes them meanwhile."""

import contextlib
import logging
from collections.abc import Sequence

from tortie.cni import attachments, endpoint, wiring
from tortie.cni.attachments import Marks
from tortie.cni.identity import Identity
from tortie.cni.operation import in_thread
from tortie.cni.protocol import Code
from tortie.core.errors import CniError, ResourceAlreadyExists, ResourceDoesNotExist, UpdateConflict
from tortie.datastore.client import Client
from tortie.datastore.keys import ResourceKey
from tortie.datastore.names import endpoint_name_prefix
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.policy import Profile

_log = logging.getLogger(__name__)

TRIES = 6  # writes of an endpoint that somebody else changes at the same time, as in Calico
_LOOK_LIMIT = 20.0  # seconds for looking at interfaces


async def listed(client: Client, identity: Identity) -> list[WorkloadEndpoint]:
    """Those whose names start like the workload's. One of its own that nobody can read is deleted."""
    prefix = endpoint_name_prefix(identity.ids())
    found = await client.list(WorkloadEndpoint, identity.namespace, prefix)
    for broken in found.broken:
        if isinstance(broken.key, ResourceKey) and identity.names(broken.key.name):
            _log.warning("deleting endpoint %s, which cannot be read: %s", broken.where, broken.error)
            with contextlib.suppress(ResourceDoesNotExist):
                await client.delete(WorkloadEndpoint, broken.key.name, broken.key.namespace)
    return found.items


async def marks(identity: Identity, owned: Sequence[WorkloadEndpoint]) -> Marks:
    """The marks of the interfaces of a workload's endpoints; none where nothing depends on them."""
    if not attachments.needs_marks(identity, owned):
        return {}
    return await in_thread(_LOOK_LIMIT, wiring.marks, [one.spec.interfaceName for one in owned])


async def find(client: Client, identity: Identity) -> WorkloadEndpoint | None:
    """The one that an ADD changes."""
    owned = attachments.own(identity, await listed(client, identity))
    return attachments.placed(identity, owned, await marks(identity, owned))[1]


async def write(
    client: Client,
    identity: Identity,
    made: WorkloadEndpoint,
    existing: WorkloadEndpoint | None,
    *,
    same_pod: bool = False,
) -> WorkloadEndpoint:
    """Create the endpoint, or bring the existing one up to date; returns what is stored.

    `same_pod`, where a pod itself is the endpoint: ResourceDoesNotExist, unless it is the very pod's.
    """
    for attempt in range(TRIES):
        if same_pod and (existing is None or existing.metadata.uid != identity.uid):
            raise ResourceDoesNotExist(f"pod {identity} with UID {identity.uid}")
        try:
            if existing is None:
                return await client.create(made)
            return await client.update(endpoint.onto(existing, made))
        except (UpdateConflict, ResourceDoesNotExist, ResourceAlreadyExists) as err:
            if attempt + 1 == TRIES:
                raise
            _log.info("writing endpoint %s again: %s", made.name, err)
            existing = await find(client, identity)
    raise AssertionError("unreachable")


async def ensure_profile(client: Client, network: str, orchestrator: str) -> None:
    """Without a policy type the network itself is a profile; this plugin creates it, and never changes it."""
    try:
        await client.get(Profile, network)
    except ResourceDoesNotExist:
        with contextlib.suppress(ResourceAlreadyExists):
            await client.create(endpoint.network_profile(network, orchestrator))


async def delete(client: Client, found: WorkloadEndpoint) -> None:
    with contextlib.suppress(ResourceDoesNotExist):
        await client.delete(WorkloadEndpoint, found.name, found.namespace, found.revision)


async def delete_own(client: Client, identity: Identity, found: WorkloadEndpoint) -> None:
    """Delete an endpoint of this container; a pod's newer sandbox keeps its own."""
    for attempt in range(TRIES):
        owner = found.spec.containerID
        if owner and owner != identity.container_id:
            _log.warning("CNI_CONTAINERID does not match WorkloadEndpoint ContainerID, don't delete WEP.")
            return
        try:
            await delete(client, found)
            return
        except UpdateConflict as err:
            if attempt + 1 == TRIES:
                raise CniError(
                    Code.TRY_AGAIN_LATER,
                    f"error deleting endpoint: endpoint was modified before it could be deleted: {err}",
                ) from err
        try:
            found = await client.get(WorkloadEndpoint, found.name, found.namespace)
        except ResourceDoesNotExist:
            return
