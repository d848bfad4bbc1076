"""The one reconciler: makes what is be what should be, for any kind of object.

Used for routes, chains, sets, links and peers alike. A kind of object supplies a Target (read what
is there, apply a difference); everything else - the difference, the status of every object, retry
with back-off per object, the memory of what is there - is here and nowhere else.

Invariants:
- Desired state is a full set. Start, restart and repair are the same operation: list, diff, apply.
- An object whose desired value changed is tried at once; one that failed waits for its back-off.
- A listed object that is not desired is deleted, unless the Target says it is to be spared.
- Every desired object has a Status that says pending, done, or failed with the reason and since when.
- What is neither in doubt nor failing is as wished: a change costs what changed, not what there is.

It does not know the kernel, does no I/O itself and never sleeps: sync() returns when to come again.
"""

import logging
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from tortie.core.backoff import Backoff
from tortie.core.errors import KernelError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Target(Protocol[K, V]):
    """What one kind of object must supply. All three are idempotent; deleting what is gone succeeds."""

    async def read(self) -> Mapping[K, V]:
        """Everything of ours that is there now. Raises KernelError if it cannot be read."""

    async def apply(self, update: Mapping[K, V], delete: Collection[K]) -> Mapping[K, str]:
        """Carry out one difference, in the order that is safe for this kind of object.

        Returns the reason for each key that failed; keys not named succeeded. May raise KernelError
        when nothing could be done at all.
        """

    def same(self, desired: V, actual: V) -> bool:
        """Whether `actual`, as read() reports it, is what `desired` asks for."""


