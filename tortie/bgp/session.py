"""One peer as the agent sees it: its configuration, its state and why, and what is on its way to it."""

import re
from dataclasses import dataclass, field

from tortie.bgp.config import Peer
from tortie.bgp.graceful import Retention
from tortie.bgp.outbox import Outbox
from tortie.bgp.prefix import version

# RFC 4271, 4.5, 6 and RFC 4486: code -> name, (code, subcode) -> what it says
_CODES = {
    1: "Message header error",
    2: "OPEN error",
    3: "UPDATE error",
    4: "Hold timer expired",
    5: "State machine error",
    6: "Cease",
}
_SUBCODES = {
    (2, 1): "Unsupported version number",
    (2, 2): "Bad peer AS",
    (2, 3): "Bad BGP identifier",
    (2, 4): "Unsupported optional parameter",
    (2, 6): "Unacceptable hold time",
    (2, 7): "Required capability missing",
    (6, 1): "Maximum number of prefixes reached",
    (6, 2): "Administrative shutdown",
    (6, 3): "Peer de-configured",
    (6, 4): "Administrative reset",
    (6, 5): "Connection rejected",
    (6, 6): "Other configuration change",
    (6, 7): "Connection collision resolution",
    (6, 8): "Out of resources",
}


@dataclass(slots=True)
class Session:
    """`peer` is None while ExaBGP has a session that bgp.json does not name (yet, or any more)."""

    address: str
    since: float  # wall clock: when `up` last changed
    peer: Peer | None = None
    up: bool = False
    state: str = "Idle"  # RFC 4271, 8.2.2
    router_id: str = "0.0.0.0"
    hold_time: int = 0  # seconds, as the peer offered
    last_error: str = ""
    last_error_at: float = 0.0  # wall clock
    last_notification: str = ""  # the last error that was one; attempts at a new session do not hide it
    notified_at: float = 0.0  # wall clock: when that was
    carries_family: bool = True  # the peer's OPEN had the family of this session
    end_of_rib_sent: bool = False
    end_of_rib_received: bool = False
    retention: Retention = field(default_factory=Retention)
    outbox: Outbox = field(init=False)

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.address)

    @property
    def secured(self) -> bool:
        """Whether the session has a password."""
        return self.peer is not None and self.peer.password

    @property
    def version(self) -> int:
        return version(self.address)

    def failed(self, reason: str, at: float) -> None:
        """`reason` is ExaBGP's for a session, or an attempt at one, that ended.

        A NOTIFICATION says more than the connections that fail in its wake: for a while they do not hide it.
        """
        text = failure_text(reason, self.up)
        notified = _NOTIFICATION.match(reason) is not None
        if not notified and not self.up and at < self.notified_at + _TELLING:
            return
        self.last_error, self.last_error_at = text, at
        if self.secured and text == _ERRORS["ETIMEDOUT"]:
            self.last_error += _SECURED
        if notified:
            self.last_notification, self.notified_at = text, at


_LOST = "closing connection"  # ExaBGP's word, and after it the error if there was one
_ERRORS = {  # error of the connection -> what it says
    "ECONNREFUSED": "connection refused",
    "ETIMEDOUT": "connection timed out",
    "ECONNRESET": "connection reset by the peer",
    "EHOSTUNREACH": "host unreachable",
    "ENETUNREACH": "network unreachable",
    "EADDRNOTAVAIL": "own address not available",
}
_SECURED = ": the peer may not have our password"  # its kernel drops what is not signed as it expects
_TELLING = 30.0  # seconds in which a NOTIFICATION is still the best answer; both sides dial some ten times
_NOTIFICATION = re.compile(r"notification (sent|received) \((\d+),(\d+)\)")


def failure_text(reason: str, was_up: bool) -> str:
    """ExaBGP's reason for a lost session in words: `received Cease: Administrative shutdown (6,2)`."""
    if match := _NOTIFICATION.match(reason):
        code, subcode = int(match[2]), int(match[3])
        detail = _SUBCODES.get((code, subcode))
        name = _CODES.get(code, "unknown error")
        return f"{match[1]} {name}{': ' + detail if detail else ''} ({code},{subcode})"
    if reason.startswith(_LOST):
        error = reason.removeprefix(_LOST).removeprefix(": ")
        return _ERRORS.get(error) or (
            "connection lost" if was_up else "connection closed before the session was up"
        )
    return reason or "error inside ExaBGP"
