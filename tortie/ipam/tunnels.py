"""The addresses of a node's own tunnel devices: one per kind of tunnel that its pools ask for.

They come from the pools that use the tunnel, are marked with the node and the kind, and stand in the
Node for everybody to see. (Reference: Calico IPAM, 2.13; node/pkg/allocateip.) The decisions are pure;
reconcile_tunnels() carries them out and may be run again at any time.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from msgspec import structs

from tortie.core.errors import (
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    TortieError,
    ValidationError,
)
from tortie.core.tasks import best_effort
from tortie.datastore.client import Client
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec, NodeWireguardSpec
from tortie.ipam import addresses
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.errors import InCooldown, IPAMError
from tortie.ipam.names import NODE, TYPE, tunnel_handle
from tortie.ipam.pools import TUNNEL, pool_of
from tortie.ipam.requests import AssignAddress, AutoAssign

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A kind of tunnel. `group` is the part of NodeSpec that `field` is in, '' for the spec itself."""

    type: str  # value of the attribute `type`
    version: int
    group: str
    field: str
    mode: str = ""  # the pool's setting that must be Always or CrossSubnet; '': none
    key: str = ""  # the field of the node's status that must be set; '': none

    def address(self, spec: NodeSpec) -> str:
        holder = getattr(spec, self.group) if self.group else spec
        return "" if holder is None else str(getattr(holder, self.field)).partition("/")[0]

    def with_address(self, spec: NodeSpec, address: str) -> NodeSpec:
        """The spec with the address set, or with '' removed; a group without anything in it goes."""
        if not self.group:
            return structs.replace(spec, **{self.field: address})
        empty = _GROUPS[self.group]
        holder = structs.replace(getattr(spec, self.group) or empty, **{self.field: address})
        return structs.replace(spec, **{self.group: None if holder == empty else holder})


_GROUPS: dict[str, NodeBGPSpec | NodeWireguardSpec] = {  # field of NodeSpec -> its empty value
    "bgp": NodeBGPSpec(),
    "wireguard": NodeWireguardSpec(),
}

TUNNELS = (  # in Calico's order
    Tunnel("wireguardTunnelAddress", 4, "wireguard", "interfaceIPv4Address", key="wireguardPublicKey"),
    Tunnel("wireguardV6TunnelAddress", 6, "wireguard", "interfaceIPv6Address", key="wireguardPublicKeyV6"),
    Tunnel("ipipTunnelAddress", 4, "bgp", "ipv4IPIPTunnelAddr", mode="ipipMode"),
    Tunnel("vxlanTunnelAddress", 4, "", "ipv4VXLANTunnelAddr", mode="vxlanMode"),
    Tunnel("vxlanV6TunnelAddress", 6, "", "ipv6VXLANTunnelAddr", mode="vxlanMode"),
)


# --- decisions ----------------------------------------------------------------------------------


def pools_for(
    tunnel: Tunnel, node: Node, pools: Iterable[IPPool], *, encrypt_host: bool = False
) -> tuple[str, ...]:
    """The CIDRs a tunnel's address may come from; () if this node needs no such address.

    `encrypt_host`: WireGuard encrypts host traffic too and then uses the node's own address.
    """
    if tunnel.key and (encrypt_host or not getattr(node.status, tunnel.key)):
        return ()
    return tuple(cidr for pool in pools if (cidr := _suitable(tunnel, node, pool)))


def _suitable(tunnel: Tunnel, node: Node, resource: IPPool) -> str:
    try:
        pool = pool_of(resource)
    except ValidationError as err:
        _log.warning("no tunnel addresses from pool %s: %s", resource.name, err)
        return ""
    if pool.fault:
        _log.warning("no tunnel addresses from pool %s: %s", resource.name, pool.fault)
    fits = pool.enabled and pool.version == tunnel.version and TUNNEL in pool.uses
    if not fits or not pool.selects_node(node.labels):
        return ""
    wanted = not tunnel.mode or getattr(resource.spec, tunnel.mode) in ("Always", "CrossSubnet")
    return pool.cidr if wanted else ""


class Verdict(Enum):
    KEEP = "it is ours and in a pool"
    RENEW = "release what the handle holds, assign a new one"
    CONVERT = "from before there were handles: take it again with one"
    LEAVE = "it is somebody else's: assign a new one"


def judge(
    tunnel: Tunnel, node: str, address: str, attribute: AllocationAttribute | None, pools: Iterable[str]
) -> Verdict:
    """What to do about the address a node has for a tunnel; `attribute` None: it is not assigned."""
    if attribute is None:
        return Verdict.RENEW
    owner = attribute.secondary
    if owner.get(TYPE) == tunnel.type and owner.get(NODE) == node:
        where = addresses.address(address)
        inside = any(where in addresses.network(cidr) for cidr in pools)
        return Verdict.KEEP if inside else Verdict.RENEW
    return Verdict.CONVERT if not owner and attribute.handle_id is None else Verdict.LEAVE


