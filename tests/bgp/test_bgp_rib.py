"""The table beside a model that is too simple to be wrong."""

from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tortie.bgp.rib import Rib
from tortie.bgp.route import Attributes, Path, Received, Source

pytestmark = pytest.mark.unit

_peers = st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"])
_prefixes = st.sampled_from([f"192.168.{number}.0/24" for number in range(4)])
_paths = st.sampled_from([Received(Attributes(med=med), "10.0.0.9") for med in (1, 2)])
_told = st.dictionaries(_prefixes, st.none() | _paths, max_size=4)


class RibMachine(RuleBasedStateMachine):
    """The model: (peer, prefix) -> (path, stale); prefix -> local path."""

    def __init__(self) -> None:
        super().__init__()
        self.rib = Rib()
        self.model: dict[tuple[str, str], tuple[Received, bool]] = {}
        self.local: Mapping[str, Path] = {}
        self.seen = self._view()  # as of the last take_changed()

    def _view(self) -> dict[str, tuple[dict[str, Received], Path | None]]:
        prefixes = {prefix for _, prefix in self.model} | set(self.local)
        return {
            prefix: (
                {peer: path for (peer, one), (path, _) in self.model.items() if one == prefix},
                self.local.get(prefix),
            )
            for prefix in prefixes
        }

    @rule(peer=_peers, told=_told)
    def update(self, peer: str, told: dict[str, Received | None]) -> None:
        self.rib.update(peer, told)
        for prefix, path in told.items():
            if path is None:
                self.model.pop((peer, prefix), None)
            else:
                self.model[peer, prefix] = (path, False)

    @rule(peer=_peers)
    def drop(self, peer: str) -> None:
        self.rib.drop(peer)
        self.model = {key: value for key, value in self.model.items() if key[0] != peer}

    @rule(peer=_peers)
    def restart(self, peer: str) -> None:
        self.rib.mark_stale(peer)
        self.model = {key: (path, stale or key[0] == peer) for key, (path, stale) in self.model.items()}

    @rule(peer=_peers)
    def sweep(self, peer: str) -> None:
        expected = [key for key, (_, stale) in self.model.items() if stale and key[0] == peer]
        assert self.rib.sweep_stale(peer) == len(expected)
        for key in expected:
            del self.model[key]

    @rule(prefixes=st.sets(_prefixes), metric=st.integers(1, 2))
    def own(self, prefixes: set[str], metric: int) -> None:
        self.local = {prefix: Path(source=Source.STATIC, metric=metric) for prefix in prefixes}
        self.rib.set_local(self.local)

    @rule()
    def take(self) -> None:
        changed = self.rib.take_changed()
        now = self._view()
        for prefix in self.seen.keys() | now.keys():
            assert prefix in changed or self.seen.get(prefix) == now.get(prefix), "a change was not told"
        self.seen = now
        assert self.rib.take_changed() == set()

    @invariant()
    def agrees(self) -> None:
        assert self.rib.prefixes() == self._view().keys()
        for prefix, (received, local) in self._view().items():
            assert (dict(self.rib.received(prefix)), self.rib.local(prefix)) == (received, local)
        for peer in ("10.0.0.1", "10.0.0.2", "fd00::1"):
            mine = {prefix: stale for (one, prefix), (_, stale) in self.model.items() if one == peer}
            assert self.rib.count(peer) == len(mine)
            assert self.rib.stale_count(peer) == sum(mine.values())


TestRib = RibMachine.TestCase
TestRib.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_no_more_than_the_limit() -> None:
    path, other = Received(Attributes(), "10.0.0.9"), Received(Attributes(med=1), "10.0.0.9")
    prefixes = [f"10.0.{number}.0/24" for number in range(30)]
    rib = Rib()
    rib.limit = 20
    rib.update("one", dict.fromkeys(prefixes[:20], path))
    assert not rib.over("one") and not rib.take_room()
    rib.update("one", dict.fromkeys(prefixes, other))
    assert rib.over("one") and rib.count("one") == 20 and rib.prefixes() == set(prefixes[:20])
    assert rib.received(prefixes[0]) == {"one": other}, "what has its place may change"
    rib.update("two", dict.fromkeys(prefixes[20:], path))
    assert rib.count("two") == 10 and not rib.over("two"), "each peer has its own"
    rib.update("one", {prefixes[0]: None})
    assert not rib.take_room(), "not for every single one"
    rib.update("one", {prefixes[1]: None})
    assert rib.take_room() == ["one"] and not rib.take_room() and not rib.over("one")
    rib.update("one", dict.fromkeys(prefixes, path))
    rib.drop("one")
    assert not rib.over("one") and rib.prefixes() == set(prefixes[20:])
