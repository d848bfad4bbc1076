"""`datastore migrate import`: what export has printed, into an empty Kubernetes datastore.

The definitions of custom resources are installed first. (Reference: CLI, 3.6.)
"""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec
from msgspec import structs

from tortie.calicoctl import clusterlock, documents, manifest, operations, session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, printable
from tortie.calicoctl.migrateexport import KINDS_IN_ORDER
from tortie.calicoctl.session import Session
from tortie.core.errors import DatastoreError, ResourceDoesNotExist, TortieError, ValidationError
from tortie.datastore import codec, keys
from tortie.datastore.client import Client
from tortie.datastore.keys import BlockList, HandleList, Key
from tortie.datastore.kinds import KINDS
from tortie.datastore.rules import KUBERNETES_POLICY_PREFIX
from tortie.datastore.types.cluster import ClusterInformation
from tortie.datastore.types.meta import Resource
from tortie.datastore.types.node import Node
from tortie.datastore.validate.policy import BUILT_IN_TIERS
from tortie.ipam.store import Store

if TYPE_CHECKING:
    from tortie.datastore.kubernetes.backend import KubernetesBackend

Tell = Callable[[str], object]
_NAMED_BY_OTHERS = (
    "BGPFilter",
)  # come first: in a file of Calico's they stand after the peers that name them
_IPAM_PARTS = ("block_affinities", "blocks", "handles")


def import_resources(call: Call) -> None:
    async def work(current: Session) -> None:
        client = current.client()
        if current.datastore_type != "kubernetes":
            raise CommandError(
                f"invalid datastore type: {current.datastore_type} to import to for datastore migration. "
                "Datastore type must be kubernetes"
            )
        path = call.flags["filename"]
        found = parts(read(path, call.stdin), path)
        await _define(cast("KubernetesBackend", client.backend))
        await carry_out(client, found, call.out)

    session.run(call, work)


async def _define(backend: "KubernetesBackend") -> None:
    try:
        await backend.define_resources()
    except DatastoreError as err:
        told = f"error applying the CRDs necessary to begin datastore import: {err}"
        raise CommandError(told) from err


def read(path: str, stdin: BinaryIO) -> bytes:
    """Raises CommandError."""
    try:
        return manifest.content(path, stdin)
    except OSError as err:
        reason = manifest.reason(err)
        raise CommandError(f"error while reading migration file: open {path}: {reason}") from err


# --- what the file says, all pure -----------------------------------------------------------------


class Parts(msgspec.Struct, frozen=True):
    """`ipam` is the keys and values to create, in their order."""

    resources: list[Resource]
    guid: str
    version: str
    ipam: list[tuple[Key, msgspec.Struct]]


def parts(data: bytes, path: str) -> Parts:
    """Raises CommandError for a file that export has not printed."""
    split = data.split(b"===\n")
    if len(split) != 3:
        raise CommandError(
            f"error while reading migration file: imported file: {path} is improperly formatted. "
            "Try recreating with 'calicoctl export'"
        )
    try:
        resources = [
            resource
            for document in documents.split(split[0])
            for resource in manifest.from_document(documents.parse(document))
        ]
        resources.sort(key=lambda one: one.KIND not in _NAMED_BY_OTHERS)
        cluster = codec.decode(ClusterInformation, split[1])
        return Parts(resources, cluster.spec.clusterGUID, cluster.spec.calicoVersion, list(_ipam(split[2])))
    except (CommandError, ValidationError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise CommandError(f"error while reading migration file: {path}: {err}") from err


def _ipam(data: bytes) -> Iterator[tuple[Key, msgspec.Struct]]:
    found = json.loads(data)
    entries: list[Any] = [entry for part in _IPAM_PARTS for entry in found.get(part) or ()]
    for entry in [*entries, *([found["config"]] if found.get("config") else [])]:
        key = keys.parse(entry["Key"])
        if key is None:
            raise ValueError(f"{entry['Key']!r} is no key of IPAM")
        yield key, codec.decode(key.type, json.dumps(entry["Value"]).encode())


# --- writing it -----------------------------------------------------------------------------------


async def carry_out(client: Client, found: Parts, tell: Tell) -> None:
    """Raises CommandError; what was written until then stays, and the datastore stays locked."""
    if reason := await _in_the_way(client):
        raise CommandError(
            f"datastore already has Calico resources: {reason}. "
            "Clear out all Calico resources by deleting all Calico CRDs"
        )
    await clusterlock.put_for_migration(client)
    tell("Datastore locked.\n")
    await _apply(client, found.resources, tell)
    await _inform(client, found)
    tell("Importing IPAM resources\n")
    await _create(client, found, tell)
    tell(
        "Datastore information successfully imported. Please refer to the datastore migration "
        "documentation for next steps.\n"
    )


async def _in_the_way(client: Client) -> str:
    """What is there that an import would mix with, '' if nothing."""
    for kind in (*KINDS_IN_ORDER, ClusterInformation.KIND):
        if kind == Node.KIND:
            continue  # Kubernetes' own
        page = await client.list(KINDS[kind].type)
        if page.broken or not all(_is_made_by_itself(resource) for resource in page.items):
            return f"found existing Calico {kind} resource"
    for what in (BlockList(), HandleList()):
        listed = await client.backend.list(what)
        if listed.items or listed.broken:
            return "found existing IPAM resources"
    return "found existing IPAM resources" if await Store(client.backend).all_affinities() else ""


def _is_made_by_itself(resource: Resource) -> bool:
    if resource.KIND == "Tier":
        return resource.name in BUILT_IN_TIERS
    return resource.KIND == "NetworkPolicy" and resource.name.startswith(KUBERNETES_POLICY_PREFIX)


async def _apply(client: Client, resources: list[Resource], tell: Tell) -> None:
    done = 0
    errors: list[TortieError] = []
    for resource in resources:
        try:
            await operations.apply(client, resource)
            done += 1
        except ResourceDoesNotExist as err:
            if resource.KIND != Node.KIND:
                errors.append(err)
                continue
            tell(
                f"[WARNING] Attempted to import node {printable(resource.name)} from etcd that references a "
                "nonexistent Kubernetes node. Skipping that node. Non-Kubernetes nodes are not supported in "
                "the Kubernetes datastore and will be skipped.\n"
            )
        except TortieError as err:
            errors.append(err)
    if errors:
        told = " ".join(map(str, errors))
        raise CommandError(f"failed to import v3 resources: hit error(s): [{told}]")
    tell(f"Successfully applied {done} resource(s)\n")


async def _inform(client: Client, found: Parts) -> None:
    """The cluster stays the one it was."""
    try:
        cluster = await client.get(ClusterInformation, "default")
        spec = structs.replace(cluster.spec, clusterGUID=found.guid, calicoVersion=found.version)
        await client.update(structs.replace(cluster, spec=spec))
    except DatastoreError as err:
        raise CommandError(f"failed to update cluster information: {err}") from err


async def _create(client: Client, found: Parts, tell: Tell) -> None:
    errors = []
    for key, value in found.ipam:
        try:
            await client.backend.create(key, value)
        except TortieError as err:
            errors.append(f"error trying to create {key}: {err}")
    done = len(found.ipam) - len(errors)
    if errors:
        if done:
            tell(f"Partial success: applied the first {done} out of {len(found.ipam)} resources:\n")
        raise CommandError(f"hit error(s): [{' '.join(errors)}]")
    tell(f"Successfully applied {done} IPAM resource(s)\n")
