"""Labels with inheritance, looked up where they are instead of merged."""

from collections.abc import Iterator, Mapping
from typing import TypeVar, overload

T = TypeVar("T")


class ChainLabels(Mapping[str, str]):
    """An object's own labels, then those of each parent in order; the first that has a label wins.

    A view: it follows later changes of the mappings it was made from. (What collections.ChainMap does,
    but that takes four times as long for each `get`, and this is all that evaluation does.)
    """

    __slots__ = ("_chain",)

    def __init__(self, *chain: Mapping[str, str]) -> None:
        """`chain`: own labels first."""
        self._chain = chain

    @overload
    def get(self, key: str, /) -> str | None: ...
    @overload
    def get(self, key: str, /, default: str | T) -> str | T: ...
    def get(self, key: str, /, default: T | None = None) -> str | T | None:
        for labels in self._chain:
            if (value := labels.get(key)) is not None:
                return value
        return default

    def merged(self) -> dict[str, str]:
        """The same labels as one dict, for those who look at all of them."""
        result: dict[str, str] = {}
        for labels in reversed(self._chain):
            result.update(labels)
        return result

    def __getitem__(self, key: str) -> str:
        if (value := self.get(key)) is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.merged())

    def __len__(self) -> int:
        return len(self.merged())
