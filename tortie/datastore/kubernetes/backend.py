"""The Kubernetes backend: custom resources, pods and nodes behind the contract that etcd keeps too.

Compare-and-swap is the API's: a write carries the resourceVersion it is based on, a deletion has it as
its precondition. A listing that comes from two collections has both revisions, joined by "/".

What is different from etcd: leases do not exist, so what is applied for a time stays; Felix' statuses
have no place; profiles and Kubernetes' own policies can only be read. A node is compared in what is
ours of it, because kubelet writes the rest every few seconds.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from tortie.core.errors import (
    ConfigError,
    DatastoreError,
    OperationNotSupported,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    UpdateConflict,
)
from tortie.datastore.backend import KV, Listed, WatchEvent
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.keys import AffinityKey, AffinityList, Key, Listing, ResourceKey, ip_version
from tortie.datastore.kubernetes import nodes, pods, writing
from tortie.datastore.kubernetes.api import Api, Refused
from tortie.datastore.kubernetes.customresource import GROUP_VERSION, WITH_STATUS, to_custom_resource
from tortie.datastore.kubernetes.http import TIMING, Timing
from tortie.datastore.kubernetes.ipamresource import affinity_labels
from tortie.datastore.kubernetes.kubeconfig import locate
from tortie.datastore.kubernetes.listing import (
    at_revision,
    check_revision,
    list_all,
    read_page,
    watch_all,
)
from tortie.datastore.kubernetes.reading import metadata_of
from tortie.datastore.kubernetes.services import DISCOVERY, slices_version
from tortie.datastore.kubernetes.sources import Place, Sources, slices_source
from tortie.datastore.nativekeys import ServiceKey, SliceList
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.node import Node
from tortie.datastore.types.service import Ingress

_LEASES = "/apis/coordination.k8s.io/v1/namespaces"
_TRIES = 5  # times something is begun anew because an object changed meanwhile that must not matter
_REWRITTEN = "projectcalico.org/rewritten"  # annotation that makes a write of the same value a change
# Nodes are kubelet's, profiles are read out of namespaces and service accounts.
_REFUSED = frozenset(
    {
        ("Create", "Node"),
        ("Delete", "Node"),
        ("Create", "Profile"),
        ("Update", "Profile"),
        ("Delete", "Profile"),
    }
)


class _ConfigMap(msgspec.Struct, frozen=True):
    data: dict[str, str] = {}


class KubernetesBackend:
    """Implements datastore.backend.Backend."""

    refused = _REFUSED

    def __init__(self, config: DatastoreConfig, timing: Timing = TIMING) -> None:
        """Reads kubeconfig, but does not touch the network yet. Raises ConfigError."""
        if config.calicoAPIGroup.lower() == "projectcalico.org/v3":
            raise ConfigError("calicoAPIGroup", config.calicoAPIGroup, f"this build serves {GROUP_VERSION}")
        self._api = Api(locate(config), config.k8sClientQPS, config.k8sClientBurst, timing)
        self._sources = Sources(config.usePodCIDR)
        self._labelled: set[str] = set()  # hosts whose affinities are known to have labels

    async def close(self) -> None:
        await self._api.close()

    # --- single objects -------------------------------------------------------------------------

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        place = self._place("Create", key)
        if isinstance(value, WorkloadEndpoint):
            return await self._write_addresses(key, place, value)
        body = writing.body("Create", key, place, value)
        for _ in range(_TRIES):
            try:
                raw = await self._api.create(place.collection, body)
            except Refused as err:
                if err.reason != "AlreadyExists":
                    raise writing.missing(key, err) from err
                current = await self._current(key, place)
                if current is not None:  # else it was gone already, or is now
                    # Names are made from keys: in theory another key's object has this one's name.
                    same = current if current.key == key else None
                    raise ResourceAlreadyExists(key, err.message, current=same) from err
            else:
                return await self._with_status(key, place, value, raw)
        raise ResourceAlreadyExists(key)

    async def update(self, kv: KV) -> KV:
        key, place = kv.key, self._place("Update", kv.key)
        check_revision(kv.revision)
        if isinstance(kv.value, WorkloadEndpoint):
            return await self._write_addresses(key, place, kv.value, kv.revision)
        if isinstance(kv.value, Node):
            return await self._write_node(key, place, kv.value, kv.revision)
        body = writing.body("Update", key, place, kv.value, kv.revision, kv.origin)
        raw = await self._replace(key, place, body)
        if not isinstance(key, ResourceKey) and metadata_of(raw).resourceVersion == kv.revision:
            # The server wrote nothing, because nothing changed. IPAM counts on a new revision: that is how
            # others learn that somebody was here (see ipam.handles).
            body["metadata"]["annotations"] = {_REWRITTEN: kv.revision}
            raw = await self._replace(key, place, body)
        return await self._with_status(key, place, kv.value, raw)

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        """There are no leases: with `ttl` too the object stays until it is deleted."""
        for _ in range(_TRIES):
            try:
                return await self.create(key, value)
            except ResourceAlreadyExists as err:
                if not isinstance(err.current, KV):
                    raise
                revision = err.current.revision
            with contextlib.suppress(UpdateConflict, ResourceDoesNotExist):
                return await self.update(KV(key, writing.unbound(value), revision))
        raise UpdateConflict(key)

    async def delete(self, key: Key, revision: str = "") -> KV:
        place = self._place("Delete", key)
        if writing.kind(key) != "WorkloadEndpoint":
            writing.refuse_read_only("Delete", key, place)
        for _ in range(_TRIES):
            raw = await self._raw(key, place)
            last, meta = writing.stored(key, place, raw), metadata_of(raw)
            if last is None:
                await self._finish(place, raw)
                raise ResourceDoesNotExist(key)
            if revision and revision != meta.resourceVersion:
                raise UpdateConflict(key, last if last.value is not None else None)
            try:
                if writing.kind(key) == "WorkloadEndpoint":
                    patch = pods.emptied_patch(meta.resourceVersion, meta.uid)
                    await self._api.patch(f"{place.path}/status", patch)
                else:
                    await self._api.delete(place.path, writing.preconditions(meta.resourceVersion))
                return last
            except Refused as err:
                if err.status != 409:
                    raise writing.missing(key, err) from err
        raise UpdateConflict(key)

    async def get(self, key: Key, revision: str = "") -> KV:
        place = self._sources.place(key)
        if place is None:
            raise ResourceDoesNotExist(key)
        raw = await (self._past(key, place, revision) if revision else self._raw(key, place))
        found = place.source.read(raw)
        if found is None or found.value is None or found.key != key:
            raise ResourceDoesNotExist(key)
        return found

    # --- sets -----------------------------------------------------------------------------------

    async def list(self, what: Listing, revision: str = "") -> Listed:
        if isinstance(what, AffinityList) and what.host:
            await self._label_affinities(what.host)
        if isinstance(what, SliceList) and not revision:
            await self._find_slices()
        return await list_all(self._api, what, self._sources.queries(what), revision)

    async def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        queries = self._sources.queries(what)
        if not queries:  # nothing can ever be there
            yield WatchEvent("bookmark", revision)
            await asyncio.Event().wait()
        async with contextlib.aclosing(watch_all(self._api, what, queries, revision)) as events:
            async for event in events:
                yield event

    def serves(self, what: Listing) -> bool:
        return bool(self._sources.queries(what))

    async def _find_slices(self) -> None:
        """Which version of EndpointSlices is to be read, if any: asked for each list, for servers change."""
        try:
            group = await self._api.get(DISCOVERY)
        except Refused as err:
            if err.status != 404:
                raise
            group = None
        self._sources.slices = slices_source(slices_version(group))

    async def _label_affinities(self, host: str) -> None:
        """Objects of older versions lack the labels they are found by: give them to one host's, once."""
        if host in self._labelled:
            return
        for kv in (await self.list(AffinityList(owner_type=""))).items:
            key = cast(AffinityKey, kv.key)
            if key.host != host:
                continue
            place = self._place("Update", key)
            labels = affinity_labels(key.host, key.owner_type, ip_version(key.cidr))
            try:
                await self._api.patch(place.path, {"metadata": {"labels": labels}})
            except Refused as err:
                if err.status != 404:
                    raise
        self._labelled.add(host)

    # --- what is no resource --------------------------------------------------------------------

    async def config_map(self, namespace: str, name: str) -> dict[str, str]:
        """The data of a ConfigMap. Raises ResourceDoesNotExist, DatastoreError."""
        try:
            raw = await self._api.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}")
        except Refused as err:
            raise writing.missing(ResourceKey("ConfigMap", name, namespace), err) from err
        return msgspec.json.decode(raw, type=_ConfigMap).data

    async def set_node_condition(self, name: str, condition: dict[str, str]) -> None:
        """One condition of a Kubernetes node, by its type; the others stay. Raises DatastoreError."""
        place = self._place("Update", ResourceKey("Node", name))
        await self._api.merge(f"{place.path}/status", {"status": {"conditions": [condition]}})

    async def set_ingress(self, key: ServiceKey, revision: str, ingress: Sequence[Ingress]) -> None:
        """The addresses of a service's load balancer, all of them, if the service is still as it was read.

        Raises UpdateConflict, ResourceDoesNotExist.
        """
        place = self._place("Update", key)
        check_revision(revision)
        body = {
            "metadata": {"resourceVersion": revision},
            "status": {"loadBalancer": {"ingress": msgspec.to_builtins(ingress) or None}},
        }
        try:
            await self._api.patch(f"{place.path}/status", body)
        except Refused as err:
            raise UpdateConflict(key) if err.status == 409 else writing.missing(key, err) from err

    async def lease(self, namespace: str, name: str) -> dict[str, Any]:
        """A Lease of coordination.k8s.io as the API has it. Raises ResourceDoesNotExist."""
        try:
            raw = await self._api.get(f"{_LEASES}/{namespace}/leases/{name}")
        except Refused as err:
            raise writing.missing(ResourceKey("Lease", name, namespace), err) from err
        found: dict[str, Any] = msgspec.json.decode(raw)
        return found

    async def write_lease(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        """Create a Lease, or replace the one that was read. Raises UpdateConflict if another was faster."""
        meta = lease["metadata"]
        path = f"{_LEASES}/{meta['namespace']}/leases"
        try:
            if meta.get("resourceVersion"):
                raw = await self._api.replace(f"{path}/{meta['name']}", lease)
            else:
                raw = await self._api.create(path, lease)
        except Refused as err:
            key = ResourceKey("Lease", meta["name"], meta["namespace"])
            raise UpdateConflict(key) if err.status == 409 else writing.missing(key, err) from err
        written: dict[str, Any] = msgspec.json.decode(raw)
        return written

    async def define_resources(self) -> None:
        """See definitions.install."""
        from tortie.datastore.kubernetes import definitions  # only a migration wants them

        await definitions.install(self._api)

    async def ready(self) -> None:
        """Raises DatastoreError unless the API server says that it is well."""
        await self._api.get("/healthz")

    # --- parts of an operation ------------------------------------------------------------------

    def _place(self, operation: str, key: Key) -> Place:
        place = self._sources.place(key)
        if place is None:
            raise OperationNotSupported(operation, key, "the Kubernetes datastore has no place for it")
        return place

    async def _raw(self, key: Key, place: Place) -> bytes:
        try:
            return await self._api.get(place.path)
        except Refused as err:
            raise writing.missing(key, err) from err

    async def _past(self, key: Key, place: Place, revision: str) -> bytes:
        """The API gives a single object only as it is now, but lists as they were."""
        query = {"fieldSelector": f"metadata.name={place.name}", "limit": "1"}
        page = read_page(await self._api.get(place.collection, query | at_revision(revision)))
        if not page.items:
            raise ResourceDoesNotExist(key)
        return bytes(page.items[0])

    async def _current(self, key: Key, place: Place) -> KV | None:
        """What stands in the way of a write; None if it is gone meanwhile."""
        try:
            raw = await self._raw(key, place)
        except ResourceDoesNotExist:
            return None
        found = writing.stored(key, place, raw)
        if found is None:
            await self._finish(place, raw)
        return found

    async def _finish(self, place: Place, raw: bytes) -> None:
        """Delete what somebody marked as deleted and did not come to delete."""
        if not place.source.ours:
            return
        try:
            await self._api.delete(place.path, writing.preconditions(metadata_of(raw).resourceVersion))
        except Refused as err:
            if err.status not in (404, 409):  # or somebody else has done it, or made another
                raise

    async def _replace(self, key: Key, place: Place, body: dict[str, Any]) -> bytes:
        try:
            return await self._api.replace(place.path, body)
        except Refused as err:
            raise await self._lost(key, place, err) from err

    async def _lost(self, key: Key, place: Place, err: Refused) -> DatastoreError:
        """Why a write was refused: the object is gone, or somebody else wrote it."""
        if err.status != 409:
            return writing.missing(key, err)
        current = await self._current(key, place)
        if current is None:
            return ResourceDoesNotExist(key)
        return UpdateConflict(key, current if current.value is not None else None)

    async def _with_status(self, key: Key, place: Place, value: Any, raw: bytes) -> KV:
        """The object as stored, after its status is written too where that is a write of its own."""
        if isinstance(key, ResourceKey) and key.kind in WITH_STATUS:
            body = to_custom_resource(key, value, metadata_of(raw).resourceVersion)
            body["metadata"].pop("uid", None)
            wanted = body.get("status") or {}
            if wanted and wanted != (msgspec.json.decode(raw).get("status") or {}):
                try:
                    raw = await self._api.replace(f"{place.path}/status", body)
                except Refused as err:
                    raise await self._lost(key, place, err) from err
        return place.source.read(raw) or KV(key, value, metadata_of(raw).resourceVersion)

    async def _write_addresses(
        self, key: Key, place: Place, value: WorkloadEndpoint, revision: str = ""
    ) -> KV:
        """Without a revision: onto the pod that has the name now, if it is on the endpoint's node."""
        uid = value.metadata.uid
        if not revision:
            self._check_pod(key, place.source.read(raw := await self._raw(key, place)))
            uid = metadata_of(raw).uid
        patch = pods.addresses_patch(value, revision, uid)
        try:
            raw = await self._api.patch(f"{place.path}/status", patch)
        except Refused as err:
            raise await self._lost(key, place, err) from err
        return self._check_pod(key, place.source.read(raw))

    def _check_pod(self, key: Key, found: KV | None) -> KV:
        if found is None or found.key != key:
            raise ResourceDoesNotExist(key, "the pod is on another node, or on none")
        return found

    async def _write_node(self, key: Key, place: Place, value: Node, revision: str) -> KV:
        """Compared by what is ours of the node, and written without touching the rest."""
        wanted = nodes.node_annotations(value)
        for _ in range(_TRIES):
            raw = await self._raw(key, place)
            meta, current = metadata_of(raw), cast(KV, place.source.read(raw))
            if meta.resourceVersion != revision and not writing.still_as_read(value, current.value):
                raise UpdateConflict(key, current)
            changes = {name: text for name, text in wanted.items() if meta.annotations.get(name) != text}
            if not changes:
                return current
            patch = pods.annotations_patch(changes, meta.resourceVersion)
            try:
                return cast(KV, place.source.read(await self._api.patch(f"{place.path}/status", patch)))
            except Refused as err:
                if err.status != 409:
                    raise writing.missing(key, err) from err
        raise UpdateConflict(key)
