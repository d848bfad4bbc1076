"""Whatever was configured before: after an edit the routes are those of a fresh start with what is now."""

import random
from collections.abc import Iterable

import msgspec
import pytest

from tests.bgp import bgp_edits
from tests.bgp.bgp_edits import SECRETS, SPINE, TOR, Edit
from tests.bgp.bgp_settle import settle
from tortie.bgp import events
from tortie.bgp.config import Config, Peer
from tortie.bgp.fib import Interfaces
from tortie.bgp.nexthop import Resolver
from tortie.bgp.prefix import version
from tortie.bgp.route import Announcement, Attributes, Received, Segment
from tortie.bgp.router import Router
from tortie.confd import context
from tortie.datastore.types.bgp import BGPConfigurationSpec, BGPFilterSpec, BGPPeerSpec, FilterRule
from tortie.linux.routes import Route

pytestmark = pytest.mark.unit


class World:
    """A router whose peers say the same at each new session."""

    def __init__(self) -> None:
        resolver, interfaces = Resolver(), Interfaces({"eth0": 2}, {"10.9.0.1": 2, "fd09::1": 2})
        resolver.change(Route("10.9.0.0/24", ifindex=2, scope=253, protocol=2))
        resolver.change(Route("fd09::/64", ifindex=2, protocol=2, metric=256))
        self.router = Router(resolver, interfaces)
        self.routes: dict[str, Route] = {}
        self._sessions: dict[str, tuple[object, ...]] = {}  # address -> what makes it the same session

    def configure(self, config: Config) -> None:
        self.router.configure(config, 0.0, 0.0)
        settle(self.router, self.routes, 0.0)
        wanted = {peer.address: peer for peer in config.peers}
        for address in [one for one, known in self._sessions.items() if _identity(wanted.get(one)) != known]:
            del self._sessions[address]
            self._hear(events.Down(address, "stop, message [removed]"))
        self.router.reloaded()
        for address in wanted.keys() - self._sessions.keys():
            self._sessions[address] = _identity(wanted[address])
            self._up(wanted[address])
        self.router.tick(1000.0)
        settle(self.router, self.routes, 0.0)

    def _up(self, peer: Peer) -> None:
        family = version(peer.address)
        opened = events.Open(
            peer.address, peer.peer_as, 90, f"10.0.0.{len(peer.address)}", frozenset([family])
        )
        told = events.Update(peer.address, False, _announced(peer))
        self._hear(opened, events.Up(peer.address), told)
        self._hear(events.EndOfRib(peer.address, False, family))

    def _hear(self, *heard: events.Event) -> None:
        for event in heard:
            self.router.handle(event, 0.0, 0.0)
        settle(self.router, self.routes, 0.0)

    def state(self) -> tuple[dict[str, Route], dict[str, dict[str, Announcement]], dict[str, dict[str, int]]]:
        """Kernel routes, what each peer was told, and what was refused and why."""
        told = {one.address: dict(one.outbox.desired) for one in self.router.sessions.values()}
        assert all(one.outbox.settled for one in self.router.sessions.values())
        refused = {one: dict(self.router.decider.refusals.counts(one)) for one in told}
        return self.routes, told, refused


def _identity(peer: Peer | None) -> tuple[object, ...]:
    return peer.session if peer else ()


def _announced(peer: Peer) -> dict[str, Received | None]:
    """The routers offer one block alone, one together, and one outside the pools; n2 has its own."""
    if peer.address == TOR:
        path = Attributes(
            as_path=(Segment("as-sequence", (peer.peer_as, 65030)),), communities=((65020, 7), (65020, 8))
        )
        prefixes: tuple[str, ...] = ("192.168.200.0/26", "192.168.201.0/26", "203.0.113.0/24")
    elif peer.address == SPINE:
        path = Attributes(as_path=(Segment("as-sequence", (peer.peer_as, 65030)),))
        prefixes = ("192.168.201.0/26", "192.168.202.0/27")
    elif version(peer.address) == 6:
        path, prefixes = Attributes(local_pref=2147482623), ("fd00:168::200/122",)
    else:
        path, prefixes = Attributes(local_pref=2147482623), ("192.168.2.0/26",)
    return dict.fromkeys(prefixes, Received(path, peer.address))


def _config(*edits: Edit) -> Config:
    cluster = bgp_edits.snapshot()
    bgp_edits.apply(cluster, *edits)
    return context.build(cluster, "n1", secrets=SECRETS).config


def _fresh(*edits: Edit) -> World:
    world = World()
    world.configure(_config(*edits))
    return world


@pytest.mark.parametrize("seed", range(4))
def test_after_any_edit_as_after_a_fresh_start(seed: int) -> None:
    """A walk over the whole table, in an order of its own, with one edit of each kind at a time, or none."""
    walk = random.Random(seed)
    world = World()
    for _ in range(60):
        kinds = (bgp_edits.CONFIGURATIONS, bgp_edits.PEERS, bgp_edits.FILTERS)
        edits = [walk.choice(kind) for kind in kinds if walk.random() < 0.7]
        world.configure(_config(*edits))
        assert world.state() == _fresh(*edits).state(), ", ".join(map(str, edits))


def test_most_edits_change_something() -> None:
    """The control: a table of edits without effect would prove nothing. Those have none on these routes."""
    base = _fresh().state()
    silent = [str(edit) for edit in bgp_edits.FILTERS if _fresh(edit).state() == base]
    assert silent == []


def _fields(kind: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


def _named(edits: Iterable[Edit]) -> set[str]:
    return {name for edit in edits for name in edit.fields}


def test_no_field_is_left_out() -> None:
    assert _named(bgp_edits.CONFIGURATIONS) == _fields(BGPConfigurationSpec)
    assert _named(bgp_edits.PEERS) == _fields(BGPPeerSpec)
    assert _named(bgp_edits.FILTERS) == _fields(BGPFilterSpec)
    rules = [rule for edit in bgp_edits.FILTERS for side in edit.fields.values() for rule in side]
    used = {name for rule in rules for name in _fields(FilterRule) if getattr(rule, name)}
    assert used == _fields(FilterRule)
