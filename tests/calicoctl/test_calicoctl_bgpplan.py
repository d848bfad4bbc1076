"""From mesh to reflectors and back: no step takes away a way in use, wherever it is interrupted."""

from dataclasses import dataclass, field, replace

import pytest

from tortie.calicoctl.bgpplan import Goal, NodeState, Observed, Step, obstacles, steps

pytestmark = pytest.mark.unit

_NAMES = ("a", "b", "c", "d", "e")
_ADDRESS = {name: f"10.0.0.{number}" for number, name in enumerate(_NAMES, 1)}
_BLOCK = {name: f"192.168.{number}.0/26" for number, name in enumerate(_NAMES, 1)}
_MESH = Goal()
_PAIR = Goal(frozenset("ab"))
_ONE = Goal(frozenset("c"))


@dataclass(frozen=True)
class Stored:
    """What the datastore says; what sessions and routes follow from it."""

    mesh: bool = True
    peering: bool = False
    labels: frozenset[str] = frozenset()
    clusters: frozenset[str] = frozenset()
    watched: frozenset[str] = frozenset()

    def session(self, one: str, two: str) -> str:
        """Its type, "" if there is none."""
        if one == two:
            return ""
        if self.peering and self.labels & {one, two}:
            return "NodePeer"
        return "NodeMesh" if self.mesh and not self.clusters & {one, two} else ""

    def heard(self, name: str) -> set[tuple[str, str]]:
        """(origin, from whom) of all routes."""
        peers = [peer for peer in _NAMES if self.session(name, peer)]
        found = {(peer, peer) for peer in peers}
        for reflector in self.clusters.intersection(peers):
            found |= {(o, reflector) for o in _NAMES if o != name and self.session(reflector, o)}
        return found


def complete(*stages: Stored) -> bool:
    """Whether everybody has a way to everybody that all these stages have."""
    for name in _NAMES:
        common = set.intersection(*(stage.heard(name) for stage in stages))
        if {origin for origin, _ in common} != set(_NAMES) - {name}:
            return False
    return True


@dataclass
class World:
    """Nodes follow what is stored only while the plan waits: the slowest cluster there can be."""

    stored: Stored = field(default_factory=Stored)
    followed: Stored = field(default_factory=Stored)

    def observed(self) -> Observed:
        return Observed({name: self._node(name) for name in _NAMES}, self.stored.mesh, self.stored.peering)

    def _node(self, name: str) -> NodeState:
        state = NodeState(
            name,
            (_ADDRESS[name],),
            "244.0.0.1" if name in self.stored.clusters else "",
            name in self.stored.labels,
            name in self.stored.watched,
        )
        if name not in self.stored.watched or name not in self.followed.watched:
            return state
        heard: dict[str, set[str]] = {}
        for origin, peer in self.followed.heard(name):
            heard.setdefault(_BLOCK[origin], set()).add(_ADDRESS[peer])
        routes = self.followed.heard(name)
        return replace(
            state,
            sessions={_ADDRESS[peer]: kind for peer in _NAMES if (kind := self.followed.session(name, peer))},
            heard=heard,
            direct=frozenset(_BLOCK[origin] for origin, peer in routes if origin == peer),
            relays=frozenset(_ADDRESS[peer] for origin, peer in routes if origin != peer),
        )

    def next(self, goal: Goal) -> Step | None:
        return next((step for step in steps(self.observed(), goal) if step.left), None)

    def take(self, step: Step, goal: Goal) -> None:
        old = self.stored
        match step.verb:
            case None:
                assert self.followed != self.stored, f"nothing to wait for: {step}"
                self.followed = self.stored
            case "watch":
                self.stored = replace(old, watched=frozenset(_NAMES))
            case "unwatch":
                self.stored = replace(old, watched=frozenset())
            case "label":
                self.stored = replace(old, labels=old.labels | goal.reflectors)
            case "unlabel":
                self.stored = replace(old, labels=frozenset())
            case "peer":
                self.stored = replace(old, peering=True)
            case "unpeer":
                self.stored = replace(old, peering=False)
            case "cluster-id":
                self.stored = replace(old, clusters=goal.reflectors)
            case "uncluster":
                self.stored = replace(old, clusters=frozenset())
            case "mesh" | "unmesh" as verb:
                self.stored = replace(old, mesh=verb == "mesh")
        assert complete(self.stored, self.followed), step

    def pursue(self, goal: Goal, at_most: int = 100) -> int:
        """How many steps it took."""
        for count in range(at_most):
            if (step := self.next(goal)) is None:
                return count
            self.take(step, goal)
        return at_most


