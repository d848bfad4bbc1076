"""`node status`: whether this host's node runs, and the state of its BGP sessions.

(Reference: BGP, 6.1.) What BIRD tells Calico, the BGP agent's status file tells here.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence

from tortie.bgp import ask
from tortie.bgp.status import PeerStatus, Status, since
from tortie.calicoctl import rootonly
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, printable
from tortie.core.tables import boxed

_HEADING = ["Peer address", "Peer type", "State", "Since", "Info"]
_BGP_PORT = 179


def status(call: Call) -> None:
    rootonly.require()
    if not any(is_node(command) for command in _commands()):
        raise CommandError("Calico process is not running.")
    call.out("Calico process is running.\n")
    found = ask.status()
    call.out(text(found, time.time()))
    if found is not None and found.configuration_error:
        call.err(f"Warning: the BGP configuration is not in use: {found.configuration_error}")


def text(found: Status | None, now: float) -> str:
    """Everything after the first line; `now` is Unix time, None means that no BGP agent runs. Pure."""
    if found is None:
        return "\nThe BGP backend process (BIRD) is not running.\n\n"
    parts = []
    for version in (4, 6):
        peers = [peer for peer in found.peers if peer.family == version]
        table = (
            boxed(_HEADING, [_row(peer, now) for peer in peers])
            if peers
            else f"No IPv{version} peers found.\n"
        )
        parts.append(f"\nIPv{version} BGP status\n{table}")
    return "".join(parts) + "\n"


def _row(peer: PeerStatus, now: float) -> list[str]:
    cells = [_address(peer), peer.type, peer.state, since(peer.since, now), peer.info]
    return [printable(cell) for cell in cells]


def _address(peer: PeerStatus) -> str:
    if peer.port in (0, _BGP_PORT):
        return peer.address
    return f"[{peer.address}]:{peer.port}" if peer.family == 6 else f"{peer.address}:{peer.port}"


# --- processes ------------------------------------------------------------------------------------


def is_node(command: Sequence[str]) -> bool:
    """Whether a command line is a node's: ours, Calico's of any age, or `calico component felix`. Pure."""
    names = [os.path.basename(word) for word in command[:3]]
    if "calico-felix" in names[:1] or names[1:2] == ["-felix"]:
        return True
    if "calico-node" in names[:2] or "tortie.node.main" in names:  # also under an interpreter
        return True
    return any(list(command[at : at + 2]) == ["component", "felix"] for at in (0, 1, 2))


def felix_processes() -> list[int]:
    """The PIDs of Calico's felix here; it writes its statistics to the log on SIGUSR1, ours has metrics."""
    return [int(pid) for pid, command in _processes() if "calico-felix" in os.path.basename(command[0])]


def _commands() -> Iterable[list[str]]:
    return (command for _, command in _processes())


def _processes() -> Iterable[tuple[str, list[str]]]:
    """PIDs and command lines in our network namespace: a node's processes are in its own."""
    ours = _network("self")
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if ours == _network(pid):
                with open(f"/proc/{pid}/cmdline", "rb") as source:
                    yield pid, source.read().decode("utf-8", "replace").split("\0")


def _network(pid: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")
