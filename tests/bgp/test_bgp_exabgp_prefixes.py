"""Prefixes through ExaBGP, from an UPDATE to the helper: the same as by its own way, and all at once.

Its own decoder is the model.
"""

import json
from collections.abc import Iterator
from socket import AF_INET, AF_INET6
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bgp import exabgp_settings
from tortie.bgp import events
from tortie.bgp.prefix import canonical, network
from tortie.bgp.route import Received

pytestmark = pytest.mark.unit

_V4 = ["10.0.0.0/8", "0.0.0.0/0", "172.16.4.0/22", "192.168.1.1/32", "192.168.1.64/26"]
_V6 = ["fd00::/8", "::/0", "fd00:168::4:0/110", "fd00::1/128"]


@pytest.fixture(scope="module")
def prefixes() -> Iterator[ModuleType]:
    """The module, which imports ExaBGP: with the settings that it has in production."""
    with exabgp_settings.production():
        from tortie.bgp import exabgp_prefixes

        yield exabgp_prefixes


def _model(data: bytes, family: int) -> tuple[list[str], bool]:
    """What ExaBGP itself reads, and whether it takes all of it."""
    from exabgp.bgp.message import Action
    from exabgp.bgp.message.notification import Notify
    from exabgp.bgp.message.update.nlri import INET
    from exabgp.protocol.family import AFI, SAFI

    afi = AFI.ipv4 if family == AF_INET else AFI.ipv6
    found: list[str] = []
    while data:
        try:
            one, data = INET.unpack_nlri(afi, SAFI.unicast, data, Action.ANNOUNCE, False)
        except Notify:
            return found, False
        found.append(canonical(one.cidr.prefix()))
    return found, True


@given(st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=5))), st.binary(max_size=3))
def test_ipv4_as_exabgp_reads_it(prefixes: ModuleType, some: list[tuple[int, bytes]], rest: bytes) -> None:
    _compare(prefixes, some, rest, AF_INET, 4)


@given(st.lists(st.tuples(st.integers(0, 140), st.binary(max_size=17))), st.binary(max_size=3))
def test_ipv6_as_exabgp_reads_it(prefixes: ModuleType, some: list[tuple[int, bytes]], rest: bytes) -> None:
    _compare(prefixes, some, rest, AF_INET6, 16)


