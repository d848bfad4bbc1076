"""Routes through ExaBGP, from a command to messages: the same as by its own way, and made once.

Its own parser, RIB and Update are the model.
"""

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.bgp import exabgp_settings
from tortie.bgp import commands
from tortie.bgp.commands import Change
from tortie.bgp.route import Announcement, Attributes, Segment

pytestmark = pytest.mark.unit

_V4 = [f"192.168.{number}.0/26" for number in range(40)]
_V6 = [f"fd00:168::{number:x}00/122" for number in range(1, 40)]
_RICH = Attributes(
    as_path=(Segment("as-sequence", (65001, 4_200_000_001)), Segment("as-set", (65002, 65003))),
    med=7,
    local_pref=200,
    communities=((65000, 1), (65535, 65281)),
    large_communities=((1, 2, 3),),
    originator_id="10.0.0.9",
    cluster_list=("1.0.0.1", "1.0.0.2"),
)


@pytest.fixture(scope="module")
def routes() -> Iterator[ModuleType]:
    """The module, which imports ExaBGP: with the settings that it has in production."""
    with exabgp_settings.production():
        from tortie.bgp import exabgp_routes

        yield exabgp_routes


@pytest.fixture
def api(routes: ModuleType) -> Any:
    from exabgp.reactor.api import API

    return API(None)


def _command(prefixes: list[str], announcement: Announcement | None) -> str:
    """As it comes from the pipe, without the neighbour."""
    from exabgp.configuration.core.format import formated

    (line,) = commands.tell(Change("10.0.0.1", prefix, announcement) for prefix in prefixes)
    return str(formated(line.decode()).removeprefix("neighbor 10.0.0.1 "))


def _announce(prefixes: list[str], attributes: Attributes = _RICH) -> str:
    return _command(prefixes, Announcement(attributes, "fd09::9" if ":" in prefixes[0] else "10.0.0.9"))


def _action(command: str) -> int:
    from exabgp.bgp.message import Action

    return int(Action.ANNOUNCE if command.startswith("announce") else Action.WITHDRAW)


def _batch(routes: ModuleType, api: Any, command: str) -> Any:
    return routes.Parser(api).batch(command, _action(command))


def _negotiated(**differences: Any) -> Any:
    from exabgp.bgp.message.open.capability.negotiated import Negotiated
    from exabgp.protocol.family import AFI, SAFI

    made = Negotiated({"capability": {"aigp": False}})
    made.asn4, made.local_as, made.peer_as = True, 64512, 64512
    made.families = [(AFI.ipv4, SAFI.unicast), (AFI.ipv6, SAFI.unicast)]
    for name, value in differences.items():
        setattr(made, name, value)
    return made


def _said(messages: list[tuple[bytes, Any]]) -> dict[str, tuple[str, str]]:
    """Prefix -> next hop and attributes, as the helper is told of them."""
    return {
        nlri.cidr.prefix(): (str(nlri.nexthop), update.attributes.json())
        for _, update in messages
        for nlri in update.nlris
    }


@pytest.mark.parametrize(
    ("prefixes", "attributes"), [(_V4, _RICH), (_V4, Attributes()), (_V6, _RICH), (["0.0.0.0/0"], _RICH)]
)
def test_a_command_says_what_exabgp_reads_in_it(
    routes: ModuleType, api: Any, prefixes: list[str], attributes: Attributes
) -> None:
    command = _announce(prefixes, attributes)
    batch = _batch(routes, api, command)
    model = api.api_attributes(command, [])
    for change in model:
        change.nlri.action = _action(command)
    assert list(batch.changes) == [change.index() for change in model]
    for mine, theirs in zip(batch.changes.values(), model, strict=True):
        assert mine.attributes.index() == theirs.attributes.index()
        assert str(mine.nlri) == str(theirs.nlri) and mine.nlri.action == theirs.nlri.action
    assert batch.announced and len(batch.changes) == len(prefixes)


