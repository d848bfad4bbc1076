"""One kind of kernel object that felix keeps as it should be: a reconciler and when it is due.

A duty is due when a wish changed, when a failed object may be tried again, or when the kernel is to be
read anew - at intervals, with jitter so that a hundred nodes do not all do it at once.

To read the kernel anew takes long where there is much in it, and no change could be made meanwhile. So the
owner may do it a little before it is due, beside its other work (look_ahead()).
"""

import logging
from collections.abc import Callable, Hashable, Mapping
from math import inf
from typing import Generic, TypeVar

from tortie.core.reconcile import Outcome, Reconciler, State, Target

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_JITTER = 0.1  # of the interval, as Calico's
_AHEAD = 0.2  # of the pause: how long before a reading is due it may be done beside other work
_TRIES = 4  # within that time, as a write of our own makes it worthless
_log = logging.getLogger(__name__)


class Duty(Generic[K, V]):
    def __init__(
        self,
        name: str,
        target: Target[K, V],
        *,
        interval: float,
        clock: Callable[[], float],
        rand: Callable[[], float],
        spare: Callable[[K, V], float] | None = None,
        recheck: float = 0.0,
    ) -> None:
        """`interval`: seconds between readings of the kernel, 0: never by itself.

        `recheck`: read again this soon after a write, then after twice that and so on up to `interval`:
        others may have overwritten what we wrote without knowing of it. 0: no.
        """
        self.name = name
        self._reconciler: Reconciler[K, V] = Reconciler(name, target, clock=clock, rand=rand, spare=spare)
        self._same = target.same
        self._clock, self._rand = clock, rand
        self._interval, self._recheck = interval, recheck
        self._pause = interval or inf
        self._read_at = -inf  # when the kernel was read last
        self._refresh_at = self._ahead_at = inf
        self._looking = False  # ahead
        self._dirty = True
        self._retry_at: float = inf
        self.outcome = Outcome()

    # --- wishes ---------------------------------------------------------------------------------

    @property
    def desired(self) -> Mapping[K, V]:
        return self._reconciler.desired

    def put(self, key: K, value: V) -> None:
        before = self.desired.get(key)
        if before is not value and (before != value or key not in self.desired):
            self._reconciler.put(key, value)
            self._dirty = True

    def drop(self, key: K) -> None:
        if key in self.desired:
            self._reconciler.drop(key)
            self._dirty = True

    def want(self, desired: Mapping[K, V]) -> None:
        for key in self.desired.keys() - desired.keys():
            self.drop(key)
        for key, value in desired.items():
            self.put(key, value)

    # --- the kernel -----------------------------------------------------------------------------

    def observe(self, key: K, value: V | None) -> None:
        """An event told of one object; it counts from now on. Most events are echoes of what we did."""
        self._reconciler.observe(key, value)
        wanted = self.desired.get(key)
        if value is None or wanted is None:
            self._dirty |= value is not wanted
        else:
            self._dirty |= not self._same(wanted, value)

    def forget(self) -> None:
        """Something may have changed behind our back: read before anything else."""
        self._reconciler.forget()
        self._dirty = True

    def touch(self) -> None:
        """Look again at what is there though no wish changed: something that was spared may go now."""
        self._dirty = True

    def next_due(self) -> float:
        """When sync() has something to do; in the past if it has already."""
        refresh_at = inf if self._looking else self._refresh_at
        return -inf if self._dirty else min(self._retry_at, refresh_at)

    @property
    def settled(self) -> bool:
        """Everything is as wished, as far as is known."""
        return not self._dirty and self.outcome.ok

    def reason(self, key: K) -> str:
        """Why an object is not as it should be yet."""
        status = self._reconciler.status(key)
        return "" if status is None or status.state is State.DONE else status.reason or status.state.value

    async def sync(self) -> Outcome:
        """Do what is due; an empty outcome if nothing is."""
        now = self._clock()
        if now < self.next_due():
            return Outcome(failed=self.outcome.failed)
        if now >= self._refresh_at and not self._looking:
            self._reconciler.forget()
            self._schedule_next(now)
        elif self._refresh_at == inf:
            self._read_at = now
            self._schedule(now)
        self._dirty = False
        self.outcome = await self._reconciler.sync()
        self._retry_at = inf if self.outcome.retry_at is None else self.outcome.retry_at
        if (self.outcome.updated or self.outcome.deleted) and self._recheck:
            self._pause = min(self._recheck, self._interval or inf)
            self._schedule(self._clock())
        return self.outcome

    def _schedule_next(self, now: float) -> None:
        """After a reading."""
        self._read_at = now
        self._pause = min(self._pause * 2, self._interval or inf)
        self._schedule(now)

    def _schedule(self, now: float) -> None:
        """However often something is written, the kernel is read once in an interval."""
        jitter = 1 + _JITTER * self._rand()
        self._refresh_at = min(now + self._pause * jitter, self._read_at + (self._interval or inf) * jitter)
        self._ahead_at = self._refresh_at - _AHEAD * self._pause if self._pause < inf else inf

    # --- reading ahead --------------------------------------------------------------------------

    def look_ahead_due(self) -> float:
        """When look_ahead() may be called; inf while nothing is to be read."""
        return inf if self._looking else self._ahead_at

    async def look_ahead(self) -> None:
        """Read the kernel anew while sync() goes on beside; only for targets whose read() allows it."""
        self._looking = True
        try:
            good = await self._reconciler.refresh()
        finally:
            self._looking = False
        if good:
            self._schedule_next(self._clock())
            self._dirty |= self._reconciler.in_doubt
        else:
            self._ahead_at += _AHEAD * self._pause / _TRIES
