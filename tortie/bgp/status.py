"""bgp-status.json: what the agent is doing and why, for `calicoctl node status`, readiness and people.

The agent replaces the file in one step whenever something in it changes. Whether the agent still runs
its socket tells; the file of one that does not says what was true last.
"""

import socket
import time
from typing import Literal

import msgspec

from tortie.core.errors import ConfigError
from tortie.core.files import read_or_none
from tortie.core.paths import Paths
from tortie.core.speaker import Speaker

_CLOCK_TIME_FOR = 20 * 3600  # seconds: BIRD writes older times as a date

PeerType = Literal["node-to-node mesh", "node specific", "global", "local workload"]  # calicoctl's words
PeerState = Literal["down", "start", "up", "wait", "feed", "stop", "flush"]
"""BIRD's protocol states; the agent knows `up` and `start`."""


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One session. Times are seconds since 1970."""

    address: str
    type: PeerType
    family: Literal[4, 6]
    port: int  # of the peer; 0: 179
    state: PeerState
    since: float  # of `state`
    bgp_state: str  # Idle Connect Active OpenSent OpenConfirm Established; Passive: idle and waiting
    info: str  # as calicoctl prints it: the BGP state, and after it the last error while down
    last_error: str = ""
    last_error_at: float = 0.0
    last_notification: str = ""  # `received Cease: Administrative shutdown (6,2)`, however long ago
    hold_time: int = 0  # seconds, what the peer offered
    received: int = 0  # prefixes, stale ones included
    stale: int = 0  # of those, kept while the peer restarts
    over_limit: bool = False  # it announces more prefixes than it may; the others are not taken
    rejected: int = 0  # of those, not believed
    rejected_because: dict[str, int] = {}  # why, or which rule of which BGPFilter -> prefixes
    announced: int = 0  # prefixes that were sent to it
    end_of_rib: bool = False  # it has told all it knows


class RouteStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of kernel routes, and of some prefixes why they are as they are.

    `failed`: the kernel refused, `reason` is that of one of them. `left_out`: known prefixes that get no
    kernel route. The two dicts name some, for a table of a hundred thousand must not be written each second.
    """

    wanted: int = 0
    failed: int = 0
    reason: str = ""
    left_out: int = 0
    left_out_because: dict[str, str] = {}  # prefix -> why
    contested: int = 0  # prefixes to which there are several paths
    decided_by: dict[str, str] = {}  # prefix -> `via 172.18.0.12: shorter AS path`


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`convergence`, and of `routes` all but `wanted`, are the agent's: BIRD does not tell them."""

    speaker: Speaker = "exabgp"
    version: str = ""  # of BIRD; "": ours
    started: float
    updated: float
    configured: float = 0.0  # when the present configuration was read
    node: str = ""
    router_id: str = ""
    as_number: int = 0
    configuration: str = ""  # what is being done about ExaBGP's configuration; see reload.py
    configuration_error: str = ""  # why bgp.json could not be read
    convergence: float = 0.0  # seconds of the last change of routes, from the first report to the kernel
    starting: bool = True  # routes of the last run are still kept
    peers: tuple[PeerStatus, ...] = ()
    routes: RouteStatus = RouteStatus()


def runs(paths: Paths) -> bool:
    """Whether there is an agent: who asks may be in other namespaces, where no process has its pid.

    Nothing is sent: the kernel connects nobody to a socket that nobody holds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(paths.bgp_nudge)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except PermissionError:  # root alone may know more than that it is there
            return True
    return True


def read(path: str) -> Status | None:
    """The last status, None if there was never one. Raises ConfigError if the file is none of ours."""
    data = read_or_none(path)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=Status)
    except msgspec.DecodeError as err:
        raise ConfigError(path, "", str(err)) from err


def since(moment: float, now: float) -> str:
    """A Unix time as BIRD writes it: the clock time of today, the date of what is older."""
    form = "%H:%M:%S" if now - moment < _CLOCK_TIME_FOR else "%Y-%m-%d"
    return time.strftime(form, time.localtime(moment))


def encode(status: Status) -> bytes:
    return msgspec.json.format(msgspec.json.encode(status), indent=1) + b"\n"


def at(status: Status, moment: float) -> Status:
    """The same status, as written at another time."""
    return msgspec.structs.replace(status, updated=moment)