def test_both_kinds_and_both_families_are_kept_apart(routes: ModuleType, api: Any) -> None:
    """One parser remembers what it has read."""
    parser = routes.Parser(api)
    said = [
        _announce(_V4),
        _announce(_V6),
        _command(_V4, None),
        _command(_V6, None),
        _announce(_V4, Attributes()),
    ]
    for _ in range(2):
        batches = [parser.batch(command, _action(command)) for command in said]
        assert [batch.announced for batch in batches] == [True, True, False, False, True]
        assert [str(batch.family[0]) for batch in batches] == ["ipv4", "ipv6", "ipv4", "ipv6", "ipv4"]
        rich, plain = batches[0].messages(_negotiated()), batches[4].messages(_negotiated())
        assert _said(rich).keys() == _said(plain).keys() and _said(rich) != _said(plain)
    same_head = _command(_V4, Announcement(_RICH, "fd09::9"))
    assert str(parser.batch(same_head, _action(same_head)).family[0]) == "ipv4"
    assert (
        next(iter(batches[0].changes.values())).nlri.cidr is next(iter(batches[2].changes.values())).nlri.cidr
    )


@pytest.mark.parametrize(
    "command",
    [
        "announce attributes next-hop 10.0.0.9 nlri 192.168.1.1/26",  # host bits
        "announce attributes next-hop 10.0.0.9 nlri 192.168.0.0/26 192.168.1.0/33",
        "announce attributes next-hop 10.0.0.9 nlri 192.168.0.0/26 x",
        "announce attributes next-hop 10.0.0.9 nlri 192.168.0.0/26 fd00::/64",
        "announce attributes next-hop 10.0.0.9 nlri ",
        "announce attributes next-hop 10.0.0.9",
        "announce attributes next-hop 10.0.0.9 colour blue nlri 192.168.0.0/26",
        "announce attributes next-hop 10.0.0.999 nlri 192.168.0.0/26",
        "announce attributes next-hop self nlri 192.168.0.0/26",
    ],
)
def test_what_exabgp_does_not_take_is_refused(routes: ModuleType, api: Any, command: str) -> None:
    for _ in range(2):
        with pytest.raises(ValueError):
            _batch(routes, api, command)


@pytest.mark.parametrize("prefixes", [_V4, _V6])
def test_messages_are_exabgps(routes: ModuleType, api: Any, prefixes: list[str]) -> None:
    """The same NLRI with the same attributes; ExaBGP sorts them."""
    from exabgp.bgp.message import Update

    batch, negotiated = _batch(routes, api, _announce(prefixes)), _negotiated()
    made = batch.messages(negotiated)
    changes = list(batch.changes.values())
    (theirs,) = Update([change.nlri for change in changes], changes[0].attributes).messages(negotiated)
    ((raw, _),) = made
    assert len(raw) == len(theirs) and sorted(raw) == sorted(theirs)
    assert _said(made).keys() == set(prefixes) and len(set(_said(made).values())) == 1
    assert batch.messages(_negotiated()) is made, "made once for all that negotiated the same"


def test_messages_are_what_the_session_can_take(routes: ModuleType, api: Any) -> None:
    batch = _batch(
        routes, api, _announce([f"10.{number // 256}.{number % 256}.0/24" for number in range(1000)])
    )
    messages = batch.messages(_negotiated())
    assert len(messages) == 2 and max(len(raw) for raw, _ in messages) <= 4096
    assert len(_said(messages)) == 1000
    assert len(batch.messages(_negotiated(msg_size=65535))) == 1
    old = batch.messages(_negotiated(asn4=False))
    assert old != messages and len(_said(old)) == 1000
    assert batch.messages(_negotiated(families=_negotiated().families[1:])) == []


def test_a_withdrawal_has_no_attributes(routes: ModuleType, api: Any) -> None:
    for prefixes in (_V4, _V6):
        ((raw, update),) = _batch(routes, api, _command(prefixes, None)).messages(_negotiated())
        assert {nlri.cidr.prefix() for nlri in update.nlris} == set(prefixes)
        assert {nlri.action for nlri in update.nlris} == {_action("withdraw")} and b"\x40\x01" not in raw[19:]


# --- the outgoing RIB -------------------------------------------------------------------------------


def _rib(routes: ModuleType) -> Any:
    return routes.SharingRIB(True, _negotiated().families)


def _held(rib: Any) -> set[str]:
    return {change.nlri.cidr.prefix() for change in rib.cached_changes()}


