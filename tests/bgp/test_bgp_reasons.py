"""Why a session is not up: each reason provoked, and said in `info` with the time."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.bgp.bgp_lab import Mesh, peer_resource
from tests.bgp.bgp_routers import Bird, bird_config
from tests.bgp.raw_speaker import RawSpeaker
from tests.netns_lab import Namespace, eventually
from tortie.datastore.types.bgp import BGPPassword
from tortie.datastore.types.meta import SecretKeyRef

pytestmark = pytest.mark.cluster

_AS = 65050
_PATIENCE = 180  # seconds

_PEERS = range(50, 59)  # last parts of their addresses
_EXPECTED = {  # which of them -> what is said of it
    50: "connection refused",
    51: "host unreachable",
    52: "connection timed out",
    53: "connection reset by the peer",
    54: "received OPEN error: Bad peer AS (2,2)",
    55: "sent OPEN error: Bad peer AS (2,2)",
    56: "sent Hold timer expired (4,0)",
    57: "connection timed out: the peer may not have our password",
    58: "sent OPEN error: Unacceptable hold time (2,6)",
}
_DIALLED = (55, 56, 58)  # whose errors follow from what we say when we dial
_BY_BIRD = {  # in its own words; where nobody answers it says only that it connects
    50: "Socket: Connection refused",
    51: "Socket: No route to host",
    53: "Socket: Connection reset by peer",
    54: "Received: Bad peer AS",
    55: "BGP Error: Bad peer AS",
    56: "BGP Error: Hold timer expired",
    58: "BGP Error: Unacceptable hold time",
}


class Resetter:
    """Accepts and resets."""

    def __init__(self, ns: Namespace, address: str) -> None:
        self._server = ns.call(socket.create_server, (address, 179))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            connection.recv(4096)  # its OPEN
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


def test_each_reason(make_mesh: Callable[..., Mesh], closing: Callable[[Any], Any], speaker: str) -> None:
    mesh = make_mesh(1)
    node = mesh.nodes[0]
    far = mesh.underlay.attach(50)
    for number in (52, 53, 55, 56, 57, 58):
        far.run("ip", "addr", "add", f"10.9.0.{number}/24", "dev", "eth0")
    far.run("iptables", "-A", "INPUT", "-d", "10.9.0.52", "-p", "tcp", "-j", "DROP")
    closing(Resetter(far, "10.9.0.53"))
    closing(far.call(socket.create_server, ("10.9.0.57", 179)))
    closing(Bird(mesh.underlay.attach(54), _BIRD))
    for number in _PEERS:
        spec: dict[str, Any] = {"peerIP": f"10.9.0.{number}", "asNumber": _AS}
        if number == 57:
            spec["password"] = BGPPassword(secretKeyRef=SecretKeyRef(name="s", key="k"))
        mesh.cluster.peers[f"p{number}"] = peer_resource(f"p{number}", **spec)
    node.secrets = {("s", "k"): b"x"}
    began = time.time()
    node.render()
    node.start()

    def said() -> dict[int, str]:
        found = node.status()
        return {int(p.address.rpartition(".")[2]): p.last_error for p in found.peers} if found else {}

    eventually(lambda: said().keys() == set(_PEERS), _PATIENCE)
    if speaker == "exabgp":  # a NOTIFICATION's words are kept for half a minute: what takes longer goes first
        slow = {number: text for number, text in _EXPECTED.items() if number not in _DIALLED}
        eventually(lambda: slow.items() <= said().items(), _PATIENCE)

    def provoke() -> None:
        for number, asn, hold_time in ((55, 65099, 90), (56, _AS, 3), (58, _AS, 1)):
            one = closing(RawSpeaker(far, f"10.9.0.{number}", "10.9.0.1", asn, hold_time))
            if number == 56:
                one.start()  # and not a word more
            else:
                one.say(one.open())

    provoke()
    if speaker == "bird":  # what it says of a session it forgets when it dials again
        seen: set[tuple[int, str]] = set()
        eventually(lambda: seen.update(said().items()) or _BY_BIRD.items() <= seen, _PATIENCE)  # type: ignore[func-returns-value]
        return
    for _ in range(3):  # on a busy machine half a minute may be over for one before the last is there
        with contextlib.suppress(AssertionError):
            eventually(lambda: said() == _EXPECTED, 45)
            break
        with contextlib.suppress(OSError, EOFError):
            provoke()
    eventually(lambda: said() == _EXPECTED, _PATIENCE)
    found = node.status()
    assert found is not None
    for peer in found.peers:
        assert peer.state == "start" and peer.info.endswith(peer.last_error), peer
        assert began - 1 <= peer.since <= peer.last_error_at <= time.time(), peer
        notified = peer.last_error.startswith(("sent", "received"))
        assert peer.last_notification == (peer.last_error if notified else ""), peer


_BIRD = bird_config(
    54,
    """protocol bgp n1 {
  local 10.9.0.54 as 65050; neighbor 10.9.0.1 as 64513; multihop;
  connect delay time 1; error wait time 1, 2; ipv4 { import all; export none; };
}""",
)
