"""Deleting a pool or a node together with what IPAM keeps of it.

Both are sequences that may be cut off anywhere and run again. (Reference: Calico IPAM, 2.8; Calico data
model, 1.5.)
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator

from msgspec import structs

from tortie.core.errors import ResourceDoesNotExist
from tortie.datastore.client import Client
from tortie.datastore.types.bgp import BGPConfiguration, BGPPeer
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.endpoint import HostEndpoint, WorkloadEndpoint
from tortie.datastore.types.ipam import Block
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.meta import Resource
from tortie.datastore.types.node import Node
from tortie.ipam import addresses
from tortie.ipam import block as blocks
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import Owner, ReleaseRequest
from tortie.ipam.names import NODE, clean_handle, warm_handle

_log = logging.getLogger(__name__)

# Between disabling a pool and releasing its blocks: allocations under way finish, and those who keep
# pools in memory hear of it. Calico waits as long.
_GRACE = 0.5  # seconds


async def delete_pool(
    client: Client,
    allocator: Allocator,
    name: str,
    *,
    revision: str = "",
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> IPPool | None:
    """Disable a pool, release its blocks from their owners, delete it. Returns what was deleted.

    Addresses in use stay with their pods, in blocks that are nobody's and go with their last address.
    Raises ResourceDoesNotExist; UpdateConflict if `revision` is given and not current.
    """
    pool = await client.get(IPPool, name)
    if not pool.spec.disabled:
        pool = structs.replace(pool, spec=structs.replace(pool.spec, disabled=True))
        if revision:
            pool = pool.with_metadata(resourceVersion=revision)
        await client.update(pool)
        revision = ""  # it guarded the change just made, which gave the pool a new one
    await sleep(_GRACE)
    await allocator.release_pool_affinities(pool.spec.cidr)
    return await client.delete(IPPool, name, revision=revision)


async def delete_node(client: Client, allocator: Allocator, name: str, *, revision: str = "") -> Node | None:
    """Delete a node with its endpoints and their addresses, its blocks, peers and configurations.

    Raises ResourceDoesNotExist if there is no such node (what it left is cleaned up all the same);
    UpdateConflict if `revision` is given and not current.
    """
    endpoints = [e for e in (await client.list(WorkloadEndpoint)).items if e.spec.node == name]
    wanted = {*_endpoint_addresses(endpoints), *await _tunnel_addresses(client, name)}
    outcome = await allocator.release_ips(releases_for_node(wanted, await allocator.blocks(), name))
    if outcome.error is not None:
        raise outcome.error
    with contextlib.suppress(ResourceDoesNotExist):
        await allocator.release_by_handle(warm_handle(name))
    for endpoint in endpoints:
        await _delete(client, WorkloadEndpoint, endpoint.name, endpoint.namespace)
    await allocator.remove_host(Owner(name))
    for peer in (await client.list(BGPPeer)).items:
        if peer.spec.node == name:
            await _delete(client, BGPPeer, peer.name)
    await _delete(client, FelixConfiguration, f"node.{name}")
    await _delete(client, BGPConfiguration, f"node.{name}")
    for host_endpoint in (await client.list(HostEndpoint)).items:
        if host_endpoint.spec.node == name:
            await _delete(client, HostEndpoint, host_endpoint.name)
    return await client.delete(Node, name, revision=revision)


def releases_for_node(wanted: Iterable[str], stored: Iterable[Block], node: str) -> list[ReleaseRequest]:
    """Guarded requests for those addresses that really are the node's. Pure.

    An endpoint or a Node may name an address that was given to a pod elsewhere since; freeing that
    one would put two pods on one address. The attribute of the allocation decides.
    """
    stored = list(stored)
    requests = []
    for address in [found for text in sorted(wanted) if (found := _address(text)) is not None]:
        for block in stored:
            net = addresses.network(block.cidr)
            if net.version != address.version or address not in net:
                continue
            ordinal = blocks.ordinal_of(block, address)
            attribute = blocks.attribute_at(block, ordinal)
            if attribute is None or attribute.releasedAt is not None:
                continue
            if attribute.secondary.get(NODE, node) != node:
                _log.warning("%s is in use on node %s: left alone", address, attribute.secondary[NODE])
                continue
            handle, number = clean_handle(attribute.handle_id), blocks.sequence_number(block, ordinal)
            requests.append(ReleaseRequest(str(address), handle, number))
    return requests


def _address(text: str) -> addresses.Address | None:
    try:
        return addresses.address(text)
    except ValueError:
        _log.warning("%r, the address of an endpoint or tunnel, cannot be released: it is none", text)
        return None


def _endpoint_addresses(endpoints: Iterable[WorkloadEndpoint]) -> Iterator[str]:
    for endpoint in endpoints:
        for cidr in endpoint.spec.ipNetworks:
            yield cidr.partition("/")[0]


async def _tunnel_addresses(client: Client, name: str) -> list[str]:
    try:
        spec = (await client.get(Node, name)).spec
    except ResourceDoesNotExist:
        return []
    found = [spec.ipv4VXLANTunnelAddr, spec.ipv6VXLANTunnelAddr]
    if spec.bgp is not None:
        found.append(spec.bgp.ipv4IPIPTunnelAddr)
    if spec.wireguard is not None:
        found += [spec.wireguard.interfaceIPv4Address, spec.wireguard.interfaceIPv6Address]
    return [address.partition("/")[0] for address in found if address]


async def _delete(client: Client, kind: type[Resource], name: str, namespace: str = "") -> None:
    try:
        await client.delete(kind, name, namespace)
    except ResourceDoesNotExist:
        _log.debug("%s %s is gone already", kind.KIND, name)
