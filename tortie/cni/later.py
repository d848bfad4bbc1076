"""What an ADD that has answered still owes to the datastore: its endpoint.

An ADD that gets an address which the node had ready answers when the interface is there, without a
question to the datastore. Then the address is made the container's (warm.py), and only when it is known
to be, the endpoint is written. Until then felix lets nothing of the container through: should the address
turn out to be somebody else's, two have never used it, and this one's interface is taken away.

Each debt is a file from before the answer until it is paid: a killed server goes on with it. A write that
fails is tried again until it is done or the container's DEL comes. Meanwhile STATUS and readiness say so,
and no other ADD answers early: with the datastore away, ADD fails, as it does without ready addresses.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import structs

from tortie.cni import endpoint, endpoints, wiring
from tortie.cni.addressing import holders
from tortie.cni.identity import Identity, marked
from tortie.cni.notes import Notes
from tortie.cni.operation import in_thread
from tortie.cni.protocol import Code
from tortie.cni.warm import AGAIN, WarmPool
from tortie.core import tasks
from tortie.core.backoff import Retry
from tortie.core.errors import CniError, DatastoreUnreachable, ResourceDoesNotExist, TortieError, Unauthorized
from tortie.core.paths import Paths
from tortie.datastore import codec, validate
from tortie.datastore.client import Client
from tortie.datastore.keys import BlockList
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.ipam.errors import IPAMError
from tortie.ipam.transfer import Transfer

_log = logging.getLogger(__name__)

_AWAY = (DatastoreUnreachable, Unauthorized, CniError)  # a write cannot be made: nobody's could
# Seconds a call waits for what an earlier one owes: etcd has answered or failed by then. A Kubernetes API
# may take longer; the runtime is told to try again then.
_PAID_LIMIT = 15.0
_LINK_LIMIT = 20.0  # seconds for looking at interfaces, or for taking one away


class Debt(msgspec.Struct, frozen=True):
    identity: Identity
    transfers: tuple[Transfer, ...]  # of the container's addresses, all of which were ready ones
    endpoint: dict[str, Any]  # as if there were none yet
    profile: bool  # whether the network itself is a profile
    ended: bool = False  # whether it can never be paid any more, and waits for the container's DEL

    @property
    def name(self) -> str:
        """Of its note."""
        return _name(self.identity)


def _name(identity: Identity) -> str:
    return hashlib.sha256(identity.alias.encode()).hexdigest()


@dataclass(slots=True)
class _Open:
    debt: Debt
    restored: bool  # whether a former process made it
    forgiven: asyncio.Event = field(default_factory=asyncio.Event)  # set when it is not to be paid any more
    over: asyncio.Event = field(default_factory=asyncio.Event)  # set when nothing will be written any more
    problem: str = ""  # why the last attempt failed
    refused: bool = False  # whether that is about this endpoint, while the datastore is well
    ended: bool = False  # as in the debt, from when it turned out
    paying: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Met:
    """Who may have had an ADD already. `workload` None: not known."""

    container: str
    workload: tuple[str, str] | None


class Later:
    """`in_sync` is set while the datastore is followed; `keeps_endpoints` as in store.Store.

    Make it in a running event loop.
    """

    def __init__(
        self,
        client: Client,
        warm: WarmPool,
        paths: Paths,
        in_sync: asyncio.Event,
        *,
        keeps_endpoints: bool = True,
    ) -> None:
        self._client = client
        self._keeps_endpoints = keeps_endpoints
        self._warm = warm
        self._in_sync = in_sync
        self._notes = Notes(paths.owed_endpoints, Debt)
        # alias of an attachment -> whose it is; a container of which no attachment is known, by its ID
        self._met: dict[str, _Met] = {}
        self._begun = False  # whether those from before the start are in it
        self._open: dict[str, _Open] = {}  # name of a debt -> how it stands
        self._unreadable: set[str] = set()  # names of debts that nobody can read
        for name, debt in self._notes.read():
            if debt is None:
                self._unreadable.add(name)
            else:
                one = self._open[name] = _Open(debt, restored=True, ended=debt.ended)
                if debt.ended:
                    one.over.set()
                else:
                    warm.given.give_again(debt.transfers)

    async def run(self) -> None:
        """Until cancelled: pay."""
        await self._in_sync.wait()
        try:
            for one in self._open.values():
                if not one.over.is_set():
                    self._pay(one)
            if self._warm.on:
                await self._meet_all()
                self._begun = True
            await asyncio.Event().wait()
        finally:
            self._begun = False
            await tasks.cancel([one.paying for one in self._open.values() if one.paying is not None])

    async def _meet_all(self) -> None:
        """The containers of former processes, also those whose ADD was cut off."""
        links = await in_thread(_LINK_LIMIT, wiring.host_links)
        blocks = await self._client.backend.list(BlockList())
        held = holders((kv.value for kv in blocks.items), self._warm.node, "")
        listed = await self._client.list(WorkloadEndpoint)
        workloads = {
            one.spec.containerID: (one.namespace, one.spec.pod or one.spec.containerID)
            for one in listed.items
            if one.spec.node == self._warm.node and one.spec.containerID
        }
        attached = {link.alias: marked(link.alias)[1] for link in links if marked(link.alias)[1]}
        given = {handle.rpartition(".")[2] for handle in self._warm.given.handles()}
        rest = ({one.container for one in held} | given | workloads.keys()) - set(attached.values())
        for name, container in (attached | {one: one for one in rest}).items():
            self._met.setdefault(name, _Met(container, workloads.get(container)))
        _log.info("the ADD of a container other than %d known ones may answer at once", len(self._met))

    # --- what calls ask -------------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """'' or how many containers wait for their endpoint because the datastore is away."""
        return self._told([one for one in self._open.values() if not one.refused and not one.over.is_set()])

    @property
    def refusals(self) -> str:
        """'' or how many containers have no endpoint while all is well with the datastore, and why.

        This is not to make the node unready: others can be added.
        """
        refused = self._told([one for one in self._open.values() if one.refused])
        lost = f"{len(self._unreadable)} notes of endpoints cannot be read" if self._unreadable else ""
        return "; ".join(text for text in (refused, lost) if text)

    def _told(self, some: list[_Open]) -> str:
        failing = [one.problem for one in some if one.problem]
        if not failing:
            return ""
        return f"{len(failing)} endpoints of containers are not written yet: {failing[0]}"

    def may_answer_early(self, identity: Identity) -> bool:
        """Whether nothing needs to be asked before an ADD: the container is new, and all else is well.

        The workload is new, too: where an earlier sandbox's endpoint stands, felix has opened an interface
        of this very name already, under what was true of the earlier one.
        """
        return (
            self._begun
            and (self._keeps_endpoints or identity.uid != "")  # a pod's name alone can be another's by then
            and self._warm.sure
            and self._in_sync.is_set()
            and not self._knows(identity)
            and not self.problem
            and not self._of_workload(identity)
        )

    def meet(self, identity: Identity) -> None:
        """There is an ADD for the container."""
        self._met[identity.alias] = _Met(identity.container_id, identity.workload)

    def forget(self, identity: Identity) -> None:
        """The attachment is gone; its container may have others."""
        self._forget(identity.alias, identity.container_id)

    def forget_gone(self, network: str, spared: Callable[[str], bool]) -> None:
        """Nothing is left of the network's attachments but of those containers that are spared."""
        for name, one in list(self._met.items()):
            if marked(name)[0] == network and not spared(one.container):
                self._forget(name, one.container)

    def _forget(self, alias: str, container: str) -> None:
        self._met.pop(alias, None)
        if [name for name, one in self._met.items() if one.container == container] == [container]:
            del self._met[container]

    def _knows(self, identity: Identity) -> bool:
        return any(
            one.container == identity.container_id or one.workload == identity.workload
            for one in self._met.values()
        )

    async def await_paid(self, identity: Identity) -> None:
        """Wait until nothing is owed for the workload. Raises CniError if that takes long."""
        mine = self._of_workload(identity)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PAID_LIMIT):
                for one in mine:
                    await one.over.wait()
        if late := [one for one in mine if not one.over.is_set()]:
            reason = late[0].problem or "the datastore has not answered yet"
            raise CniError(Code.TRY_AGAIN_LATER, f"the endpoint of {identity} is not written yet", reason)

    async def forgive(self, which: Callable[[Identity], bool]) -> None:
        """What is owed for these attachments is not wanted any more; waits for a write under way."""
        forgiven = [one for one in self._open.values() if which(one.debt.identity)]
        for one in forgiven:
            one.forgiven.set()
        if writes := [one.paying for one in forgiven if one.paying is not None]:
            await asyncio.wait(writes)
        for one in forgiven:
            self._strike_off(one)

    async def forgive_own(self, identity: Identity) -> None:
        """What is owed for the attachment itself is not wanted any more, also what nobody can read."""
        await self.forgive(lambda one: one.alias == identity.alias)
        if (name := _name(identity)) in self._unreadable:
            self._unreadable.discard(name)
            self._notes.remove(name)

    # --- from ADD -------------------------------------------------------------------------------

    def note(
        self, identity: Identity, transfers: tuple[Transfer, ...], made: WorkloadEndpoint, *, profile: bool
    ) -> Debt:
        """Before the answer; the transfers make the addresses the container's.

        Raises OSError, and ValidationError for what the datastore would never take.
        """
        validate.check(validate.with_defaults(made))
        if profile:
            network = endpoint.network_profile(identity.network, identity.orchestrator)
            validate.check(validate.with_defaults(network))
        debt = Debt(identity, transfers, codec.to_plain(made), profile)
        self._notes.write(debt.name, debt)
        return debt

    def owe(self, debt: Debt) -> None:
        """From the answer on."""
        self._unreadable.discard(debt.name)
        one = self._open[debt.name] = _Open(debt, restored=False)
        self._pay(one)

    def tear_up(self, debt: Debt) -> None:
        """There was no answer."""
        self._notes.remove(debt.name)

    # --- paying ---------------------------------------------------------------------------------

    def _of_workload(self, identity: Identity) -> list[_Open]:
        return [one for one in self._open.values() if one.debt.identity.workload == identity.workload]

    def _pay(self, one: _Open) -> None:
        def died(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (err := task.exception()) is not None:
                one.problem, one.refused = str(err) or type(err).__name__, True
                one.over.set()

        one.paying = tasks.spawn(self._until_paid(one), f"writing the endpoint of {one.debt.identity}")
        one.paying.add_done_callback(died)

    async def _until_paid(self, one: _Open) -> None:
        retry = Retry(AGAIN)
        while not one.forgiven.is_set():
            try:
                await self._attempt(one, again=one.restored or retry.failures > 0)
            except TortieError as err:
                refused = not isinstance(err, _AWAY)
                delay = retry.wait()
                news = retry.failures == 1 or refused != one.refused
                one.problem, one.refused = str(err), refused
                if news:
                    _log.error(
                        "cannot write the endpoint of %s, trying again: %s", one.debt.identity, one.problem
                    )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await one.forgiven.wait()
                continue
            if one.problem:
                _log.info("the endpoint of %s is written now", one.debt.identity)
            one.problem, one.refused = "", False
            one.over.set()
            if not one.ended:
                self._strike_off(one)
            return

    def _strike_off(self, one: _Open) -> None:
        one.over.set()
        self._open.pop(one.debt.name, None)
        self._notes.remove(one.debt.name)

    def _end(self, one: _Open) -> None:
        """It can never be paid any more; noted, for what stood in its way can be gone after a restart."""
        one.ended = True
        try:
            self._notes.write(one.debt.name, structs.replace(one.debt, ended=True))
        except OSError as err:
            _log.warning(
                "cannot note that the endpoint of %s is not to be written: %s", one.debt.identity, err
            )

    async def _attempt(self, one: _Open, *, again: bool) -> None:
        debt, identity = one.debt, one.debt.identity
        if again:  # time has passed: whether the address is still the container's must be asked
            self._warm.given.give_again(debt.transfers)
        await self._warm.given.flush(identity.handle)
        if lost := self._warm.given.lost_by(identity.handle):
            await self._take_away(identity, lost)
            self._end(one)
            return
        if missing := self._warm.given.missing(debt.transfers):
            raise IPAMError(missing)
        if one.forgiven.is_set():
            return
        made = codec.from_plain(WorkloadEndpoint, debt.endpoint)
        try:
            await self._write(identity, made)
        except ResourceDoesNotExist as err:
            if self._keeps_endpoints:
                raise
            _log.warning("the endpoint of %s is not written: %s", identity, err)
            self._end(one)
            return
        if debt.profile:
            await endpoints.ensure_profile(self._client, identity.network, identity.orchestrator)

    async def _write(self, identity: Identity, made: WorkloadEndpoint) -> None:
        """Where a pod itself is the endpoint, its name may be that of another pod by now, elsewhere even."""
        same_pod = not self._keeps_endpoints
        existing = await endpoints.find(self._client, identity) if same_pod else None
        await endpoints.write(self._client, identity, made, existing, same_pod=same_pod)

    async def _take_away(self, identity: Identity, lost: list[str]) -> None:
        """The container goes on without a network: its runtime has been told an address already."""
        doomed = await in_thread(
            _LINK_LIMIT, wiring.cut, identity.host_interfaces, identity.alias, None, identity.ifname
        )
        if doomed is not None:
            await in_thread(_LINK_LIMIT, wiring.delete, doomed, None)
        _log.error(
            "%s has no network: what this node had ready for it is not its own: %s; delete it to have it "
            "started anew",
            identity,
            ", ".join(lost),
        )
