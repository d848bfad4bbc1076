"""Where a container's addresses come from: Calico's IPAM in this process, or another plugin.

One page for both: assign, release, check, collect, status. CalicoIpam is also what the `calico-ipam`
binary does when another main plugin delegates to it. (Reference: CNI plugin, section 3, 4.3-4.9.)
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from tortie.cni import advice, waiting
from tortie.cni.operation import Operation
from tortie.cni.pods import NO_WISHES, Wishes
from tortie.cni.protocol import CALICO_IPAM, Code
from tortie.cni.result import IP, Result
from tortie.cni.warm import WarmPool
from tortie.core.errors import CniError, ResourceAlreadyExists, ResourceDoesNotExist, TortieError
from tortie.core.tasks import together
from tortie.datastore.keys import BlockList, HandleKey
from tortie.datastore.names import host_interface
from tortie.datastore.types.ipam import Block
from tortie.ipam import gotime, pools
from tortie.ipam.addresses import network
from tortie.ipam.allocator import Allocator
from tortie.ipam.assign import wish_of
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.errors import ForeignBlock, IPAMError
from tortie.ipam.names import NAMESPACE, NODE, POD, TIMESTAMP, VMI_NAME, clean_handle, cni_handle
from tortie.ipam.pools import Pool, Wish
from tortie.ipam.ranges import Ranges
from tortie.ipam.requests import AssignAddress, AutoAssign

_log = logging.getLogger(__name__)

_LIMIT = 90.0  # seconds for one allocation or release, Calico's


@dataclass(frozen=True, slots=True)
class Ask:
    """What a container is to get. `namespace_labels` None: no namespace is known.

    `attributes` is what IPAM is to remember beside the pod.
    """

    wishes: Wishes = NO_WISHES
    namespace_labels: Mapping[str, str] | None = None
    attributes: dict[str, str] = field(default_factory=dict)


class AddressManager(Protocol):
    async def assign(self, op: Operation, ask: Ask) -> Result:
        """Addresses for the container, with whatever prefix length they came with.

        A failure leaves nothing assigned that was not assigned before. Raises TortieError.
        """

    async def give_back(self, op: Operation, addresses: Sequence[str]) -> None:
        """Undo an assign() of this call; `addresses` are what it returned, bare."""

    async def left_over(self, op: Operation, addresses: Sequence[str]) -> list[str]:
        """What the container holds beside these (bare) addresses, left by an earlier ADD.

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


def _cap(op: Operation) -> int:
    """How many addresses of an IP version the holder may have: pods of one VM that come at once share one."""
    return 1 if op.identity.vm else 0


def _no_node(op: Operation, err: ResourceDoesNotExist) -> CniError:
    """Nothing else is missing when an assignment misses something: pools and blocks are listed."""
    return CniError(Code.INTERNAL, str(err), advice.no_node(op.identity.node))


def _suits(allowed: Sequence[Pool], reserved: Ranges, address: str) -> bool:
    net = network(f"{address}/{128 if ':' in address else 32}")
    return pools.containing(allowed, net) is not None and not reserved.covers(net)


