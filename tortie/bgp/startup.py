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
        self._missing = dict.fromkeys(peers, deadline)  # peer -> how long to wait for it
        self._restarting: set[str] = set()
        self.over = not self._missing

    def heard(self, peer: str) -> None:
        """The peer has told all it knows."""
        self._missing.pop(peer, None)

    def wait_until(self, peer: str, deadline: float) -> None:
        """The peer is up and will have told all it knows by then, though it may never say so."""
        if peer in self._missing:
            self._missing[peer] = min(self._missing[peer], deadline)

    def restarting(self, peer: str) -> None:
        """The peer restarts itself and may be waiting for our End-of-RIB: ours must not wait for its own."""
        self._restarting.add(peer)

    def forget_others(self, peers: Iterable[str]) -> None:
        """Sessions were removed from the configuration."""
        for peer in self._missing.keys() - set(peers):
            del self._missing[peer]

    def may_end_rib(self, now: float) -> bool:
        """Whether a peer that hears of other peers' routes can be told that this was all."""
        return self.over or not any(
            now < deadline for peer, deadline in self._missing.items() if peer not in self._restarting
        )

    def check(self, now: float) -> bool:
        """True once, when the time is over."""
        if self.over or any(now < deadline for deadline in self._missing.values()):
            return False
        self.over = True
        return True
