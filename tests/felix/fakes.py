"""Stand-ins for what unit tests of the dataplane cannot have: a clock, and kernels that are dictionaries."""

from collections.abc import Collection, Hashable, Mapping
from typing import Any, Generic, TypeVar

from tortie.core.errors import KernelError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class FakeClock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeKernel(Generic[K, V]):
    """A Target over a dictionary, which refuses what it is told to refuse."""

    def __init__(self, objects: Mapping[K, V] | None = None) -> None:
        self.objects: dict[K, V] = dict(objects or {})
        self.refuse: dict[K, str] = {}
        self.unreadable = False
        self.reads = 0
        self.log: list[tuple[str, Any]] = []  # what was done, in order

    async def read(self) -> Mapping[K, V]:
        self.reads += 1
        if self.unreadable:
            raise KernelError("read", "things")
        return dict(self.objects)

    async def apply(self, update: Mapping[K, V], delete: Collection[K]) -> Mapping[K, str]:
        for key in delete:
            if key not in self.refuse:
                self.objects.pop(key, None)
                self.log.append(("delete", key))
        for key, value in update.items():
            if key not in self.refuse:
                self.objects[key] = value
                self.log.append(("update", key))
        return {key: self.refuse[key] for key in [*update, *delete] if key in self.refuse}

    def same(self, desired: V, actual: V) -> bool:
        return desired == actual


FakeTables = FakeKernel[Any, Any]
