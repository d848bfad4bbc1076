"""Every edit of BGP's resources while real daemons run: sessions that it does not concern stay up.

The end is compared with that of a fresh start, a few times on the way: that each single edit's routes are
those of a fresh start, the router's own test walks through without daemons (test_bgp_edits_pure.py).
"""

import time
from collections.abc import Iterator
from itertools import zip_longest

import pytest

from tests.bgp import bgp_edits
from tests.bgp.bgp_edits import CONFIGURATIONS, EVERYBODY, FILTERS, PEERS, SECRETS, Edit
from tests.bgp.bgp_lab import BgpNode, Mesh
from tests.bgp.bgp_routers import Bird, bird_config
from tests.netns_lab import Namespace, eventually
from tests.support.rest import at_rest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]  # a minute on two idle cores

_PATIENCE = 180  # seconds
_REST = 2.5  # seconds in which there is another status: the agent tells one each second at most
_FRESH_AFTER = (4, 9)  # rounds in which all sessions can be had

Edits = tuple[Edit, ...]


def _bird(number: int, *statics: str) -> str:
    routes = " ".join(f"route {prefix} blackhole;" for prefix in statics)
    return bird_config(
        number,
        f"""
protocol static blocks {{ ipv4; {routes} }}
protocol bgp n1 {{
  local 10.9.0.{number} as 650{number}; neighbor 10.9.0.1 as 64512; multihop;
  connect delay time 1; connect retry time 1; error wait time 1, 1; graceful restart on;
  hold time 30; startup hold time 30;  # of a session that hears nothing more, as under a TTL limit of ours
  ipv4 {{ import all; next hop self; export filter {{
    if source != RTS_STATIC then reject;
    bgp_path.prepend(65030); bgp_community.add((65020, 7)); accept; }}; }};
}}""",
    )


class Live:
    """n1 and n2, and the two routers."""

    def __init__(self, mesh: Mesh, birds: list[Bird]) -> None:
        self.one, self.two = mesh.nodes
        self._mesh, self._birds = mesh, birds
        self._since: dict[str, float] = {}
        self._restless: list[frozenset[str]] = [frozenset(), frozenset()]  # concerned by the last edits

    def edit(self, edits: Edits) -> None:
        """Have them stored, and wait until they are in force."""
        moment = time.time()
        bgp_edits.apply(self._mesh.cluster, *edits)
        files = {node: node.contents() for node in self._mesh.nodes}
        self._mesh.render()
        for node in self._mesh.nodes:
            if files[node] != node.contents():
                eventually(lambda n=node: _follows(n, moment), _PATIENCE)  # type: ignore[misc]

    def sessions(self) -> dict[str, float]:
        """n1's that are up, and since when."""
        found = self.one.status()
        return {peer.address: peer.since for peer in found.peers if peer.state == "up"} if found else {}

    def check_sessions(self, edits: Edits) -> None:
        """Those that can be up, are, and those that are not concerned have not moved.

        Concerned is a session also by an edit that is undone, twice if both sides start it anew.
        """
        lost = {peer for edit in edits for peer in edit.lost}
        eventually(lambda: EVERYBODY - lost == self.sessions().keys() & EVERYBODY, _PATIENCE)
        now = self.sessions()
        concerned = frozenset(peer for edit in edits for peer in self._concerned(edit))
        for peer in EVERYBODY - concerned - self._restless[0] - self._restless[1]:
            assert now[peer] == self._since.get(peer, now[peer]), f"{peer} flapped: {_names(edits)}"
        self._since, self._restless = now, [self._restless[1], concerned]

    def _concerned(self, edit: Edit) -> frozenset[str]:
        return edit.concerned | (edit.with_bird if self._mesh.speaker == "bird" else frozenset())

    def state(self) -> object:
        """Kernel routes of both, what the routers heard, counts of what n1 heard and refused."""
        found = self.one.status()
        peers = [(p.address, p.type, p.received, p.rejected_because) for p in found.peers] if found else []
        return self.one.routes(4), self.one.routes(6), self.two.routes(4), peers, self._heard()

    def _heard(self) -> list[str]:
        shown = "".join(bird.ask("show", "route", "all", "protocol", "n1") for bird in self._birds)
        lines = [line.split("[")[0].strip() for line in shown.splitlines()]  # not since when
        return [line for line in lines if "BGP." in line or "/" in line]

    def restart(self) -> None:
        """n1 from nothing."""
        self.one.stop()
        for version in ("-4", "-6"):
            self.one.ns.run("ip", version, "route", "flush", "proto", self.one.protocol)
        self.one.start()
        eventually(lambda: len(self.sessions()) == len(EVERYBODY) and self.one.settled(), _PATIENCE)
        self._since = {}


def _follows(node: BgpNode, moment: float) -> bool:
    found = node.status()
    return found is not None and found.configured >= moment and found.configuration == "loaded"


@pytest.fixture(scope="module", params=["exabgp", "bird"])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    namespaces: list[Namespace] = []

    def make() -> Namespace:
        namespaces.append(Namespace())
        return namespaces[-1]

    mesh = Mesh(make, 2, request.param)
    for node in mesh.nodes:
        node.secrets = SECRETS
    bgp_edits.base(mesh.cluster)
    birds = [
        Bird(mesh.underlay.attach(20), _bird(20, "192.168.200.0/26", "192.168.201.0/26")),
        Bird(mesh.underlay.attach(21), _bird(21, "192.168.201.0/26", "192.168.202.0/27")),
    ]
    mesh.start()
    made = Live(mesh, birds)
    eventually(lambda: made.sessions().keys() == EVERYBODY, _PATIENCE)
    yield made
    mesh.close()
    for bird in birds:
        bird.close()
    for namespace in namespaces:
        namespace.close()


def test_every_edit(live: Live) -> None:
    """One of each kind at a time: first those that concern no session, then those that do."""
    kinds = [sorted(kind, key=lambda edit: bool(edit.concerned)) for kind in (CONFIGURATIONS, PEERS, FILTERS)]
    rounds = [tuple(filter(None, edits)) for edits in zip_longest(*kinds)]
    live.check_sessions(())
    for number, edits in enumerate([*rounds, ()], 1):
        live.edit(edits)
        live.check_sessions(edits)
        if number in _FRESH_AFTER:
            assert not any(edit.lost for edit in edits)
            before = at_rest(live.state, "both nodes", _PATIENCE, looks=10, seconds=_REST)
            live.restart()
            eventually(lambda wanted=before: live.state() == wanted, _PATIENCE)  # type: ignore[misc]


def _names(edits: Edits) -> str:
    return ", ".join(map(str, edits))