def test_batches_leave_in_the_order_they_came(routes: ModuleType, api: Any) -> None:
    rib = _rib(routes)
    assert not rib.pending() and rib.take() == []
    told = [
        _batch(routes, api, command)
        for command in (_announce(_V4), _announce(_V6), _command(_V4[:3], None), _announce(_V4[1:2]))
    ]
    for batch in told:
        rib.add(batch)
    assert rib.pending() and _held(rib) == {*_V4[1:2], *_V4[3:], *_V6}
    assert rib.take() == told and not rib.pending() and rib.take() == []


def test_what_was_told_is_told_again_when_the_session_returns(routes: ModuleType, api: Any) -> None:
    rib = _rib(routes)
    for command in (
        _announce(_V4),
        _announce(_V6),
        _announce(_V4[:5], Attributes()),
        _command(_V4[5:7], None),
    ):
        rib.add(_batch(routes, api, command))
    rib.reset()
    assert not rib.pending(), "the session is down: nothing is queued"
    rib.add(_batch(routes, api, _command(_V4[7:8], None)))
    rib.replace_restart([], [])
    messages = [message for batch in rib.take() for message in batch.messages(_negotiated())]
    assert _said(messages).keys() == {*_V4[:5], *_V4[8:], *_V6} and len(messages) == 3


@pytest.mark.parametrize("enhanced", [False, True])
def test_a_peer_that_asks_is_told_all_again(routes: ModuleType, api: Any, enhanced: bool) -> None:
    """Few messages, between the marks of RFC 7313 where it knows them; what is queued comes after."""
    rib = _rib(routes)
    for command in (_announce(_V4), _announce(_V6)):
        rib.add(_batch(routes, api, command))
    rib.take()
    rib.resend(enhanced)
    rib.add(later := _batch(routes, api, _announce(_V4[:1], Attributes())))
    sent = list(rib.updates(True))
    kinds = [type(one).__name__ for one in sent]
    marks = ["RouteRefresh"] * 2 if enhanced else []
    assert kinds == [*marks, "UniformUpdate", "UniformUpdate", *marks]
    updates = [one for one in sent if hasattr(one, "nlris")]
    raw = [message for update in updates for message in update.messages(_negotiated())]
    said = _said([(one, routes._decoded(one, _negotiated())) for one in raw])
    assert said.keys() == {*_V4, *_V6} and rib.take() == [later]


# --- commands ---------------------------------------------------------------------------------------


def _neighbor(routes: ModuleType, address: str) -> Any:
    rib = SimpleNamespace(outgoing=_rib(routes))

    class Neighbor(dict[str, str]):
        families = staticmethod(lambda: _negotiated().families)

    made = Neighbor({"peer-address": address})
    made.rib = rib  # type: ignore[attr-defined]
    return made


def test_all_selected_neighbours_get_the_same_batch(routes: ModuleType, api: Any) -> None:
    from exabgp.configuration.core.format import formated

    neighbors = {f"n {one}": _neighbor(routes, one) for one in ("10.0.0.1", "10.0.0.2", "10.0.0.11")}
    scheduled: list[Iterator[bool]] = []
    answers: list[str] = []
    reactor: Any = SimpleNamespace(
        peers=lambda _service: list(neighbors),
        configuration=SimpleNamespace(neighbors=neighbors),
        asynchronous=SimpleNamespace(schedule=lambda _service, _line, callback: scheduled.append(callback)),
        processes=SimpleNamespace(
            answer_done=lambda _: answers.append("done"), answer_error=lambda _: answers.append("error")
        ),
    )
    told = Announcement(_RICH, "10.0.0.9")
    (line,) = commands.tell(Change(peer, prefix, told) for peer in ("10.0.0.1", "10.0.0.2") for prefix in _V4)
    for said in (line.decode(), "neighbor 10.0.0.3 announce attributes next-hop 1.1.1.1 nlri 1.0.0.0/8"):
        routes._tell(_action("announce"))(api, reactor, "agent", formated(said), False)
    for callback in scheduled:
        list(callback)
    first, second, third = (one.rib.outgoing.take() for one in neighbors.values())
    assert len(first) == 1 and first == second and third == []
    assert answers == ["done", "error"]
