"""Paths that peers announced and import did not accept: which, why, and how many of each. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping


class Refusals:
    def __init__(self) -> None:
        self._reasons: dict[str, Mapping[str, str]] = {}  # prefix -> peer -> why; only where there is one
        self._counts: Counter[tuple[str, str]] = Counter()  # (peer, why) -> prefixes

    def note(self, prefixes: Collection[str], refused: Mapping[str, str]) -> None:
        """These peers' paths to the prefixes are refused, and no others'."""
        for prefix in self._reasons.keys() & prefixes if self._reasons else ():
            self._counts.subtract(self._reasons.pop(prefix).items())
        if refused:
            self._reasons |= dict.fromkeys(prefixes, refused)
            self._counts.update(dict.fromkeys(refused.items(), len(prefixes)))

    def of(self, prefix: str) -> Mapping[str, str]:
        """Peer address -> why its path to the prefix is refused."""
        return self._reasons.get(prefix, {})

    def counts(self, peer: str) -> Mapping[str, int]:
        """Why -> how many prefixes of the peer, most frequent first."""
        mine = {why: count for (one, why), count in self._counts.items() if one == peer and count}
        return dict(sorted(mine.items(), key=lambda item: (-item[1], item[0])))
