"""Where a container's addresses come from: Calico's IPAM in this process, or another plugin.

One page for both: assign, release, check, collect, status. CalicoIpam is also what the `calico-ipam`
binary does when another main plugin delegates to it. (Reference: CNI plugin, section 3, 4.3-4.9.)
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from tortie.cni import waiting
from tortie.cni.operation import Operation
from tortie.cni.pods import NO_WISHES, Wishes
from tortie.cni.protocol import CALICO_IPAM, Code
from tortie.cni.result import IP, Result
from tortie.cni.warm import WarmPool
from tortie.core.errors import CniError, ResourceDoesNotExist, TortieError
from tortie.datastore.keys import BlockList, HandleKey
from tortie.datastore.names import host_interface
from tortie.datastore.types.ipam import Block
from tortie.ipam import gotime, pools
from tortie.ipam.addresses import network
from tortie.ipam.allocator import Allocator
from tortie.ipam.assign import wish_of
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.errors import IPAMError
from tortie.ipam.names import NAMESPACE, NODE, POD, TIMESTAMP, clean_handle, cni_handle
from tortie.ipam.pools import Pool, Wish
from tortie.ipam.ranges import Ranges
from tortie.ipam.requests import AssignAddress, AutoAssign
from tortie.ipam.store import together

_log = logging.getLogger(__name__)

_LIMIT = 90.0  # seconds for one allocation or release, Calico's


@dataclass(frozen=True, slots=True)
class Ask:
    """What a container is to get. `namespace_labels` None: no namespace is known."""

    wishes: Wishes = NO_WISHES
    namespace_labels: Mapping[str, str] | None = None


class AddressManager(Protocol):
    async def assign(self, op: Operation, ask: Ask) -> Result:
        """Addresses for the container, with whatever prefix length they came with.

        A failure leaves nothing assigned that was not assigned before. Raises TortieError.
        """

    async def give_back(self, op: Operation, addresses: Sequence[str]) -> None:
        """Undo an assign() of this call; `addresses` are what it returned, bare."""

    async def settle(self, op: Operation, addresses: Sequence[str]) -> None:
        """Release what the container holds beside these (bare) addresses, left by an earlier ADD.

        Its answer never reached the runtime, which asks again: nobody will ever name those addresses.
        """

    async def release(self, op: Operation) -> None:
        """Everything the container holds; holding nothing is success."""

    async def check(self, op: Operation, addresses: Sequence[str]) -> None:
        """Raises CniError unless the container holds these (bare) addresses."""

    async def collect(self, op: Operation, spared: Callable[[str], bool]) -> None:
        """Release what containers of this network on this node hold, but for those to be spared."""

    async def status(self, op: Operation) -> None:
        """Raises TortieError if an address could not be assigned now."""


# --- calico-ipam --------------------------------------------------------------------------------


def families(op: Operation, wishes: Wishes) -> tuple[bool, bool]:
    """Whether an IPv4 and an IPv6 address are wanted: the annotation's word, else the configuration's."""
    if wishes.assign is not None:
        return wishes.assign
    return op.conf.ipam.assign_ipv4 != "false", op.conf.ipam.assign_ipv6 == "true"


def attributes(op: Operation, now: int) -> dict[str, str]:
    """What IPAM remembers of the owner; `now` is Unix time in nanoseconds."""
    found = {NODE: op.identity.node, TIMESTAMP: gotime.plain(now)}
    if op.identity.pod:
        found |= {POD: op.identity.pod, NAMESPACE: op.identity.namespace}
    return found


def _suits(allowed: Sequence[Pool], reserved: Ranges, address: str) -> bool:
    net = network(f"{address}/{128 if ':' in address else 32}")
    return pools.containing(allowed, net) is not None and not reserved.covers(net)


class CalicoIpam:
    """Assigns and releases one after the other: all of them want the same block of this node.

    The allocator would cope with them at once, but each lost compare-and-swap costs more than waiting.
    """

    def __init__(self, allocator: Allocator, warm: WarmPool | None = None) -> None:
        self._allocator = allocator
        self._warm = warm
        self._turn = asyncio.Lock()

    async def assign(self, op: Operation, ask: Ask) -> Result:
        chosen = ask.wishes.addresses or ((op.call.args.ip,) if op.call.args.ip else ())
        if chosen:
            return Result(ips=tuple([IP(one) for one in await self._assign_given(op, chosen)]))
        return Result(ips=tuple([IP(one) for one in await self._assign_any(op, ask)]))

    async def _assign_any(self, op: Operation, ask: Ask) -> list[str]:
        want4, want6 = families(op, ask.wishes)
        request = AutoAssign(
            use=pools.WORKLOAD,
            num4=int(want4),
            num6=int(want6),
            handle=op.identity.handle,
            attributes=attributes(op, time.time_ns()),
            pools4=await self._pools(op, ask.wishes.ipv4_pools, op.conf.ipam.ipv4_pools, 4),
            pools6=await self._pools(op, ask.wishes.ipv6_pools, op.conf.ipam.ipv6_pools, 6),
            host=op.identity.node,
            namespace_labels=ask.namespace_labels,
        )
        ready = await self._ready(op, request)
        if len(ready) == want4 + want6:
            return ready
        request = replace(
            request,
            num4=request.num4 - sum(":" not in one for one in ready),
            num6=request.num6 - sum(":" in one for one in ready),
        )
        async with self._alone(op):
            op.checkpoint()  # the turn may have been long in coming
            done = await self._allocator.auto_assign(request)
        new = [one for part in (done.v4, done.v6) if part is not None for one in part.addresses]
        got = sorted([*ready, *new], key=lambda one: ":" in one)
        short = next((part for part in (done.v4, done.v6) if part is not None and part.shortage), None)
        if done.error is None and short is None:
            return got
        await op.undo("assigned addresses", lambda: self.give_back(op, [IP(one).bare for one in got]))
        if done.error is not None and not isinstance(done.error, IPAMError):
            raise done.error
        version = short.version if short is not None else 4 if request.num4 and done.v4 is None else 6
        why = await self._allocator.why_not(request, version)
        if done.error is not None:
            raise CniError(Code.INTERNAL, str(done.error), why) from done.error
        raise CniError(
            Code.INTERNAL, f"failed to request IPv{version} addresses: {short.shortage if short else ''}", why
        )

    async def _ready(self, op: Operation, request: AutoAssign) -> list[str]:
        """What the node has ready and the request may have; the rest is to be assigned."""
        # Only `calico` writes an endpoint, by which an address is known to be used when notes are lost.
        if self._warm is None or not self._warm.on or op.call.plugin == CALICO_IPAM:
            return []
        view, found = op.store.view, []
        facts, labels = await view.facts(), await view.labels(op.identity.node)
        for version in [4] * request.num4 + [6] * request.num6:
            try:
                allowed = pools.choose(facts.pools, wish_of(request, op.identity.node, version), labels)
            except IPAMError:
                continue  # said by the assignment
            suits = partial(_suits, allowed, facts.reserved)
            got = self._warm.take(version, op.identity.handle, request.attributes, suits)
            found += [got] if got else []
        return found

    async def _pools(
        self, op: Operation, wished: Sequence[str] | None, configured: Sequence[str], version: int
    ) -> tuple[str, ...]:
        names = configured if wished is None else wished
        return pools.resolve(names, (await op.store.view.facts()).pools, version) if names else ()

    async def _assign_given(self, op: Operation, chosen: Sequence[str]) -> list[str]:
        got: list[str] = []
        for address in chosen:
            request = AssignAddress(
                address=address,
                handle=op.identity.handle,
                attributes=attributes(op, time.time_ns()),
                host=op.identity.node,
                use=pools.WORKLOAD,
            )
            try:
                async with self._alone(op):
                    op.checkpoint()
                    await self._allocator.assign_ip(request)
            except TortieError:
                await op.undo("assigned addresses", lambda: self.give_back(op, got))
                raise
            got.append(address)
        return [f"{address}/{128 if ':' in address else 32}" for address in got]

    async def give_back(self, op: Operation, addresses: Sequence[str]) -> None:
        requests = [ReleaseRequest(address, op.identity.handle) for address in addresses]
        if not requests:
            return
        await self._flush(op.identity.handle)
        async with self._alone(op):
            outcome = await self._allocator.release_ips(requests)
        if outcome.error is not None:
            raise outcome.error

    async def settle(self, op: Operation, addresses: Sequence[str]) -> None:
        handle = op.identity.handle
        try:
            counted = await self._count(op, handle)
            if counted and self._warm is not None and self._warm.owes(handle):
                await self._warm.flush(handle)  # it held some before, and is about to hold these
                counted = await self._count(op, handle)
            if counted <= len(addresses):
                return
            held = await self._allocator.ips_by_handle(handle)
        except ResourceDoesNotExist:
            return
        if not (left := [address for address in held if address not in addresses]):
            return  # a count too high, which DEL puts right
        _log.info("releasing %s, which an earlier ADD left to %s", ", ".join(left), op.identity)
        await self.give_back(op, left)

    async def _count(self, op: Operation, handle: str) -> int:
        """How many addresses a handle counts. Raises ResourceDoesNotExist."""
        return sum((await op.store.client.backend.get(HandleKey(handle))).value.block.values())

    async def _flush(self, handle: str) -> None:
        if self._warm is not None:
            await self._warm.flush(handle)

    async def release(self, op: Operation) -> None:
        await self._flush(op.identity.handle)
        async with self._alone(op):
            await together(*(self._release(one) for one in (op.identity.handle, op.identity.legacy_handle)))

    @contextlib.asynccontextmanager
    async def _alone(self, op: Operation) -> AsyncIterator[None]:
        """For at most 90 s once it is our turn. Raises CniError then; DEL puts right what was cut off."""
        async with self._turn, waiting.file_lock(op.conf.ipam_lock_file):
            try:
                async with asyncio.timeout(_LIMIT):
                    yield
            except TimeoutError as err:
                raise CniError(Code.TRY_AGAIN_LATER, f"IPAM did not finish within {_LIMIT:.0f} s") from err

    async def _release(self, handle: str) -> None:
        try:
            await self._allocator.release_by_handle(handle)
        except ResourceDoesNotExist:
            _log.debug("handle %s holds nothing", handle)

    async def check(self, op: Operation, addresses: Sequence[str]) -> None:
        await self._flush(op.identity.handle)
        try:
            held = set(await self._allocator.ips_by_handle(op.identity.handle))
        except ResourceDoesNotExist:
            held = set()
        for address in addresses:
            if address not in held:
                raise CniError(
                    Code.INTERNAL, f"address {address} is not assigned to {op.identity.handle} in IPAM"
                )

    async def collect(self, op: Operation, spared: Callable[[str], bool]) -> None:
        listed = await op.store.client.backend.list(BlockList())
        held = holders((kv.value for kv in listed.items), op.identity.node, op.identity.prefix)
        for one in sorted(held):
            if one.network == op.conf.name and not spared(one.container):
                _log.info("releasing what container %s holds, which is gone", one.container)
                await self._flush(cni_handle(one.network, one.container))
                async with self._alone(op):
                    await self._release(cni_handle(one.network, one.container))

    async def status(self, op: Operation) -> None:
        view, node = op.store.view, op.identity.node
        facts, labels = await together(view.facts(), view.labels(node))
        want4, want6 = families(op, NO_WISHES)
        for version, wanted, named in (
            (4, want4, op.conf.ipam.ipv4_pools),
            (6, want6, op.conf.ipam.ipv6_pools),
        ):
            if wanted:
                requested = pools.resolve(named, facts.pools, version)
                pools.choose(facts.pools, Wish(version, pools.WORKLOAD, node, requested), labels)


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """A container that holds addresses, and the name its host-side interface has if it has one."""

    network: str
    container: str
    interface: str


def holders(blocks: Iterable[Block], node: str, prefix: str) -> set[Holder]:
    """All containers of a node that hold addresses. Pure.

    Network names and container IDs may contain dots. The handle is cut at the last one, so a container
    whose ID has dots is never found: better an address too many kept than one in use released.
    """
    found = set()
    for block in blocks:
        for attribute in block.attributes:
            owner = attribute.secondary
            network, dot, container = clean_handle(attribute.handle_id).rpartition(".")
            if dot and owner.get(NODE) == node:
                pod, namespace = owner.get(POD, ""), owner.get(NAMESPACE, "")
                name = host_interface(namespace, pod, container_id=container, prefix=prefix)
                found.add(Holder(network, container, name))
    return found
