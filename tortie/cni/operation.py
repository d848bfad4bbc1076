"""One call being carried out: what it is about, and the means to do it.

Steps are never broken off in the middle: an operation looks between its steps whether anybody still
waits for it (checkpoint), and if not undoes what it did. The time limits of the single steps (ten
seconds for a call of etcd, twenty for one of a Kubernetes API that is not overloaded or for the kernel)
bound how long that can take.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from tortie.cni.conversation import Conversation
from tortie.cni.identity import Identity
from tortie.cni.netconf import VERSION_IF_MISSING, NetConf
from tortie.cni.pods import PodSource
from tortie.cni.protocol import CALICO_IPAM, Call, Code
from tortie.cni.store import Store
from tortie.core.errors import CniError, KernelError, TortieError
from tortie.core.paths import Paths
from tortie.ipam.transfer import Transfer

if TYPE_CHECKING:  # it carries out operations itself
    from tortie.cni.later import Later

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Operation:
    """`namespace` is an open descriptor of the container's, None if there is none (any more)."""

    call: Call
    conf: NetConf
    stdin: bytes
    shim: Conversation
    store: Store
    pods: PodSource
    paths: Paths
    identity: Identity
    stopping: asyncio.Event  # set when the server is to end
    later: "Later"  # what ADDs that have answered still owe
    home: bool = False  # whether `store` is known to be the server's own datastore, and the node its own
    namespace: int | None = None
    why_no_namespace: str = ""
    counted: int = 0  # addresses that the container's handle counts after an assignment; 0: not known
    routed: bool = True  # whether the host is to lead the addresses here; not those of a VM still elsewhere
    ready: tuple[Transfer, ...] = ()  # of an assignment's addresses, if all of them were ready ones

    @property
    def version(self) -> str:
        """Of the answer; a configuration without one is answered as Calico's two binaries do."""
        return self.conf.cniVersion or ("0.1.0" if self.call.plugin == CALICO_IPAM else VERSION_IF_MISSING)

    def of_container(self, container_id: str) -> "Operation":
        """The same for another container of the workload."""
        return replace(self, identity=replace(self.identity, container_id=container_id))

    def ensure_container(self) -> int:
        """The container's namespace. Raises CniError if there is none."""
        if self.namespace is None:
            raise CniError(
                Code.UNKNOWN_CONTAINER, f'failed to open netns "{self.call.netns}"', self.why_no_namespace
            )
        return self.namespace

    def checkpoint(self) -> None:
        """Raises CniError if going on would be of no use to anybody."""
        if self.shim.gone.is_set():
            raise CniError(Code.TRY_AGAIN_LATER, "the runtime gave up waiting")
        if self.stopping.is_set():
            raise CniError(Code.TRY_AGAIN_LATER, "the CNI server is being stopped")

    async def while_wanted(self, what: Awaitable[T]) -> T:
        """Wait for something that may be broken off at any time, such as a file to appear."""
        task = asyncio.ensure_future(what)
        ends = [asyncio.ensure_future(event.wait()) for event in (self.shim.gone, self.stopping)]
        try:
            await asyncio.wait([task, *ends], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.checkpoint()
            return await task
        finally:
            for pending in (task, *ends):
                pending.cancel()

    async def undo(self, what: str, action: Callable[[], Awaitable[object]]) -> None:
        """One step of a roll-back: its failure is told, and does not keep the others from being undone."""
        try:
            await action()
        except TortieError as err:
            _log.error("%s: could not undo: %s: %s", self.identity, what, err)


async def in_thread(limit: float, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking kernel work on a thread. Raises KernelError if it takes longer than `limit` seconds.

    The thread cannot be stopped: after that error the work may still happen.
    """
    work = asyncio.to_thread(function, *args, **kwargs)
    try:
        async with asyncio.timeout(limit):
            return await work
    except TimeoutError as err:
        name = getattr(function, "__name__", "work").replace("_", " ")
        raise KernelError("carry out", name, text=f"not done within {limit:.0f} s") from err


N = TypeVar("N", int, int | None)


async def in_thread_on(limit: float, what: str, function: Callable[[N], T], namespace: N) -> T:
    """in_thread() for work on a namespace; `what` names it in an error.

    The thread has a descriptor of its own: it may outlive the call, and then the call's number already
    stands for something else.
    """
    owned = [namespace if namespace is None else os.dup(namespace)]  # whoever takes it out closes it

    def work() -> T:
        descriptor = owned.pop()
        try:
            return function(descriptor)
        finally:
            _close(descriptor)

    work.__name__ = what
    try:
        return await in_thread(limit, work)
    finally:
        with contextlib.suppress(IndexError):  # the thread has it, unless it never began
            _close(owned.pop())


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
