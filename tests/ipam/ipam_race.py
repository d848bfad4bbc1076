"""A race told step by step: actors with one script each, and the order in which they make requests."""

from collections.abc import Callable, Coroutine
from typing import Any

from tests.ipam.ipam_scheduler import Fate, ScheduledBackend, Scheduler, stages
from tests.ipam.ipam_world import World, assign, try_assign
from tests.support.memory_backend import MemoryBackend
from tortie.datastore.client import Client
from tortie.ipam.allocator import Allocator
from tortie.ipam.view import DirectView

BLOCK = "10.0.0.0/30"  # the only block of the pool, unless a test makes it larger
Script = Callable[[Allocator], Coroutine[Any, Any, Any]]


class Race:
    """Actors with one script each; `results` has what the scripts returned or raised."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.actors: dict[str, tuple[str, Script]] = {}
        self.results: dict[str, Any] = {}
        self.history: list[str] = []

    def actor(self, name: str, script: Script, host: str = "") -> None:
        """`name` also names the host unless one is given."""
        self.actors[name] = (host or name, script)

    async def run(self, *steps: tuple[str, str], fates: dict[str, Fate] | None = None) -> None:
        """In the order of `steps`; `fates`: what becomes of the first write that contains the text."""
        pending = dict(fates or {})

        def fate(_number: int) -> Fate:
            text = next((text for text in pending if text in scheduler.current), None)
            return pending.pop(text) if text is not None else "done"

        memory = self.world.backend
        assert isinstance(memory, MemoryBackend)
        scheduler = Scheduler(stages(*steps), fate)
        client = Client(ScheduledBackend(scheduler, memory))
        view = DirectView(self.world.client)  # pools and labels are known, as in a server

        async def act(name: str, host: str, script: Script) -> None:
            allocator = self.world.allocator(host, client, view=view)
            try:
                self.results[name] = await script(allocator)
            except Exception as err:  # noqa: BLE001 - tests look at it
                self.results[name] = err

        await scheduler.run([(name, act(name, *actor)) for name, actor in self.actors.items()])
        self.history = scheduler.history

    def raced(self, *texts: str) -> None:
        """The history has these requests, in this order: the race really took place."""
        lines = iter(self.history)
        for text in texts:
            assert any(text in line for line in lines), f"{text!r} not found in order:\n" + "\n".join(
                self.history
            )


async def world_of(cidr: str = BLOCK, *hosts: str, **config: Any) -> World:
    world = World()
    await world.pool("pool", cidr, 30)
    await world.nodes(*(hosts or ("a", "b")))
    await world.configure(**config)
    return world


async def one(allocator: Allocator) -> tuple[str, ...]:
    return await assign(allocator, 1, f"{allocator.host}.{id(allocator)}")


async def maybe_one(allocator: Allocator) -> tuple[str, ...]:
    got = await try_assign(allocator, 1, f"{allocator.host}.{id(allocator)}")
    assert got.error is None and got.v4 is not None
    return got.v4.addresses
