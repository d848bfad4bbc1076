"""What every cluster's datastore holds before anything else: created where it is missing, on any node.

All of it is idempotent and may run on all nodes at once: who finds an object created meanwhile is content,
who finds it changed meanwhile looks again. (Reference: Calico data model, section 1.5;
libcalico-go/lib/clientv3/client.go, node/pkg/lifecycle/startup/startup.go.)
"""

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import structs

from tortie.core.backoff import Backoff, Retry
from tortie.core.errors import ResourceAlreadyExists, ResourceDoesNotExist, UpdateConflict
from tortie.datastore.access import Access
from tortie.datastore.types.bgp import BGPConfiguration
from tortie.datastore.types.cluster import ClusterInformation, ClusterInformationSpec, FelixConfiguration
from tortie.datastore.types.ippool import IPAMConfiguration, IPAMConfigurationSpec
from tortie.datastore.types.meta import ObjectMeta, Resource
from tortie.datastore.types.policy import Tier, TierSpec
from tortie.datastore.validate.policy import BUILT_IN_TIERS

R = TypeVar("R", bound=Resource)

_log = logging.getLogger(__name__)
_DEFAULT = ObjectMeta(name="default")
_AGAIN = Backoff(first=0.05, cap=1.0)  # many nodes start together; each conflict means one got ahead


def new_guid() -> str:
    """32 hexadecimal digits of a random UUID."""
    return uuid.uuid4().hex


async def ensure_initialized(
    client: Access, calico_version: str, cluster_type: str, new_guid: Callable[[], str] = new_guid
) -> None:
    """ClusterInformation and the built-in tiers; '' leaves version or type as they are.

    Raises DatastoreError.
    """
    await _ensure(
        client,
        ClusterInformation(metadata=_DEFAULT),
        lambda found: _informed(found, calico_version, cluster_type, new_guid),
    )
    for name, (order, action) in BUILT_IN_TIERS.items():
        await _create(
            client, Tier(metadata=ObjectMeta(name=name), spec=TierSpec(order=order, defaultAction=action))
        )


async def ensure_default_configuration(client: Access, node_name: str) -> None:
    """The configuration that calico-node expects to find when it starts, cluster-wide and of one node.

    Values that somebody set stay. Raises DatastoreError.
    """
    await _ensure(
        client,
        FelixConfiguration(metadata=_DEFAULT),
        lambda found: _with_fields(found, {"reportingInterval": "0s", "logSeverityScreen": "Info"}),
    )
    await _ensure(  # pods may talk to their host unless somebody forbids it
        client,
        FelixConfiguration(metadata=ObjectMeta(name=f"node.{node_name}")),
        lambda found: _with_fields(found, {"defaultEndpointToHostAction": "Return"}),
    )
    await _create(client, BGPConfiguration(metadata=_DEFAULT))
    allocation = IPAMConfigurationSpec(autoAllocateBlocks=True, kubeVirtVMAddressPersistence="Enabled")
    await _create(client, IPAMConfiguration(metadata=_DEFAULT, spec=allocation))


# --- what should be there -----------------------------------------------------------------------


def _informed(
    found: ClusterInformation, calico_version: str, cluster_type: str, new_guid: Callable[[], str]
) -> ClusterInformation:
    spec = found.spec
    return structs.replace(
        found,
        spec=ClusterInformationSpec(
            clusterGUID=spec.clusterGUID or new_guid(),
            clusterType=merged_types(spec.clusterType, cluster_type),
            calicoVersion=calico_version or spec.calicoVersion,
            # An explicit false is somebody's lock (a migration): it stays.
            datastoreReady=True if spec.datastoreReady is None else spec.datastoreReady,
            variant=spec.variant,
        ),
    )


def merged_types(known: str, added: str) -> str:
    """Two comma lists as one, each type once, in order of appearance; nothing added changes nothing."""
    if not added:
        return known
    return ",".join(dict.fromkeys(part for part in [*known.split(","), *added.split(",")] if part))


def _with_fields(found: FelixConfiguration, wanted: dict[str, Any]) -> FelixConfiguration:
    missing = {field: value for field, value in wanted.items() if found.spec.get(field) in (None, "")}
    return structs.replace(found, spec=found.spec | missing)


# --- making it so -------------------------------------------------------------------------------


async def _create(client: Access, resource: Resource) -> None:
    """Create it unless something of that name exists."""
    try:
        await client.create(resource)
    except ResourceAlreadyExists:
        return
    _log.info("created %s %s", resource.KIND, resource.name)


async def _ensure(client: Access, empty: R, wanted: Callable[[R], R]) -> None:
    """Make the object of this name what `wanted` says, starting from `empty` if there is none."""
    retry = Retry(_AGAIN)
    while True:
        try:
            found = await client.get(type(empty), empty.name)
        except ResourceDoesNotExist:
            found = empty
        try:
            change = wanted(found)
            if not found.revision:
                await client.create(change)
            elif change != found:
                await client.update(change)
            return
        except (ResourceAlreadyExists, ResourceDoesNotExist, UpdateConflict) as err:
            _log.info("%s %s changed meanwhile, looking again: %s", empty.KIND, empty.name, err)
            await asyncio.sleep(retry.wait())