class State(Enum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Status:
    """Where one object stands; `since` is the clock's reading when it entered this state."""

    state: State
    since: float
    reason: str = ""


@dataclass(slots=True)
class Outcome:
    """What one sync() did. `retry_at` is when to call again (clock time), None if nothing is due."""

    updated: int = 0
    deleted: int = 0
    failed: dict[Any, str] = field(default_factory=dict)  # key -> reason, also if it only waits
    retry_at: float | None = None

    @property
    def ok(self) -> bool:
        return not self.failed


@dataclass(slots=True)
class _Failure:
    count: int
    retry_at: float
    reason: str


_LISTING = "<listing>"  # stands for the whole kind in Outcome.failed when it could not be read


def difference(
    desired: Mapping[K, V], actual: Mapping[K, V], same: Callable[[V, V], bool]
) -> tuple[dict[K, V], set[K]]:
    """What to write and what to delete so that `actual` becomes `desired`. Pure."""
    update = {
        key: value for key, value in desired.items() if key not in actual or not same(value, actual[key])
    }
    return update, actual.keys() - desired.keys()


class Reconciler(Generic[K, V]):
    """Holds the desired set of one kind of object and the last known actual set."""

    def __init__(
        self,
        name: str,
        target: Target[K, V],
        *,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] | None = None,
        backoff: Backoff | None = None,
        spare: Callable[[K, V], float] | None = None,
    ) -> None:
        """`spare(key, actual)`: for how many more seconds to leave an undesired object alone (0: delete)."""
        self.name = name
        self._target = target
        self._clock = clock
        self._rand = rand or Random().random
        self._backoff = backoff or Backoff()
        self._spare = spare or (lambda _key, _value: 0.0)
        self._desired: dict[K, V] = {}
        self._actual: dict[K, V] = {}  # as last listed, and written since
        self._forgotten = 0  # how often
        self._listed = -1  # how often it had been forgotten when the last listing began
        self._doubted: set[K] = set()  # where wished and actual may differ, though nothing failed
        self._status: dict[K, Status] = {}
        self._failures: dict[K, _Failure] = {}  # includes keys whose deletion failed
        self._listing_failures = 0
        self._listing_retry_at = 0.0
        self._complained = False
        self._log = logging.getLogger(f"tortie.reconcile.{name}")

    # --- what should be -------------------------------------------------------------------------

    @property
    def desired(self) -> Mapping[K, V]:
        return self._desired

    def want(self, desired: Mapping[K, V]) -> None:
        """Replace the whole desired set."""
        self.drop_all(self._desired.keys() - desired.keys())
        self.put_all(desired)

    def put(self, key: K, value: V) -> None:
        """Want `key` to be `value`. A changed wish forgets earlier failures."""
        self.put_all({key: value})

    def put_all(self, wanted: Mapping[K, V]) -> None:
        """As put(), for thousands at once."""
        known = self._desired
        changed = {key: value for key, value in wanted.items() if key not in known or known[key] != value}
        known.update(changed)
        self._doubt(changed.keys())
        self._status.update(dict.fromkeys(changed, Status(State.PENDING, self._clock())))

    def drop(self, key: K) -> None:
        """Want `key` no more; it is deleted by the next sync."""
        self.drop_all((key,))

    def drop_all(self, keys: Collection[K]) -> None:
        for key in keys:
            self._desired.pop(key, None)
            self._status.pop(key, None)
        self._doubt(keys)

    def _doubt(self, keys: Collection[K]) -> None:
        self._doubted.update(keys)
        self._forgive(keys)

    # --- what is --------------------------------------------------------------------------------

    def observe(self, key: K, value: V | None) -> None:
        """Take over what an event said about one object (None: it is gone)."""
        if not self._known:
            return
        if value is None:
            self._actual.pop(key, None)
        else:
            self._actual[key] = value
        self._doubted.add(key)
        self._mark_if_drifted(key)

    def forget(self) -> None:
        """Trust nothing that was listed before: the next sync lists again, also if one is under way."""
        self._forgotten += 1
        self._actual = {}  # at once: a full table twice is much memory

    @property
    def _known(self) -> bool:
        """Whether what was listed still counts."""
        return self._listed == self._forgotten

    async def refresh(self) -> bool:
        """List while sync() may run beside it, for targets whose read() fails when a write overtakes it.

        Whether the list could be used; if not, what was known before still counts.
        """
        if not self._known:
            return False  # the next sync lists anyway
        try:
            self._take_list(await self._target.read())
        except KernelError:
            return False  # if there is more to it, a later sync will say so
        return True

    @property
    def in_doubt(self) -> bool:
        """Whether there may be something for sync() to do."""
        return not self._known or bool(self._doubted)

    def status(self, key: K) -> Status | None:
        return self._status.get(key)

    def statuses(self) -> Mapping[K, Status]:
        return self._status

    # --- making it so ---------------------------------------------------------------------------

    async def sync(self) -> Outcome:
        """Apply what is due. Never raises for a refusal of the kernel: that is in the outcome."""
        now = self._clock()
        outcome = Outcome()
        if not self._known and not await self._list(now, outcome):
            return self._finish(outcome)
        update, delete, settled = self._differing()
        self._forgive(settled)  # what is not desired went away by itself
        self._succeeded(settled & self._desired.keys())
        spared = self._spared(delete, now, outcome)
        self._doubted = set(spared)  # until their time has come; what fails is looked at anyway
        delete -= spared
        if self._failures:
            update = {key: value for key, value in update.items() if self._due(key, now)}
            delete = {key for key in delete if self._due(key, now)}
        waiting = self._failures.keys() - update.keys() - delete
        outcome.failed.update({key: self._failures[key].reason for key in waiting})
        if update or delete:
            await self._apply(update, delete, outcome)
        return self._finish(outcome)

    def _differing(self) -> tuple[dict[K, V], set[K], set[K]]:
        """What to write, what to delete, and what of all that was in doubt is as it should be."""
        looked_at = self._doubted | self._failures.keys()
        desired = {key: self._desired[key] for key in looked_at if key in self._desired}
        there = {key: self._actual[key] for key in looked_at if key in self._actual}
        update, delete = difference(desired, there, self._target.same)
        return update, delete, looked_at - update.keys() - delete

    def _spared(self, delete: Collection[K], now: float, outcome: Outcome) -> set[K]:
        waits = {key: wait for key in delete if (wait := self._spare(key, self._actual[key])) > 0}
        if finite := [wait for wait in waits.values() if wait != inf]:
            outcome.retry_at = now + min(finite)
        return set(waits)

    async def _list(self, now: float, outcome: Outcome) -> bool:
        if now < self._listing_retry_at:
            outcome.failed[_LISTING] = "waiting to list again"
            outcome.retry_at = self._listing_retry_at
            return False
        forgotten = self._forgotten
        try:
            self._take_list(await self._target.read())
        except KernelError as err:
            self._listing_failures += 1
            self._listing_retry_at = now + self._backoff.delay(self._listing_failures, self._rand)
            outcome.failed[_LISTING] = str(err)
            outcome.retry_at = self._listing_retry_at
            return False
        self._listed = forgotten
        self._listing_failures, self._listing_retry_at = 0, 0.0
        return True

    def _take_list(self, listed: Mapping[K, V]) -> None:
        """Note what is there; what is as wished is settled at once, so that nobody looks at it again."""
        self._actual = dict(listed)
        update, delete = difference(self._desired, self._actual, self._target.same)
        self._doubted |= update.keys() | delete
        for key, status in self._status.items():
            if key in update and status.state is State.DONE:
                self._status[key] = Status(State.PENDING, self._clock(), "changed behind our back")
        self._succeeded(self._desired.keys() - update.keys())

    async def _apply(self, update: Mapping[K, V], delete: Collection[K], outcome: Outcome) -> None:
        try:
            failed = await self._target.apply(update, delete)
        except KernelError as err:
            failed = dict.fromkeys([*update, *delete], str(err))
        except BaseException:
            self.forget()  # nobody knows how far it came
            raise
        carried_out = {key: value for key, value in update.items() if key not in failed}
        gone = [key for key in delete if key not in failed]
        self._actual.update(carried_out)
        for key in gone:
            self._actual.pop(key, None)
        self._succeeded(carried_out.keys())
        self._forgive(gone)
        for key, reason in failed.items():
            self._failed(key, reason)
        outcome.updated += len(carried_out)
        outcome.deleted += len(gone)
        outcome.failed.update(failed)
        if failed:
            self.forget()  # a refused write may have been half carried out: look again first

    def _due(self, key: K, now: float) -> bool:
        failure = self._failures.get(key)
        return failure is None or failure.retry_at <= now

    def _succeeded(self, keys: Collection[K]) -> None:
        self._forgive(keys)
        done = Status(State.DONE, self._clock())
        for key in keys:
            if (status := self._status.get(key)) is None or status.state is not State.DONE:
                self._status[key] = done

    def _forgive(self, keys: Collection[K]) -> None:
        if self._failures:
            for key in keys:
                self._failures.pop(key, None)

    def _failed(self, key: K, reason: str) -> None:
        count = self._failures[key].count + 1 if key in self._failures else 1
        retry_at = self._clock() + self._backoff.delay(count, self._rand)
        self._failures[key] = _Failure(count, retry_at, reason)
        if key not in self._desired:
            return
        before = self._status.get(key)
        since = before.since if before and before.state is State.FAILED else self._clock()
        self._status[key] = Status(State.FAILED, since, reason)

    def _mark_if_drifted(self, key: K) -> None:
        """A done object that is no longer as wished is pending again, from now on."""
        status = self._status.get(key)
        if status is None or status.state is not State.DONE:
            return
        if key not in self._actual or not self._target.same(self._desired[key], self._actual[key]):
            self._status[key] = Status(State.PENDING, self._clock(), "changed behind our back")

    def _finish(self, outcome: Outcome) -> Outcome:
        if self._failures:
            earliest = min(failure.retry_at for failure in self._failures.values())
            outcome.retry_at = min(earliest, inf if outcome.retry_at is None else outcome.retry_at)
        if outcome.failed and not self._complained:
            key, reason = next(iter(outcome.failed.items()))
            self._log.warning(
                "%d of %s could not be made so, retrying; first: %s: %s",
                len(outcome.failed), self.name, key, reason,
            )  # fmt: skip
            self._complained = True
        elif self._complained and not outcome.failed and not self._failures:
            self._log.info("%s are as they should be again", self.name)
            self._complained = False
        return outcome
