"""The addresses of KubeVirt's VMs: a pod gets its VM's, and leaves it to the next one.

An AddressManager for the calls about one such pod (kubevirt.py says what changes, this does it). Addresses
that are kept ready are never a VM's: they are the container's, and go with it. Where persistence is disabled,
a VM's pod is as any other; what the VM held until then is given back with its last pod.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tortie.cni import attachments, endpoints, kubevirt
from tortie.cni.addressing import Ask, CalicoIpam, attributes
from tortie.cni.kubevirt import Launched
from tortie.cni.operation import Operation
from tortie.cni.protocol import Code
from tortie.cni.result import IP, Result
from tortie.core.errors import CniError, ResourceDoesNotExist, UpdateConflict
from tortie.datastore.types.ipam import AllocationAttribute

_DISABLED = "live migration target pod is not allowed when KubeVirtVMAddressPersistence is disabled"
_TRIES = 5  # an address has two users at most, and each changes it once


async def of(op: Operation, plain: CalicoIpam, launched: Launched) -> "VMAddresses":
    """For a call about a pod of a VM's. Raises DatastoreUnreachable."""
    persistent = (await op.store.view.facts()).config.kubeVirtVMAddressPersistence != "Disabled"
    found = VMAddresses(plain, launched, persistent=persistent)
    op.routed = not found.arriving
    return found


class VMAddresses:
    def __init__(self, plain: CalicoIpam, launched: Launched, *, persistent: bool) -> None:
        """`plain` are the addresses of containers, `persistent` whether the VM keeps its own."""
        self._plain = plain
        self._allocator = plain.allocator
        self._launched = launched
        self._persistent = persistent

    @property
    def arriving(self) -> bool:
        """Whether the VM is still elsewhere: the host does not lead its address here yet."""
        return self._persistent and self._launched.migration != ""

    def _of_machine(self, op: Operation) -> Operation:
        return replace(op, identity=replace(op.identity, vm=self._launched.name))

    async def _held(self, op: Operation) -> dict[str, AllocationAttribute]:
        """The VM's addresses -> who uses them."""
        try:
            return await self._allocator.users_by_handle(self._of_machine(op).identity.handle)
        except ResourceDoesNotExist:
            return {}

    # --- ADD ------------------------------------------------------------------------------------

    async def assign(self, op: Operation, ask: Ask) -> Result:
        self._launched.check()
        if not self._persistent:
            if self._launched.migration:
                raise CniError(Code.INTERNAL, _DISABLED)
            return await self._plain.assign(op, ask)
        handle = self._of_machine(op).identity.handle
        held = sorted(await self._held(op), key=lambda address: ":" in address)
        if held:
            user = attributes(op, time.time_ns()) | self._launched.attributes
            for address in held:
                change = kubevirt.arrival(self.arriving, user)
                await self._allocator.set_owners(address, handle, change)
            return Result(ips=tuple(IP(f"{one}/{128 if ':' in one else 32}") for one in held))
        if self.arriving:
            text = f"migration target pod but no IP allocated to VM handle {handle}"
            raise CniError(Code.INTERNAL, text)
        return await self._plain.assign(
            self._of_machine(op), replace(ask, attributes=self._launched.attributes)
        )

    async def give_back(self, op: Operation, addresses: Sequence[str]) -> None:
        if self._persistent:
            await self._leave(op)
        else:
            await self._plain.give_back(op, addresses)

    async def left_over(self, op: Operation, addresses: Sequence[str]) -> list[str]:
        return [] if self._persistent else await self._plain.left_over(op, addresses)

    # --- DEL ------------------------------------------------------------------------------------

    async def release(self, op: Operation) -> None:
        """The VM's address if nobody will want it any more; what the container itself holds in any case."""
        owned = attachments.own(op.identity, await endpoints.listed(op.store.client, op.identity))
        if all(one.spec.containerID in ("", op.identity.container_id) for one in owned):
            await self._leave(op)  # else the pod is there, in a newer sandbox
        await self._plain.release(op)

    async def _leave(self, op: Operation) -> None:
        """Others change the same addresses meanwhile: who goes last sees that nobody is left."""
        handle = self._of_machine(op).identity.handle
        for attempt in range(1, _TRIES + 1):
            held = await self._held(op)
            changes = {
                address: change
                for address, found in held.items()
                if (change := kubevirt.departure(found, self._launched.pod)) is not None
            }
            if not changes:
                break
            try:
                for address, change in changes.items():
                    await self._allocator.set_owners(address, handle, change)
            except (UpdateConflict, ResourceDoesNotExist):
                if attempt == _TRIES:
                    raise
        wanted = self._persistent and not self._launched.ending
        if held and not wanted and all(map(kubevirt.deserted, held.values())):
            await self._release(handle)

    async def _release(self, handle: str) -> None:
        try:
            await self._allocator.release_by_handle(handle)
        except ResourceDoesNotExist:
            return

    # --- CHECK, GC, STATUS ------------------------------------------------------------------------

    async def check(self, op: Operation, addresses: Sequence[str]) -> None:
        """The VM's, or the container's of a time when persistence was disabled."""
        held = await self._held(op)
        whose = self._of_machine(op) if any(one in held for one in addresses) else op
        await self._plain.check(whose, addresses)

    async def collect(self, op: Operation, spared: Callable[[str], bool]) -> None:
        await self._plain.collect(op, spared)

    async def status(self, op: Operation) -> None:
        await self._plain.status(op)
