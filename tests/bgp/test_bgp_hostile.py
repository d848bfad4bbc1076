"""A peer that lies, floods, flaps and does not listen: it costs little, and nobody else notices."""

import contextlib
import os
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.bgp.bgp_lab import BgpNode, Mesh, RouteEvents, peer_resource
from tests.bgp.raw_speaker import (
    KEEPALIVE,
    UPDATE,
    RawSpeaker,
    as_path,
    attribute,
    dial_until_up,
    message,
    next_hop,
    nlri,
    origin,
    packed,
    update,
)
from tests.netns_lab import Namespace, eventually
from tests.support.speakers import with_both
from tortie.core.speaker import Speaker

pytestmark = pytest.mark.cluster

_HOSTILE, _AS = "10.9.0.66", 65066
_LIMIT = 20_000  # prefixes that it may announce
_FLOOD = int(os.environ.get("TORTIE_TEST_FLOOD", "100000"))  # prefixes that it does announce
_FINE = origin() + as_path(_AS) + next_hop(_HOSTILE)
_ALLOWED = "192.168.200.0/26"  # of all that it says, this alone may be believed
_WITH_MALFORMED = "192.168.210.0/26"
_KNOWN = {_ALLOWED, _WITH_MALFORMED}
_TOLD, _UNTOLD = nlri(_ALLOWED), nlri(_WITH_MALFORMED)


