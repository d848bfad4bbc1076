"""Paths that peers announced and import did not accept: which, why, and how many of each. Pure."""

from collections import Counter
from collections.abc import Mapping


class Refusals:
    def __init__(self) -> None:
        self._reasons: dict[
            str, dict[str, str]
        ] = {}  # prefix -> peer address -> why; prefixes without any are absent
        self._counts: Counter[tuple[str, str]] = Counter()  # (peer, why) -> prefixes

    def note(self, prefix: str, refused: Mapping[str, str]) -> None:
        """These peers' paths to the prefix are refused, and no others'."""
        known = self._reasons.pop(prefix, None)
        if known:
            self._counts.subtract(known.items())
        if refused:
            self._reasons[prefix] = dict(refused)
            self._counts.update(refused.items())

    def of(self, prefix: str) -> Mapping[str, str]:
        """Peer address -> why its path to the prefix is refused."""
        return self._reasons.get(prefix, {})

    def counts(self, peer: str) -> Mapping[str, int]:
        """Why -> how many prefixes of the peer, most frequent first."""
        mine = {why: count for (one, why), count in self._counts.items() if one == peer and count}
        return dict(sorted(mine.items(), key=lambda item: (-item[1], item[0])))
