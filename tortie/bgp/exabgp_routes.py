"""Routes on their way through ExaBGP, from a command to UPDATEs, made once for all neighbours that are told.

ExaBGP copies each route for each neighbour, and packs, decodes and describes each UPDATE anew for each:
a reflector with 30 clients spends 3 ms on every route that it sends. Here what a command says is a Batch,
which is made once, is shared by the neighbours' queues, and keeps the messages that were made from it.

Every piece is still ExaBGP's: its parser reads attributes and prefixes, its Update packs and decodes. And
it stays in charge of the sessions: a batch is one more thing in its outgoing RIB, which remembers the
routes in it as it does its own, and sends them again when the session comes back or the peer asks.

replace() puts it all in place; imported by exabgp.py alone, after ExaBGP's settings were made.
"""

from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakValueDictionary

from exabgp.bgp.message import Action, Update
from exabgp.bgp.message.direction import Direction
from exabgp.bgp.message.update.nlri import CIDR
from exabgp.configuration.static.parser import prefix as parse_prefix
from exabgp.protocol.family import AFI
from exabgp.reactor import peer, protocol
from exabgp.reactor.api import response
from exabgp.reactor.api.command.command import Command
from exabgp.reactor.asynchronous import ASYNC
from exabgp.rib import outgoing
from exabgp.rib.change import Change

_HEADS = 1000  # attribute sets remembered as commands write them
_HEADER = 19  # octets of a BGP message before its body
_SELECT = "neighbor "
_NEXT = ", "  # between neighbours, after a blank
_SHOWN = 200  # characters of a command that is not understood


class Batch:
    """Changes with the same action, family, attributes and next hop."""

    def __init__(self, changes: Iterable[Any]) -> None:
        self.changes = {change.index(): change for change in changes}
        first = next(iter(self.changes.values()))
        self.family = first.nlri.family().afi_safi()
        self.announced = first.nlri.action == Action.ANNOUNCE
        self._attributes = first.attributes
        self._made: dict[tuple[object, ...], list[tuple[bytes, Any]]] = {}  # what was negotiated -> messages

    def messages(self, negotiated: Any) -> list[tuple[bytes, Any]]:
        """Each as it is sent, and as the helper is told of it; none if the session has not the family."""
        key = (
            negotiated.asn4,
            negotiated.aigp,
            negotiated.msg_size,
            negotiated.local_as,
            negotiated.peer_as,
            tuple(negotiated.families),
            tuple(negotiated.nexthop),
            negotiated.addpath.send(*self.family),
        )
        if key not in self._made:
            update = UniformUpdate([change.nlri for change in self.changes.values()], self._attributes)
            self._made[key] = [(raw, _decoded(raw, negotiated)) for raw in update.messages(negotiated)]
        return self._made[key]


def _decoded(raw: bytes, negotiated: Any) -> Any:
    update = Update.unpack_message(raw[_HEADER:], Direction.OUT, negotiated)
    update.description = None  # to be remembered, see _remember_descriptions()
    return update


class UniformUpdate(Update):  # type: ignore[misc]
    """Sorting and sifting the NLRI would take longer than all the rest, and these are all alike."""

    def _split_nlris(self, negotiated: Any) -> tuple[list[Any], dict[Any, Any]]:
        native, others = Update([self.nlris[0]], self.attributes)._split_nlris(negotiated)
        if native:
            return self.nlris, {}
        return [], {family: dict.fromkeys(actions, self.nlris) for family, actions in others.items()}


class SharingRIB(outgoing.OutgoingRIB):  # type: ignore[misc]
    """What ExaBGP queued itself goes first: it was taken from what is remembered, so batches are no older."""

    def __init__(self, cache: bool, families: Any) -> None:
        self._batches: list[Batch] = []
        super().__init__(cache, families)

    def add(self, batch: Batch) -> None:
        self._batches.append(batch)
        if not self.cache:
            return
        seen = self._seen.setdefault(batch.family, {})
        if batch.announced:
            seen.update(batch.changes)
        else:
            for index in batch.changes:
                seen.pop(index, None)

    def take(self) -> list[Batch]:
        taken, self._batches = self._batches, []
        return taken

    def pending(self) -> bool:
        return bool(self._batches) or super().pending()

    def reset(self) -> None:
        self._batches = []
        super().reset()

    def replace_restart(self, previous: Any, new: Any) -> None:
        """A session has come up: all that is remembered is sent, in batches, and nothing else."""
        if previous or new or not self.cache:
            super().replace_restart(previous, new)
            return
        alike: dict[tuple[object, ...], list[Any]] = {}
        for change in self.cached_changes(self.families):
            key = id(change.attributes), str(change.nlri.nexthop), change.nlri.family().afi_safi()
            alike.setdefault(key, []).append(change)
        self._batches = list(map(Batch, alike.values()))

    def updates(self, grouped: bool) -> Iterator[Any]:
        """What is sent again because the peer asks for it comes one by one: together what came together."""
        alike: list[Any] = []
        for update in super().updates(grouped):
            if alike and not _uniform(alike[-1], update):
                yield _joined(alike)
                alike = []
            alike.append(update)
        if alike:
            yield _joined(alike)


def _uniform(one: Any, other: Any) -> bool:
    """Whether the two are UPDATEs of one NLRI each that can be one."""
    if not all(type(each) is Update and len(each.nlris) == 1 for each in (one, other)):
        return False
    (first,), (second,) = one.nlris, other.nlris
    same = first.action == second.action and first.family() == second.family()
    return same and one.attributes is other.attributes and first.nexthop is second.nexthop


def _joined(updates: list[Any]) -> Any:
    if len(updates) == 1:
        return updates[0]
    return UniformUpdate([nlri for update in updates for nlri in update.nlris], updates[0].attributes)


