"""Graceful restart, receiving side (RFC 4724, 4.2): how long the paths of a lost session are kept.

The choice that users feel (a node that dies must not be a black hole for minutes, a restart must lose
nothing) is this:

- The TCP connection broke: the speaker restarts, its data plane goes on. Kept for the restart time it
  announced; ours announce 90 s, no more than their hold time, as the RFC recommends.
- The hold timer expired, or a NOTIFICATION was sent or received: the node is gone or in disagreement.
  Nothing is kept (RFC 4724, 4; RFC 4271, 6). A node that loses power so loses its routes after
  90 s, where BIRD's defaults take 240 s.
- The session was removed from the configuration: nothing is kept.

A second restart before the first is over does not drop the paths, as the RFC would have it (two quick
restarts of a node are common in upgrades); an overall limit keeps a flapping peer from holding them
for ever.

Pure: the clock's reading is an argument.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

_LIMIT = 360.0  # seconds from the first loss until nothing unconfirmed is kept; the usual stale-path time
_UNKNOWN_RESTART_TIME = 120  # of a peer whose OPEN an earlier run of the agent read: BIRD's default


@dataclass(frozen=True, slots=True)
class Capability:
    """What a peer's OPEN said. `families`: version -> whether it kept forwarding (the F bit)."""

    restart_time: int = _UNKNOWN_RESTART_TIME
    restarting: bool = False  # the R bit: it comes from a restart itself
    families: Mapping[int, bool] = field(default_factory=dict)


@dataclass(slots=True)
class Retention:
    """Whether the paths of one session are being kept although it is down or not yet confirmed."""

    capability: Capability | None = None  # of the present or last session; None: no graceful restart
    deadline: float | None = None  # sweep then; None: nothing is stale
    first_loss: float = 0.0

    def lost(self, reason: str, version: int, now: float) -> bool:
        """The session went down: whether to keep its paths as stale (else drop them)."""
        capability = self.capability
        if capability is None or version not in capability.families or not is_restart(reason):
            self.deadline = None
            return False
        if self.deadline is None:
            self.first_loss = now
        self.deadline = min(now + capability.restart_time, self.first_loss + _LIMIT)
        return capability.restart_time > 0

    def back(self, version: int, now: float) -> bool:
        """The session is up again, `capability` is its new OPEN's: whether stale paths stay until EOR."""
        if self.deadline is None:
            return True
        if self.capability is None or not self.capability.families.get(version, False):
            self.deadline = None  # RFC 4724, 4.2: it lost its forwarding state
            return False
        self.deadline = self.first_loss + _LIMIT
        return self.deadline > now

    def confirmed(self) -> None:
        """End-of-RIB came: what is still stale is gone."""
        self.deadline = None

    def expired(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline


def is_restart(reason: str) -> bool:
    """Whether ExaBGP's reason for a lost session is one after which the peer may just be restarting.

    Seen are `closing connection`, `notification sent (4,0)`, `notification received (6,2)`,
    `stop, message [removed]` and, after an error of its own, nothing.
    """
    return not reason.startswith(("notification ", "stop,"))
