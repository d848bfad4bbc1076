"""The time after our own start, when the kernel knows more than we do.

Routes of the last run stay in the kernel until the peers had their say: every peer has sent its
End-of-RIB, or a time has passed in which they could have come back. Only then is what nobody
announced any more removed, and what has fewer next hops than before changed. (RFC 4724, 4.1: the
restarting speaker defers route selection.)

Pure: the clock's reading is an argument.
"""

from collections.abc import Iterable


class Startup:
    def __init__(self, peers: Iterable[str], deadline: float) -> None:
        """Wait for `peers`, at most until `deadline`."""
        self._missing = set(peers)
        self._not_restarting = set(self._missing)
        self.deadline = deadline
        self.over = not self._missing

    def heard(self, peer: str) -> None:
        """The peer has told all it knows."""
        self._missing.discard(peer)
        self._not_restarting.discard(peer)

    def restarting(self, peer: str) -> None:
        """The peer restarts itself and may be waiting for our End-of-RIB: ours must not wait for its own."""
        self._not_restarting.discard(peer)

    def forget_others(self, peers: Iterable[str]) -> None:
        """Sessions were removed from the configuration."""
        known = set(peers)
        self._missing &= known
        self._not_restarting &= known

    def may_end_rib(self, now: float) -> bool:
        """Whether a peer that hears of other peers' routes can be told that this was all."""
        return self.over or not self._not_restarting or now >= self.deadline

    def check(self, now: float) -> bool:
        """True once, when the time is over."""
        if self.over or (self._missing and now < self.deadline):
            return False
        self.over = True
        return True