def _compare(
    prefixes: ModuleType, some: list[tuple[int, bytes]], rest: bytes, family: int, size: int
) -> None:
    """Mostly of the right length, host bits and all, now and then not."""
    data = b"".join(
        bytes([length]) + (address.ljust(size, b"\xff")[: (length + 7) // 8] if length else b"")
        for length, address in some
    )
    texts, bad = prefixes.read(data + rest, family)
    assert (texts, bad is None) == _model(data + rest, family)


@pytest.mark.parametrize("data", [b"\x21\xc0\xa8\xc8\0\0", b"\x1a\xc0\xa8", b"\x08\x0a\x20\xc0", b"\x20"])
def test_what_is_malformed_ends_the_session(prefixes: ModuleType, data: bytes) -> None:
    from exabgp.bgp.message import Action
    from exabgp.bgp.message.notification import Notify
    from exabgp.protocol.family import AFI, SAFI

    with pytest.raises(Notify) as caught:
        prefixes.Prefixes.unpack_nlri(AFI.ipv4, SAFI.unicast, data, Action.ANNOUNCE, False)
    assert (caught.value.code, caught.value.subcode) == (3, 10)  # RFC 4271, 6.3: Invalid Network Field


# --- what becomes of it ---------------------------------------------------------------------------


def _field(prefixes: ModuleType, texts: list[str], withdrawn: bool = False) -> Any:
    """As ExaBGP's decoder has it from its registry."""
    from exabgp.bgp.message import Action
    from exabgp.protocol.family import AFI, SAFI
    from exabgp.protocol.ip import IP

    v6 = ":" in texts[0]
    data = b"".join(map(_packed, texts))
    action = Action.WITHDRAW if withdrawn else Action.ANNOUNCE
    made, left = prefixes.Prefixes.unpack_nlri(
        AFI.ipv6 if v6 else AFI.ipv4, SAFI.unicast, data, action, False
    )
    assert not left
    if not withdrawn:
        made.nexthop = IP.create("fd09::9" if v6 else "10.9.0.9")
    return made


def _packed(text: str) -> bytes:
    """RFC 4271, 4.3."""
    net = network(text)
    return bytes([net.length]) + net.value.to_bytes(net.bits // 8)[: (net.length + 7) // 8]


def _attributes() -> Any:
    from exabgp.bgp.message.update.attribute import Attributes
    from exabgp.bgp.message.update.attribute.origin import Origin

    made = Attributes()
    made.add(Origin(Origin.EGP))
    return made


def _line(fields: list[Any]) -> bytes:
    from exabgp.bgp.message import Update
    from exabgp.reactor.api.response import Response

    class Neighbor(dict[str, Any]):
        uid = "1"

    names = ("local-address", "peer-address", "local-as", "peer-as", "router-id")
    neighbor = Neighbor(zip(names, ("10.9.0.1", "10.9.0.9", 1, 2, None), strict=True))
    update = Update(fields, _attributes())
    return str(Response.JSON("5.0.15").update(neighbor, "receive", update, None, b"", b"")).encode()


@pytest.mark.parametrize("texts", [_V4, _V6])
def test_the_helper_understands_it(prefixes: ModuleType, texts: list[str]) -> None:
    gone, new = texts[:2], texts[2:]
    found = events.parse(_line([_field(prefixes, gone, withdrawn=True), _field(prefixes, new)]))
    assert isinstance(found, events.Update) and not found.sent
    assert list(found.told) == texts
    heard = {path for path in found.told.values() if path is not None}
    assert {prefix for prefix, path in found.told.items() if path is None} == set(gone)
    (path,) = heard
    assert isinstance(path, Received) and path.next_hop == ("fd09::9" if ":" in texts[0] else "10.9.0.9")


def _remember(prefixes: ModuleType, limit: int) -> Any:
    from exabgp.protocol.family import AFI, SAFI

    made = prefixes.LimitedRIB(True, {(AFI.ipv4, SAFI.unicast), (AFI.ipv6, SAFI.unicast)})
    made.limit = limit
    return made


def _hear(rib: Any, field: Any) -> None:
    from exabgp.rib.change import Change

    rib.update_cache(Change(field, _attributes()))


def _listed(rib: Any) -> dict[str, Received]:
    """As a helper that starts anew has it."""
    found = {}
    for change in rib.cached_changes():
        line = json.dumps({"peer": {"address": "10.9.0.9"}, "route": change.as_dict()})
        event = events.parse(line.encode())
        assert isinstance(event, events.Listed) and event.prefix == str(change.nlri)
        found[event.prefix] = event.path
    return found


@pytest.mark.parametrize("texts", [_V4, _V6])
def test_what_was_heard_is_remembered(prefixes: ModuleType, texts: list[str]) -> None:
    rib = _remember(prefixes, 0)
    _hear(rib, _field(prefixes, texts))
    assert set(_listed(rib)) == set(texts)
    (path,) = set(_listed(rib).values())
    told = events.parse(_line([_field(prefixes, texts)]))
    assert isinstance(told, events.Update) and path == told.told[texts[0]]
    _hear(rib, _field(prefixes, [*texts[:2], texts[0]], withdrawn=True))
    assert set(_listed(rib)) == set(texts[2:])
    rib.clear()
    assert not _listed(rib)


def test_no_more_is_remembered_than_the_limit(prefixes: ModuleType) -> None:
    rib = _remember(prefixes, 4)
    _hear(rib, _field(prefixes, _V4))
    assert list(_listed(rib)) == _V4[:4]
    _hear(rib, _field(prefixes, _V4[::-1]))
    assert set(_listed(rib)) == set(_V4[:4]), "what has its place may change"
    _hear(rib, _field(prefixes, _V4[:1], withdrawn=True))
    _hear(rib, _field(prefixes, _V4))
    assert len(_listed(rib)) == 4


def test_the_end_of_rib_is_no_prefix(prefixes: ModuleType) -> None:
    """ExaBGP has it remembered as one."""
    from exabgp.bgp.message import EOR
    from exabgp.protocol.family import AFI, SAFI

    rib = _remember(prefixes, 0)
    for nlri in EOR(AFI.ipv4, SAFI.unicast).nlris:
        _hear(rib, nlri)
    assert not _listed(rib)
