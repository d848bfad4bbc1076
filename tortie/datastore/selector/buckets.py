"""The two lookup tables under the index: who is in a bucket, and who carries a label.

Both keep their members in order of arrival, so that what is found comes in the same order in every run.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from tortie.datastore.selector.ast import Term

B = TypeVar("B", bound=Hashable)
M = TypeVar("M", bound=Hashable)

_NONE: Mapping[Any, None] = {}


class Buckets(Generic[B, M]):
    """Sets of members by a key. An empty bucket takes no space."""

    def __init__(self) -> None:
        self._members: dict[B, dict[M, None]] = {}  # bucket -> its members (a dict: ordered)

    def add(self, bucket: B, member: M) -> None:
        self._members.setdefault(bucket, {})[member] = None

    def discard(self, bucket: B, member: M) -> None:
        if (members := self._members.get(bucket)) is not None:
            members.pop(member, None)
            if not members:
                del self._members[bucket]

    def get(self, bucket: B) -> Mapping[M, None]:
        """The members, in order; to be read only."""
        return self._members.get(bucket, _NONE)

    def all(self) -> Iterable[Collection[M]]:
        return self._members.values()

    def __len__(self) -> int:
        """How many buckets have members."""
        return len(self._members)


class Holders(Generic[M]):
    """Who carries a label itself, whatever it may inherit."""

    def __init__(self) -> None:
        self._by_label: dict[str, Buckets[str, M]] = {}  # label -> value -> members

    def add(self, member: M, labels: Mapping[str, str]) -> None:
        for label, value in labels.items():
            self._by_label.setdefault(label, Buckets()).add(value, member)

    def remove(self, member: M, labels: Mapping[str, str]) -> None:
        """`labels` must be those that were added."""
        for label, value in labels.items():
            by_value = self._by_label[label]
            by_value.discard(value, member)
            if not by_value:
                del self._by_label[label]

    def of(self, term: Term) -> list[Collection[M]]:
        """Those that satisfy `term`, as disjoint collections."""
        label, value = term
        if (by_value := self._by_label.get(label)) is None:
            return []
        return [by_value.get(value)] if value is not None else list(by_value.all())

    def __len__(self) -> int:
        """How many labels are carried by anybody."""
        return len(self._by_label)
