"""What each verb does to one resource: Calico's rules about metadata, revisions and repetition.

(Reference: CLI, 2.3 and 2.4.) Everything a client can refuse arrives as a TortieError.
"""

import asyncio
from typing import Any

import msgspec
from msgspec import UNSET, structs

from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.kinds import of
from tortie.core.errors import (
    OperationNotSupported,
    ResourceAlreadyExists,
    TortieError,
    UpdateConflict,
    ValidationError,
)
from tortie.datastore import codec
from tortie.datastore.client import Client
from tortie.datastore.keys import key_of
from tortie.datastore.rules import refuse_kubernetes_policy
from tortie.datastore.types.meta import ObjectMeta, Resource
from tortie.datastore.types.policy import NetworkPolicy

_UPDATE_TRIES = 5
_UPDATE_PAUSE = 1.0  # seconds between them; both are Calico's


def in_namespace(resource: Resource, given: str, everywhere: bool) -> Resource:
    """The resource with the namespace it is meant for; `given` is --namespace, `everywhere` the -A flag.

    Raises CommandError where file, flags and kind contradict each other.
    """
    own = resource.metadata.namespace
    if not of(resource).namespaced:
        if own:
            raise CommandError(
                "namespace should not be specified for a non-namespaced resource. "
                f"{resource.KIND} is not a namespaced resource"
            )
        if given or everywhere:
            raise CommandError(f"{resource.KIND} is not namespaced")
        return resource
    if given and everywhere:
        raise CommandError("cannot use both --namespace and --all-namespaces flags at the same time")
    if everywhere:
        return resource.with_metadata(namespace="")
    if own and given and own != given:
        raise CommandError(f"resource namespace does not match client namespace. {own} != {given}")
    return resource.with_metadata(namespace=own or given or "default")


async def create(client: Client, resource: Resource) -> Resource:
    _refuse_managed_elsewhere(resource, "create or apply")
    meta = resource.metadata
    kept = ObjectMeta(
        name=meta.name,
        namespace=meta.namespace,
        resourceVersion=meta.resourceVersion,
        labels=meta.labels,
        annotations=meta.annotations,
    )
    return await client.create(structs.replace(resource, metadata=kept))


async def apply(client: Client, resource: Resource) -> Resource:
    if resource.KIND == "ClusterInformation":
        raise OperationNotSupported("apply", "ClusterInformation", "resource is readonly")
    try:
        return await create(client, resource.with_metadata(resourceVersion=""))
    except (ResourceAlreadyExists, OperationNotSupported):
        return await replace(client, resource)


async def replace(client: Client, resource: Resource) -> Resource:
    """Replace what is stored; with a revision only if it is still that, else whatever it is by now."""
    if revision := resource.metadata.resourceVersion:
        stored = await _stored(client, resource)
        if stored.metadata.resourceVersion != revision:
            raise UpdateConflict(key_of(resource))
        return await _update(client, _over(stored, resource))
    for _ in range(_UPDATE_TRIES - 1):
        try:
            return await _put(client, resource)
        except UpdateConflict:
            await asyncio.sleep(_UPDATE_PAUSE)
    return await _put(client, resource)


async def _put(client: Client, resource: Resource) -> Resource:
    try:
        stored = await _stored(client, resource)
    except ValidationError:  # it cannot be read: the way to repair it is to write it anew
        _refuse_managed_elsewhere(resource, "apply or replace")
        return await client.overwrite(resource)
    return await _update(client, _over(stored, resource))


async def delete(client: Client, resource: Resource) -> Resource:
    _refuse_managed_elsewhere(resource, "delete")
    meta = resource.metadata
    if not meta.name:
        raise CommandError("resource name may not be empty")
    # What the datastore will refuse keeps its addresses, too.
    if resource.KIND in ("IPPool", "Node") and ("Delete", resource.KIND) not in client.backend.refused:
        return await _delete_with_addresses(client, resource) or resource
    deleted = await client.delete(type(resource), meta.name, meta.namespace, meta.resourceVersion)
    return deleted or resource


async def _delete_with_addresses(client: Client, resource: Resource) -> Resource | None:
    """A pool or a node goes together with what IPAM keeps of it; one that makes no sense goes alone."""
    from tortie.ipam import cluster  # only these two kinds need the allocator
    from tortie.ipam.allocator import Allocator

    name, revision = resource.metadata.name, resource.metadata.resourceVersion
    remove = cluster.delete_pool if resource.KIND == "IPPool" else cluster.delete_node
    try:
        return await remove(client, Allocator(client), name, revision=revision)
    except ValidationError:
        return await client.delete(type(resource), name, revision=revision)


async def patch(client: Client, resource: Resource, text: str) -> Resource:
    """Apply a strategic merge patch to what is stored."""
    from tortie.calicoctl import manifest, strategicpatch  # no other operation reads documents

    stored = await _stored(client, resource)
    try:
        changes = msgspec.json.decode(text.encode("utf-8", "surrogateescape"))
        patched = strategicpatch.merged(known(stored), changes)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CommandError("performing strategic merge patch: invalid JSON document") from None
    except ValueError as err:
        raise CommandError(f"performing strategic merge patch: {err}") from err
    try:
        (result,) = manifest.from_document(patched)
        if key_of(result) != key_of(resource):
            raise CommandError("the kind, name and namespace of a resource cannot be changed")
    except (CommandError, ValidationError) as err:
        raise CommandError(f"creating resource from patched data: {err}") from err
    try:
        # What this version does not know of the stored object stays in it.
        return await _update(client, structs.replace(result, origin=stored.origin))
    except TortieError as err:
        raise CommandError(f"updating existing resource: {err}") from err


def known(resource: Resource) -> dict[str, Any]:
    """The resource as plain data, with the fields of its type only: what Calico shows and takes back."""
    return codec.to_plain(structs.replace(resource, origin=UNSET))


async def _stored(client: Client, resource: Resource) -> Resource:
    return await client.get(type(resource), resource.metadata.name, resource.metadata.namespace)


async def _update(client: Client, resource: Resource) -> Resource:
    _refuse_managed_elsewhere(resource, "apply or replace")
    return await client.update(resource)


def _over(stored: Resource, resource: Resource) -> Resource:
    """The new resource under the stored one's metadata, except for labels and annotations."""
    meta = structs.replace(
        stored.metadata, labels=resource.metadata.labels, annotations=resource.metadata.annotations
    )
    return structs.replace(resource, metadata=meta)


def _refuse_managed_elsewhere(resource: Resource, operation: str) -> None:
    if resource.KIND == "ClusterInformation":
        raise OperationNotSupported(operation, "ClusterInformation")
    if isinstance(resource, NetworkPolicy):
        refuse_kubernetes_policy(operation, resource)