class CalicoIpam:
    """Assigns and releases one after the other: all of them want the same block of this node.

    The allocator would cope with them at once, but each lost compare-and-swap costs more than waiting.
    """

    def __init__(self, allocator: Allocator, warm: WarmPool) -> None:
        self.allocator = allocator
        self._warm = warm
        self._turn = asyncio.Lock()

    async def assign(self, op: Operation, ask: Ask) -> Result:
        chosen = ask.wishes.addresses or ((op.call.args.ip,) if op.call.args.ip else ())
        if chosen:
            return Result(ips=tuple([IP(one) for one in await self._assign_given(op, ask, chosen)]))
        return Result(ips=tuple([IP(one) for one in await self._assign_any(op, ask)]))

    async def _assign_any(self, op: Operation, ask: Ask) -> list[str]:
        want4, want6 = families(op, ask.wishes)
        request = AutoAssign(
            use=pools.WORKLOAD,
            num4=int(want4),
            num6=int(want6),
            handle=op.identity.handle,
            attributes=attributes(op, time.time_ns()) | ask.attributes,
            cap=_cap(op),
            pools4=await self._pools(op, ask.wishes.ipv4_pools, op.conf.ipam.ipv4_pools, 4),
            pools6=await self._pools(op, ask.wishes.ipv6_pools, op.conf.ipam.ipv6_pools, 6),
            host=op.identity.node,
            namespace_labels=ask.namespace_labels,
        )
        try:
            ready = await self._ready(op, request)
        except ResourceDoesNotExist as err:
            raise _no_node(op, err) from err
        if len(ready) == want4 + want6:
            op.ready = self._warm.given.transfers(op.identity.handle)
            return ready
        request = replace(
            request,
            num4=request.num4 - sum(":" not in one for one in ready),
            num6=request.num6 - sum(":" in one for one in ready),
        )
        try:
            async with self._alone(op):
                op.checkpoint()  # the turn may have been long in coming
                done = await self.allocator.auto_assign(request)
        except TortieError:
            await self._undo(op, ready)
            raise
        if not ready:  # whose are counted later
            op.counted = max((part.counted for part in (done.v4, done.v6) if part is not None), default=0)
        new = [one for part in (done.v4, done.v6) if part is not None for one in part.addresses]
        got = sorted([*ready, *new], key=lambda one: ":" in one)
        short = next((part for part in (done.v4, done.v6) if part is not None and part.shortage), None)
        if done.error is None and short is None:
            return got
        await self._undo(op, got)
        if isinstance(done.error, ResourceDoesNotExist):
            raise _no_node(op, done.error) from done.error
        if done.error is not None and not isinstance(done.error, IPAMError):
            raise done.error
        version = short.version if short is not None else 4 if request.num4 and done.v4 is None else 6
        why = await self.allocator.why_not(request, version)
        if done.error is not None:
            raise CniError(Code.INTERNAL, str(done.error), why) from done.error
        raise CniError(
            Code.INTERNAL, f"failed to request IPv{version} addresses: {short.shortage if short else ''}", why
        )

    async def _ready(self, op: Operation, request: AutoAssign) -> list[str]:
        """What the node has ready and the request may have; the rest is to be assigned."""
        # Only `calico` writes an endpoint, by which an address is known to be used when notes are lost.
        # A VM's addresses are never given out before they are its own: two of its pods may want them.
        if not (op.home and self._warm.on) or op.call.plugin == CALICO_IPAM or op.identity.vm:
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
        if not names:
            return ()
        known = (await op.store.view.facts()).pools
        try:
            return pools.resolve(names, known, version)
        except IPAMError as err:
            raise CniError(Code.INTERNAL, str(err), advice.pools_to_name(known, version)) from err

    async def _assign_given(self, op: Operation, ask: Ask, chosen: Sequence[str]) -> list[str]:
        got: list[str] = []
        for address in chosen:
            request = AssignAddress(
                address=address,
                handle=op.identity.handle,
                attributes=attributes(op, time.time_ns()) | ask.attributes,
                host=op.identity.node,
                use=pools.WORKLOAD,
                cap=_cap(op),
            )
            try:
                async with self._alone(op):
                    op.checkpoint()
                    await self.allocator.assign_ip(request)
            except TortieError as err:
                await self._undo(op, got)
                raise await self._explained(op, err, address) from err
            got.append(address)
        return [f"{address}/{128 if ':' in address else 32}" for address in got]

    async def _explained(self, op: Operation, err: TortieError, address: str) -> TortieError:
        """An error about one particular address, with who has it or why nobody can."""
        try:
            if isinstance(err, ResourceAlreadyExists):
                why = advice.holder(address, await self.allocator.attributes(address))
            elif isinstance(err, ForeignBlock):
                why = advice.foreign_block(err.cidr, err.affinity)
            elif isinstance(err, IPAMError):
                why = advice.address_outside(address, (await op.store.view.facts(fresh=True)).pools)
            else:
                return err
        except TortieError as reason:  # such as that it rests, or was let go meanwhile
            why = str(reason)
        return CniError(Code.INTERNAL, str(err), why)

    async def _undo(self, op: Operation, got: Sequence[str]) -> None:
        await op.undo("assigned addresses", lambda: self.give_back(op, [IP(one).bare for one in got]))

    async def give_back(self, op: Operation, addresses: Sequence[str]) -> None:
        await self._warm.given.flush(op.identity.handle)
        requests = [
            ReleaseRequest(address, op.identity.handle)
            for address in addresses
            if not self._warm.given.never_was(address, op.identity.handle)
        ]
        if not requests:
            return
        async with self._alone(op):
            outcome = await self.allocator.release_ips(requests)
        if outcome.error is not None:
            raise outcome.error

    async def left_over(self, op: Operation, addresses: Sequence[str]) -> list[str]:
        handle = op.identity.handle
        await self._warm.given.make_sure(handle)
        if 0 < op.counted <= len(addresses):
            return []  # as almost always: asking would be a request for nothing
        try:
            counted = await self._count(op, handle)
            if counted <= len(addresses):
                return []
            held = await self.allocator.ips_by_handle(handle)
        except ResourceDoesNotExist:
            return []
        return [address for address in held if address not in addresses]

    async def _count(self, op: Operation, handle: str) -> int:
        """How many addresses a handle counts. Raises ResourceDoesNotExist."""
        return sum((await op.store.client.backend.get(HandleKey(handle))).value.block.values())

    async def release(self, op: Operation) -> None:
        await self._warm.given.flush(op.identity.handle)
        self._warm.given.forget(op.identity.handle)
        async with self._alone(op):
            # A sandbox has one or the other: version 2 of the plugin made it, or a later one.
            if not await self._release(op.identity.handle):
                await self._release(op.identity.legacy_handle)

    @contextlib.asynccontextmanager
    async def _alone(self, op: Operation) -> AsyncIterator[None]:
        """For at most 90 s once it is our turn. Raises CniError then; DEL puts right what was cut off."""
        async with self._turn, waiting.file_lock(op.conf.ipam_lock_file):
            try:
                async with asyncio.timeout(_LIMIT):
                    yield
            except TimeoutError as err:
                raise CniError(Code.TRY_AGAIN_LATER, f"IPAM did not finish within {_LIMIT:.0f} s") from err

    async def _release(self, handle: str) -> bool:
        """Whether there was such a handle."""
        try:
            await self.allocator.release_by_handle(handle)
        except ResourceDoesNotExist:
            _log.debug("handle %s holds nothing", handle)
            return False
        return True

    async def check(self, op: Operation, addresses: Sequence[str]) -> None:
        await self._warm.given.flush(op.identity.handle)
        try:
            held = set(await self.allocator.ips_by_handle(op.identity.handle))
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
        gone = {one.container for one in held if one.network == op.conf.name and not spared(one.container)}
        # One that cannot be released keeps the others' for no longer than its turn takes.
        await together(*(self._release_gone(op, container) for container in sorted(gone)))

    async def _release_gone(self, op: Operation, container: str) -> None:
        _log.info("releasing what container %s holds, which is gone", container)
        handle = cni_handle(op.conf.name, container)
        await self._warm.given.flush(handle)
        self._warm.given.forget(handle)
        async with self._alone(op):
            await self._release(handle)

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
            if VMI_NAME in owner:  # no container's: a VM's outlives them
                continue
            network, dot, container = clean_handle(attribute.handle_id).rpartition(".")
            if dot and owner.get(NODE) == node:
                pod, namespace = owner.get(POD, ""), owner.get(NAMESPACE, "")
                name = host_interface(namespace, pod, container_id=container, prefix=prefix)
                found.add(Holder(network, container, name))
    return found