# --- carrying them out --------------------------------------------------------------------------


async def reconcile_tunnels(
    client: Client, allocator: Allocator, node: str, *, encrypt_host: bool = False
) -> Node:
    """Assign the tunnel addresses that are missing, take back those not needed, update the Node once.

    If anything fails, what was newly assigned is released again. Raises TortieError; UpdateConflict
    if the Node changed meanwhile.
    """
    found = await client.get(Node, node)
    listed = (await client.list(IPPool)).items
    work = _Work(allocator, node)
    spec = found.spec
    try:
        for tunnel in TUNNELS:
            if cidrs := pools_for(tunnel, found, listed, encrypt_host=encrypt_host):
                spec = await work.ensure(tunnel, spec, cidrs)
            else:
                spec = await work.remove(tunnel, spec)
        if spec != found.spec:
            found = await client.update(structs.replace(found, spec=spec))
    except TortieError:
        for handle in work.assigned:
            await best_effort(f"releasing {handle}", allocator.release_by_handle(handle))
        raise
    return found


class _Work:
    """One reconciliation; `assigned` are the handles of new addresses."""

    def __init__(self, allocator: Allocator, node: str) -> None:
        self._allocator = allocator
        self._node = node
        self.assigned: list[str] = []

    async def ensure(self, tunnel: Tunnel, spec: NodeSpec, pools: tuple[str, ...]) -> NodeSpec:
        address = tunnel.address(spec)
        verdict = Verdict.RENEW
        if address:
            verdict = judge(tunnel, self._node, address, await self._attribute(address), pools)
            _log.info("%s of %s, %s: %s", tunnel.type, self._node, address, verdict.value)
        if verdict is Verdict.KEEP or (verdict is Verdict.CONVERT and await self._converted(tunnel, address)):
            return spec
        if verdict is Verdict.RENEW:
            # Also without an address in the Node: it may have lost one that is still assigned.
            await self._release(tunnel)
        return tunnel.with_address(spec, await self._assign(tunnel, pools))

    async def remove(self, tunnel: Tunnel, spec: NodeSpec) -> NodeSpec:
        address = tunnel.address(spec)
        if not await self._release(tunnel) and address:
            await self._release_without_handle(tunnel, address)
        return tunnel.with_address(spec, "")

    async def _attribute(self, address: str) -> AllocationAttribute | None:
        try:
            return await self._allocator.attributes(address)
        except (ResourceDoesNotExist, InCooldown):
            return None

    async def _release(self, tunnel: Tunnel) -> bool:
        """Release what the handle holds; False if there is no handle."""
        try:
            await self._allocator.release_by_handle(tunnel_handle(tunnel.type, self._node))
        except ResourceDoesNotExist:
            return False
        return True

    async def _release_without_handle(self, tunnel: Tunnel, address: str) -> None:
        """An address from before there were handles, or whose handle was lost; never another's."""
        handle = tunnel_handle(tunnel.type, self._node)
        attribute = await self._attribute(address)
        if attribute is None:
            return
        if attribute.handle_id == handle or (not attribute.secondary and attribute.handle_id is None):
            request = ReleaseRequest(address, attribute.handle_id or "")
            outcome = await self._allocator.release_ips([request])
            if outcome.error is not None:
                raise outcome.error
        else:
            _log.warning("%s of %s is in use by something else", address, self._node)

    async def _converted(self, tunnel: Tunnel, address: str) -> bool:
        """Release an address and take it again with handle and attributes; False if it was snatched."""
        outcome = await self._allocator.release_ips([ReleaseRequest(address)])
        if outcome.error is not None:
            raise outcome.error
        handle = tunnel_handle(tunnel.type, self._node)
        try:
            await self._allocator.assign_ip(
                AssignAddress(address, handle, self._attributes(tunnel), host=self._node)
            )
        except ResourceAlreadyExists as err:
            _log.warning("%s is taken by now, assigning another one: %s", address, err)
            return False
        return True

    async def _assign(self, tunnel: Tunnel, pools: tuple[str, ...]) -> str:
        handle = tunnel_handle(tunnel.type, self._node)
        self.assigned.append(handle)
        four = tunnel.version == 4
        got = await self._allocator.auto_assign(
            AutoAssign(
                use=TUNNEL,
                num4=1 if four else 0,
                num6=0 if four else 1,
                handle=handle,
                attributes=self._attributes(tunnel),
                pools4=pools if four else (),
                pools6=() if four else pools,
                host=self._node,
            )
        )
        got.require_all()
        assigned = got.v4 if four else got.v6
        if assigned is None:
            raise IPAMError(f"no {tunnel.type} was assigned to {self._node}")
        return assigned.addresses[0].partition("/")[0]

    def _attributes(self, tunnel: Tunnel) -> Mapping[str, str]:
        return {NODE: self._node, TYPE: tunnel.type}