class Target:
    """n1 with sessions to n2, and one to the hostile peer; what must not change about them."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.one, self.two = mesh.nodes
        self.ns: Namespace = mesh.underlay.attach(66)
        self.events = [RouteEvents(node.ns) for node in mesh.nodes]
        self._before = self._state()

    def dial(self) -> RawSpeaker:
        self.one.forgive(_HOSTILE)
        return dial_until_up(self.ns, _HOSTILE, "10.9.0.1", _AS).keep_alive()

    def _state(self) -> object:
        """Processes, sessions of honest peers and since when they are up."""
        sessions = [
            (node.name, peer.address, peer.state, peer.since)
            for node in self.mesh.nodes
            if (found := node.status())
            for peer in found.peers
            if peer.address != _HOSTILE
        ]
        processes = [node.pids() for node in self.mesh.nodes]
        return sessions, processes

    def is_unmoved(self) -> None:
        """No session but its own, no process and no route but the one it may announce has changed."""
        assert self._state() == self._before
        for events in self.events:
            strange = [line for line in events.about("") if not _may_be_seen(line)]
            assert not strange, strange

    def believes_only_what_it_may(self) -> None:
        others = {cidr for node in self.mesh.nodes for cidr in node.blocks if ":" not in cidr}
        for node in self.mesh.nodes:
            assert node.prefixes() - {_ALLOWED} == others

    def still_hears_its_peers(self) -> None:
        """Something new from n2 arrives at n1."""
        self.two.own("192.168.2.0/26", "192.168.22.0/26", "fd00:168::200/122")
        self.two.render()
        eventually(lambda: "192.168.22.0/26" in self.one.prefixes())
        self.two.own("192.168.2.0/26", "fd00:168::200/122")
        self.two.render()
        # withdrawals leave before the own route goes
        eventually(lambda: "192.168.22.0/26" not in self.one.prefixes() | self.two.prefixes())


def _may_be_seen(line: str) -> bool:
    """Events of the test itself, and of what the hostile peer may announce."""
    return any(
        word in line
        for word in (
            "203.0.113.",
            "192.168.200.0",
            "192.168.210.0",
            "192.168.22.0",
            "Timestamp",
            "fe80::",
            "ff00::",
            "local ",
        )
    )


@pytest.fixture(scope="module")
def target(speaker: Speaker) -> Iterator[Target]:
    namespaces: list[Namespace] = []

    def make() -> Namespace:
        namespaces.append(Namespace())
        return namespaces[-1]

    mesh = Mesh(make, 2, speaker)
    mesh.cluster.peers["hostile"] = peer_resource("hostile", node="n1", peerIP=_HOSTILE, asNumber=_AS)
    mesh.nodes[0].environment["TORTIE_BGP_PREFIX_LIMIT"] = str(_LIMIT)
    mesh.start()
    eventually(lambda: mesh.nodes[0].established() == mesh.nodes[1].established() == 2)
    made = Target(mesh)
    yield made
    for events in made.events:
        events.close()
    mesh.close()
    for namespace in namespaces:
        namespace.close()


_MALFORMED: dict[str, bytes] = {  # what is wrong -> message
    "marker": message(UPDATE, marker=b"\0" * 16),
    "length below a header": message(KEEPALIVE, length=18),
    "length above the largest": message(UPDATE, b"\0" * 4, length=65535),
    "keep-alive with a body": message(KEEPALIVE, b"x"),
    "type": message(9),
    "update without lengths": message(UPDATE, b"\0"),
    "withdrawn length": message(UPDATE, struct.pack("!HH", 500, 0)),
    "attributes' length": message(UPDATE, struct.pack("!HH", 0, 500) + _FINE),
    "an attribute's length": update(_FINE + b"\x40\x05\xff\0", _UNTOLD),
    "prefix length 33": update(_FINE, b"\x21\xc0\xa8\xc8\x00\x00"),
    "prefix cut short": update(_FINE, b"\x1a\xc0\xa8"),
    "prefix withdrawn cut short": update(withdrawn=b"\x20\xc0"),
    "origin 7": update(origin(7) + as_path(_AS) + next_hop(_HOSTILE), _UNTOLD),
    "origin of two octets": update(attribute(1, b"\0\0") + as_path(_AS) + next_hop(_HOSTILE), _UNTOLD),
    "AS path of segment type 9": update(
        origin() + attribute(2, struct.pack("!BBI", 9, 1, _AS)) + next_hop(_HOSTILE), _TOLD
    ),
    "AS path cut short": update(
        origin() + attribute(2, struct.pack("!BBI", 2, 5, _AS)) + next_hop(_HOSTILE), _TOLD
    ),
    "AS path of an empty segment": update(origin() + attribute(2, b"\x02\0") + next_hop(_HOSTILE), _UNTOLD),
    "next hop of three octets": update(origin() + as_path(_AS) + attribute(3, b"\x0a\x09\0"), _UNTOLD),
    "no origin": update(as_path(_AS) + next_hop(_HOSTILE), _UNTOLD),
    "no AS path": update(origin() + next_hop(_HOSTILE), _UNTOLD),
    "no next hop": update(origin() + as_path(_AS), _UNTOLD),
    "an attribute twice": update(_FINE + origin(2), _UNTOLD),
    "origin that calls itself optional": update(
        attribute(1, b"\0", 0xC0) + as_path(_AS) + next_hop(_HOSTILE), _TOLD
    ),
    "unknown well-known attribute": update(_FINE + attribute(200, b"xx"), _UNTOLD),
    "communities of three octets": update(_FINE + attribute(8, b"\0\0\0", 0xC0), _UNTOLD),
    "large communities of eleven octets": update(_FINE + attribute(32, b"\0" * 11, 0xC0), _UNTOLD),
    "MED of two octets": update(_FINE + attribute(4, b"\0\0", 0x80), _UNTOLD),
    "aggregator of one octet": update(_FINE + attribute(7, b"\0", 0xC0), _UNTOLD),
    "IPv6 that was not agreed on": update(
        _FINE + attribute(14, b"\0\x02\x01\x10" + b"\xfd" * 16 + b"\0\x40\xfd" + b"\0" * 7, 0x80)
    ),
    "MP_REACH_NLRI cut short": update(_FINE + attribute(14, b"\0\x01", 0x80), _UNTOLD),
    "second OPEN": b"open",
}

_HARMLESS = {  # what an honest reader may pass over: the rest of the path is whole
    "an attribute twice",  # RFC 7606, 3 g: the first counts
    "aggregator of one octet",  # RFC 7606, 7.7: it alone is discarded
}
_HARMLESS_TO_EXABGP = {
    "origin of two octets",  # it reads the first
    "unknown well-known attribute",  # it takes it for optional, and does not pass it on
}


def test_malformed_messages(target: Target) -> None:
    """Each costs this session at most, and the prefix that came with it is not believed (RFC 7606)."""
    believed = set()
    passed_over = _HARMLESS | (_HARMLESS_TO_EXABGP if target.mesh.speaker == "exabgp" else set())
    speaker = target.dial()
    for wrong, what in _MALFORMED.items():
        arriving = _KNOWN if wrong in passed_over else {_ALLOWED}
        with contextlib.suppress(ConnectionError):
            speaker.say(speaker.open() if what == b"open" else what)
            speaker.say(update(_FINE, _TOLD))
        eventually(lambda: arriving <= target.one.prefixes() or speaker.is_over())  # noqa: B023
        if target.events[0].about("192.168.210.0"):
            believed.add(wrong)
        with contextlib.suppress(ConnectionError):
            speaker.say(update(withdrawn=_TOLD + _UNTOLD))
        eventually(lambda: not _KNOWN & target.one.prefixes())
        target.events[0].forget()
        if speaker.is_over():
            speaker.close()
            speaker = target.dial()
    speaker.close()
    assert believed == passed_over
    target.is_unmoved()
    target.still_hears_its_peers()
    target.believes_only_what_it_may()


_LIES: dict[str, bytes] = {  # what is wrong -> a well-formed UPDATE that policy must not follow
    "default route": update(_FINE, nlri("0.0.0.0/0")),
    "loopback": update(_FINE, nlri("127.0.0.0/8")),
    "multicast": update(_FINE, nlri("224.0.0.0/4")),
    "the nodes' network": update(_FINE, nlri("10.9.0.0/24")),
    "a node's address": update(_FINE, nlri("10.9.0.1/32") + nlri("10.9.0.2/32")),
    "outside all pools": update(_FINE, nlri("198.51.100.0/24")),
    "a network around the pool": update(_FINE, nlri("192.0.0.0/8")),
    "our own block": update(_FINE, nlri("192.168.1.0/26")),
    "another node's block": update(_FINE, nlri("192.168.2.0/26")),
    "another node's block, preferred": update(
        _FINE + attribute(5, b"\x7f\xff\xff\xff"), nlri("192.168.2.0/26")
    ),
    "our address as next hop": update(
        origin() + as_path(_AS) + next_hop("10.9.0.1"), nlri("192.168.201.0/26")
    ),
    "a next hop nowhere": update(
        origin() + as_path(_AS) + next_hop("203.0.113.77"), nlri("192.168.202.0/26")
    ),
    "next hop 0.0.0.0": update(origin() + as_path(_AS) + next_hop("0.0.0.0"), nlri("192.168.203.0/26")),
    "next hop of multicast": update(
        origin() + as_path(_AS) + next_hop("224.0.0.1"), nlri("192.168.204.0/26")
    ),
    "next hop of loopback": update(origin() + as_path(_AS) + next_hop("127.0.0.1"), nlri("192.168.205.0/26")),
    "our AS in the path": update(
        origin() + as_path(_AS, 64512, 7) + next_hop(_HOSTILE), nlri("192.168.206.0/26")
    ),
}


@with_both
def test_lies(target: Target) -> None:
    """Well-formed, and not to be followed: no kernel route changes, n2 keeps its own blocks."""
    speaker = target.dial()
    speaker.say(*_LIES.values(), update(_FINE, _TOLD))
    eventually(lambda: _ALLOWED in target.two.prefixes())  # in order: all before it was read
    target.believes_only_what_it_may()
    target.is_unmoved()
    kept = "192.168.2.0/26 via 10.9.0.2 dev eth0 "
    assert [route for route in target.one.routes() if route.startswith(kept)]
    speaker.close()
    eventually(lambda: _ALLOWED not in target.two.prefixes())


def test_the_largest_attributes_that_fit(target: Target) -> None:
    """Communities and an AS path that fill a message are passed on or not, but stop nothing."""
    communities = attribute(8, b"".join(struct.pack("!HH", 65066, n) for n in range(950)), 0xC0)
    large = attribute(32, b"".join(struct.pack("!III", _AS, 1, n) for n in range(320)), 0xC0)
    long_path = origin() + as_path(_AS, *range(100_000, 100_900)) + next_hop(_HOSTILE)
    speaker = target.dial()
    for number, attributes in enumerate((_FINE + communities, _FINE + large, long_path)):
        speaker.say(update(attributes, nlri("192.168.200.0/26")))
        eventually(lambda n=number: _paths_heard(target.one) >= 1)  # type: ignore[misc]
    eventually(lambda: _ALLOWED in target.one.prefixes())
    target.still_hears_its_peers()
    target.is_unmoved()
    speaker.close()
    eventually(lambda: _paths_heard(target.one) == 0 and _ALLOWED not in target.two.prefixes())


def _paths_heard(node: BgpNode) -> int:
    found = node.peer(_HOSTILE)
    return found.received if found else -1


def _resident(node: BgpNode) -> float:
    """MB of all who speak BGP."""
    total = 0
    for pid in node.pids():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
    return total / 1024


def _cpu(node: BgpNode) -> float:
    """Seconds that they have used."""
    used = 0
    for pid in node.pids():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")


def test_a_flood_of_prefixes(target: Target) -> None:
    """Beyond its limit nothing is kept: neither prefixes nor attributes, new ones for each hundred."""
    before, used = _resident(target.one), _cpu(target.one)
    speaker = target.dial()
    base = int(IPv4Address("20.0.0.0"))
    for start in range(0, _FLOOD, 100):
        attributes = origin() + as_path(_AS, 1_000_000 + start) + next_hop(_HOSTILE)
        told = (b"\x1c" + (base + 16 * n).to_bytes(4) for n in range(start, start + 100))
        speaker.say(*packed(attributes, told))
    speaker.say(update(_FINE, _TOLD))  # beyond the limit, however welcome
    eventually(lambda: _over(target.one), 240)
    speaker.say(message(KEEPALIVE))  # its hold time runs
    target.still_hears_its_peers()
    speaker.say(update(_FINE, nlri("192.168.207.0/26")), message(KEEPALIVE))
    grown, took = _resident(target.one) - before, _cpu(target.one) - used
    print(f"{_FLOOD} prefixes, limit {_LIMIT}: {grown:.0f} MB more, {took:.1f} s of CPU time")
    assert _paths_heard(target.one) == _LIMIT
    assert grown < 150, "MB; some 2 kB for each of the prefixes that it may announce, and room"
    assert took < 30 + _FLOOD / 2000, "seconds of CPU time"
    target.believes_only_what_it_may()
    target.is_unmoved()
    speaker.close()
    eventually(lambda: _paths_heard(target.one) == 0)


def _over(node: BgpNode) -> bool:
    found = node.peer(_HOSTILE)
    return found is not None and found.over_limit


def test_flapping(target: Target) -> None:
    """Up, a hundred prefixes, down, up …: the honest peers' routes stay, and the work is bounded."""
    used = _cpu(target.one)
    told = [nlri(f"20.0.{n}.0/24") for n in range(100)]
    for _ in range(10):
        speaker = target.dial()
        speaker.say(*packed(_FINE, told))
        speaker.close()
    took = _cpu(target.one) - used
    target.still_hears_its_peers()
    target.is_unmoved()
    assert took < 10, "seconds of CPU time for ten flaps"
    eventually(lambda: _paths_heard(target.one) == 0)


