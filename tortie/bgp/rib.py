"""All paths to all prefixes: what each peer announced, and our own.

Owns two tables that always agree: prefix -> who announced it, and peer -> what it announced. Every
operation notes the prefixes it may have changed; take_changed() hands them out once. Paths are kept
as received, import policy is asked when a prefix is looked at: a changed configuration needs no word
from the peers.

A peer may announce no more than `limit` prefixes, 0 for any number: what is beyond is not taken, so that
a hostile or mistaken peer costs no more memory than that. It counts as *over* from then on, because what
was left out is missing when others are withdrawn.

Stale paths (RFC 4724, 4.2) are paths like any other until they are swept.

It does not choose (bestpath.py), does not judge (policy.py) and knows no time (graceful.py).
"""

from collections.abc import Iterable, Mapping

from tortie.bgp.route import Path, Received

_ROOM = 10  # a tenth of the limit must be free before a peer is asked again: it should not be each time

Told = Mapping[str, Received | None]
"""prefix -> what a peer says of it now, None: withdrawn."""


class Rib:
    def __init__(self) -> None:
        self._paths: dict[str, dict[str, Received]] = {}  # prefix -> peer address -> its path
        self._by_peer: dict[str, set[str]] = {}  # peer address -> prefixes it announced
        self._stale: dict[str, set[str]] = {}  # peer address -> prefixes not heard of since it restarted
        self._local: dict[str, Path] = {}  # prefix -> our own path
        self._changed: set[str] = set()  # prefixes to look at again
        self.limit = 0  # prefixes of one peer
        self._over: set[str] = set()  # peers that announced more than that

    # --- reading --------------------------------------------------------------------------------

    def received(self, prefix: str) -> Mapping[str, Received]:
        """Peer address -> its path to the prefix."""
        return self._paths.get(prefix, {})

    def local(self, prefix: str) -> Path | None:
        return self._local.get(prefix)

    def alike(self, prefixes: Iterable[str]) -> Iterable[list[str]]:
        """The prefixes in groups that have the very same paths, as those of one UPDATE have."""
        groups: dict[tuple[object, ...], list[str]] = {}  # identities of the paths, and whose -> prefixes
        nothing: dict[str, Received] = {}
        for prefix in prefixes:
            heard = self._paths.get(prefix, nothing)
            key = id(self._local.get(prefix)), *heard, *map(id, heard.values())
            if (group := groups.get(key)) is None:
                group = groups[key] = []
            group.append(prefix)
        return groups.values()

    def count(self, peer: str) -> int:
        """How many prefixes a peer announces, stale ones included."""
        return len(self._by_peer.get(peer, ()))

    def over(self, peer: str) -> bool:
        """Whether some of what the peer announces was left out."""
        return peer in self._over

    def stale_count(self, peer: str) -> int:
        return len(self._stale.get(peer, ()))

    def prefixes(self) -> set[str]:
        return self._paths.keys() | self._local.keys()

    def take_changed(self) -> set[str]:
        """Prefixes that may have changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    # --- writing --------------------------------------------------------------------------------

    def update(self, peer: str, told: Told) -> None:
        """Take over what a peer said. Hearing the same again only makes it fresh."""
        mine = self._by_peer.setdefault(peer, set())
        stale = self._stale.get(peer)
        if stale:
            stale.difference_update(told)
        for prefix, path in told.items():
            if path is None:
                if prefix in mine:
                    self._remove(peer, prefix)
            elif prefix in mine:
                if self._paths[prefix][peer] != path:
                    self._paths[prefix][peer] = path
                    self._changed.add(prefix)
            elif self.limit and len(mine) >= self.limit:
                self._over.add(peer)
            else:
                if (holders := self._paths.get(prefix)) is None:
                    self._paths[prefix] = {peer: path}
                else:
                    holders[peer] = path
                mine.add(prefix)
                self._changed.add(prefix)

    def drop(self, peer: str) -> None:
        """Forget everything a peer announced."""
        for prefix in list(self._by_peer.get(peer, ())):
            self._remove(peer, prefix)
        self._by_peer.pop(peer, None)
        self._stale.pop(peer, None)
        self._over.discard(peer)

    def mark_stale(self, peer: str) -> None:
        """Everything a peer announced counts as unconfirmed from now on."""
        if mine := self._by_peer.get(peer):
            self._stale[peer] = set(mine)

    def sweep_stale(self, peer: str) -> int:
        """Forget what was not announced again since mark_stale(); how many that were."""
        stale = self._stale.pop(peer, set())
        for prefix in stale:
            self._remove(peer, prefix)
        return len(stale)

    def set_local(self, paths: Mapping[str, Path]) -> None:
        """Replace all our own paths."""
        for prefix in self._local.keys() | paths.keys():
            if self._local.get(prefix) != paths.get(prefix):
                self._changed.add(prefix)
        self._local = dict(paths)

    def touch(self, prefixes: Iterable[str]) -> None:
        """Have these looked at again, because something else that decides about them changed."""
        self._changed.update(prefixes)

    def suspect_over(self) -> list[str]:
        """Who has just as many as the limit may have announced more, before we were there to count."""
        full = [peer for peer, mine in self._by_peer.items() if self.limit and len(mine) >= self.limit]
        self._over.update(full)
        return full

    def take_room(self) -> list[str]:
        """Peers that were over the limit and have room again: they are to announce all once more."""
        enough = self.limit - self.limit // _ROOM
        found = sorted(peer for peer in self._over if self.count(peer) <= enough)
        self._over.difference_update(found)
        return found

    def _remove(self, peer: str, prefix: str) -> None:
        self._by_peer[peer].discard(prefix)
        if stale := self._stale.get(peer):
            stale.discard(prefix)
        holders = self._paths[prefix]
        del holders[peer]
        if not holders:
            del self._paths[prefix]
        self._changed.add(prefix)