class SharingProtocol(protocol.Protocol):  # type: ignore[misc]
    def new_update(self, include_withdraw: bool) -> Iterator[Any]:
        # Both taken at the same moment: a refresh that is asked for meanwhile must not follow newer batches.
        batches = self.neighbor.rib.outgoing.take()
        yield from super().new_update(include_withdraw)
        for batch in batches:
            for raw, update in batch.messages(self.negotiated):
                yield from self._send_made(raw, update)

    def _send_made(self, raw: bytes, update: Any) -> Iterator[bool]:
        """As send(), which decodes the message for each neighbour."""
        self.peer.stats["send-update"] += 1
        if self.neighbor.api.get("send-update", False):
            self._to_api("send", update, raw)
        yield from self.connection.writer(raw)


class PlainASYNC(ASYNC):  # type: ignore[misc]
    def run(self) -> Any:
        """Without the event loop that it makes for each turn: nothing in it waits."""
        if not self._async:
            return False
        try:
            self._run_async().send(None)
        except StopIteration as done:
            return done.value
        raise RuntimeError("a command waits for something")


# --- commands ---------------------------------------------------------------------------------------


class Parser:
    """`announce` and `withdraw attributes … nlri …` of one API; attributes and prefixes are read once."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._heads: dict[tuple[str, bool], Any] = {}  # (text, IPv6?) -> a change, all but its prefix
        self._prefixes: WeakValueDictionary[str, Any] = WeakValueDictionary()  # text -> CIDR, while in use

    def batch(self, command: str, action: int) -> Batch:
        """Raises ValueError if ExaBGP does not take it."""
        head, found, prefixes = command.partition(" nlri ")
        texts = prefixes.split()
        if not found or not texts:
            raise ValueError("no prefixes")
        one = self._template(head, texts[0])
        nlri, made = one.nlri, []
        if any((":" in text) != (nlri.afi == AFI.ipv6) for text in texts):
            raise ValueError("prefixes of two families")
        for text in texts:
            new = type(nlri)(nlri.afi, nlri.safi, action)
            new.cidr, new.nexthop = self._cidr(text), nlri.nexthop
            made.append(Change(new, one.attributes))
        return Batch(made)

    def _template(self, head: str, prefix: str) -> Any:
        key = head, ":" in prefix
        if key not in self._heads:
            try:
                changes = self._api.api_attributes(f"{head} nlri {prefix}", [])
            except OSError as err:  # what inet_pton() says of an address
                raise ValueError(str(err)) from err
            if not changes or changes[0].nlri.nexthop.SELF:
                raise ValueError("attributes are not understood")
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[key] = changes[0]
        return self._heads[key]

    def _cidr(self, text: str) -> Any:
        found = self._prefixes.get(text)
        if found is None:
            parsed = parse_prefix(_Words(text))
            found = self._prefixes[text] = CIDR(parsed.pack(), parsed.mask)
        return found


class _Words:
    """One word, as ExaBGP's parsers take it; they leave the family here."""

    afi: Any = None

    def __init__(self, word: str) -> None:
        self._word = word

    def __call__(self) -> str:
        return self._word


def _selected(reactor: Any, service: str, line: str) -> tuple[list[Any], str]:
    """The neighbours whose addresses a command names, and the command without them."""
    by_address: dict[str, list[Any]] = {}
    for name in reactor.peers(service):
        if (neighbor := reactor.configuration.neighbors.get(name)) is not None:
            by_address.setdefault(str(neighbor["peer-address"]), []).append(neighbor)
    chosen: dict[str, None] = {}
    while line.startswith(_SELECT):
        address, _, line = line.removeprefix(_SELECT).partition(" ")
        chosen[address] = None
        line = line.removeprefix(_NEXT)
    return [one for address in chosen for one in by_address.get(address, ())], line


def _tell(action: int) -> Any:
    def command(api: Any, reactor: Any, service: str, line: str, _use_json: bool) -> bool:
        def callback() -> Iterator[bool]:
            neighbors, said = _selected(reactor, service, line)
            if not neighbors:
                api.log_failure(f"no neighbor matching the command : {line[:_SHOWN]}")
                reactor.processes.answer_error(service)
                return
            try:
                batch = _parser(api).batch(said, action)
            except (ValueError, IndexError) as err:
                api.log_failure(f"command could not be understood ({err}): {said[:_SHOWN]}")
                reactor.processes.answer_error(service)
                return
            for neighbor in neighbors:
                if batch.family in neighbor.families():
                    neighbor.rib.outgoing.add(batch)
                else:
                    api.log_failure(f"{neighbor['peer-address']} has no family for: {said[:_SHOWN]}")
            reactor.processes.answer_done(service)
            yield True

        reactor.asynchronous.schedule(service, line, callback())
        return True

    return command


def _parser(api: Any) -> Parser:
    if not hasattr(api, "parser"):
        api.parser = Parser(api)
    found: Parser = api.parser
    return found


# --- in their places --------------------------------------------------------------------------------


def replace() -> None:
    from exabgp import rib

    rib.OutgoingRIB = SharingRIB
    peer.Protocol = SharingProtocol
    _remember_descriptions(response.Response.JSON)
    for word, action in (("announce", Action.ANNOUNCE), ("withdraw", Action.WITHDRAW)):
        Command.register(f"{word} attributes")(_tell(action))


def _remember_descriptions(encoder: Any) -> None:
    """What the helper is told of an UPDATE that goes to many is written once."""
    describe = encoder._update

    def described(self: Any, update: Any) -> Any:
        if not hasattr(update, "description"):
            return describe(self, update)
        if update.description is None:
            update.description = describe(self, update)
        return dict(update.description)

    encoder._update = described