def test_one_who_does_not_listen(target: Target) -> None:
    """It reads nothing: what ExaBGP cannot send to it holds up nobody else, and costs no CPU time."""
    target.one.ns.run("sysctl", "-qw", "net.ipv4.tcp_wmem=4096 4096 4096")
    target.ns.run("sysctl", "-qw", "net.ipv4.tcp_rmem=4096 4096 4096")
    speaker = target.dial()
    blocks = [f"{IPv4Address(int(IPv4Address('192.168.128.0')) + 8 * n)}/29" for n in range(1500)]
    target.two.own("192.168.2.0/26", "fd00:168::200/122", *blocks)
    target.two.render()
    eventually(lambda: target.one.prefixes() >= set(blocks))
    speaker.say(message(KEEPALIVE))  # it talks all the same: its hold time must not end the session
    target.two.own("192.168.2.0/26", "fd00:168::200/122")
    target.two.render()
    eventually(lambda: not target.one.prefixes() & set(blocks))
    speaker.say(message(KEEPALIVE))
    eventually(lambda: _unsent(target.one) > 0)
    eventually(lambda: all(_sleeps(target.one) for _ in range(5)))
    speaker.say(message(KEEPALIVE))
    target.mesh.cluster.peers["new"] = peer_resource("new", node="n1", peerIP="10.9.0.250", asNumber=65099)
    target.one.render()
    eventually(lambda: target.one.peer("10.9.0.250") and target.one.loaded())  # though much is still unsent
    assert _unsent(target.one) > 0
    del target.mesh.cluster.peers["new"]
    target.one.render()
    eventually(lambda: not target.one.peer("10.9.0.250") and target.one.loaded())
    speaker.close()


def _unsent(node: BgpNode) -> int:
    """Bytes for the hostile peer that it has not taken."""
    lines = node.ns.run("ss", "-tnH", "dst", _HOSTILE).splitlines()
    return max((int(line.split()[2]) for line in lines), default=0)


def _sleeps(node: BgpNode) -> bool:
    """Whether the speaker waits for something at this moment."""
    stat = Path(f"/proc/{node.pids()[0]}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


def test_connections_that_say_nothing(target: Target) -> None:
    """Of the peer, and of a stranger; then the peer can still have its session."""
    speakers = [RawSpeaker(target.ns, _HOSTILE, "10.9.0.1", _AS) for _ in range(50)]
    target.ns.run("ip", "addr", "add", "10.9.0.67/24", "dev", "eth0")
    strangers = [RawSpeaker(target.ns, "10.9.0.67", "10.9.0.1", _AS) for _ in range(50)]
    target.still_hears_its_peers()
    for speaker in (*speakers, *strangers):
        speaker.close()
    target.dial().close()
    target.believes_only_what_it_may()
    eventually(lambda: target.one.established() >= 2)