def test_there_and_back() -> None:
    world = World()
    world.pursue(_PAIR)
    assert world.stored == Stored(
        mesh=False, peering=True, labels=_PAIR.reflectors, clusters=_PAIR.reflectors
    )
    assert all(not step.left for step in steps(world.observed(), _PAIR))
    world.pursue(_MESH)
    assert world.stored == Stored()


@pytest.mark.parametrize("goal", [_PAIR, _ONE])
def test_interrupted_anywhere_it_is_resumed_or_undone(goal: Goal) -> None:
    length = World().pursue(goal)
    assert length > 8
    for done in range(length + 1):
        world = World()
        world.pursue(goal, done)
        world.pursue(goal)
        finished = world.stored
        assert finished.clusters == goal.reflectors and not finished.mesh and not finished.watched
        world = World()
        world.pursue(goal, done)
        world.pursue(_MESH)
        assert world.stored == Stored()


def test_the_way_back_interrupted_anywhere() -> None:
    there = World()
    there.pursue(_PAIR)
    for done in range(30):
        world = World(there.stored, there.stored)
        world.pursue(_MESH, done)
        world.pursue(_PAIR)
        assert world.stored == there.stored
        world = World(there.stored, there.stored)
        world.pursue(_MESH, done)
        world.pursue(_MESH)
        assert world.stored == Stored()


def test_without_its_waits_the_plan_would_lose_routes() -> None:
    """The control: the model notices what the waits are for."""
    world = World()
    with pytest.raises(AssertionError):
        for _ in range(20):
            observed, goal = world.observed(), _PAIR
            step = next(step for step in steps(observed, goal) if step.left and step.verb)
            world.take(step, goal)


def test_what_stands_in_the_way() -> None:
    world = World()
    assert obstacles(world.observed(), Goal(frozenset(["a", "x", "y"]))) == ["there is no node x, y"]
    assert obstacles(world.observed(), Goal(frozenset(_NAMES))) == ["every node would be a reflector"]
    mixed = world.observed()
    other = replace(mixed.nodes["b"], as_number=65001)
    nodes = {**mixed.nodes, "b": other}
    (said,) = obstacles(replace(mixed, nodes=nodes), _ONE)
    assert said.startswith("the nodes are in different ASes (a in 64512, b in 65001, ")
    assert obstacles(replace(mixed, nodes=nodes), _MESH) == [], "the way back is open to everybody"
    world.pursue(_PAIR)
    assert obstacles(world.observed(), _ONE) == [
        "a, b reflect already: name them, too, or go back to the mesh first"
    ]
    assert obstacles(world.observed(), Goal(frozenset("abc"))) == [] == obstacles(world.observed(), _MESH)


def test_routes_of_the_world_outside_are_nobodys_to_reflect() -> None:
    world = World()
    world.pursue(_PAIR, 3)
    world.followed = world.stored
    observed = world.observed()
    node = observed.nodes["d"]
    assert node.heard is not None
    outside = replace(node, heard={**node.heard, "203.0.113.0/24": {"10.9.9.9"}})
    before = steps(observed, _PAIR)
    after = steps(replace(observed, nodes={**observed.nodes, "d": outside}), _PAIR)
    assert [step.left for step in after] == [step.left for step in before]
