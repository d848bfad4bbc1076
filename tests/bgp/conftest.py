"""Fixtures of the BGP tests: everything they start ends with the test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.bgp.bgp_lab import Mesh
from tests.netns_lab import Namespace
from tortie.core.speaker import Speaker


@pytest.fixture
def make_mesh(make_netns: Callable[[], Namespace], speaker: Speaker) -> Iterator[Callable[..., Mesh]]:
    """`make_mesh(3, listenPort=1179)`: nodes and their BGPConfiguration; nothing is started."""
    made: list[Mesh] = []

    def make(count: int, **settings: Any) -> Mesh:
        made.append(Mesh(make_netns, count, speaker, **settings))
        return made[-1]

    yield make
    for mesh in made:
        mesh.close()


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """`closing(thing)` returns the thing and closes it after the test."""
    things: list[Any] = []

    def keep(thing: Any) -> Any:
        things.append(thing)
        return thing

    yield keep
    for thing in reversed(things):
        thing.close()
