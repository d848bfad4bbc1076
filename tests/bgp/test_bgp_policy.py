"""Import checks and export rules, case by case from the reference."""

from typing import Any

import pytest
from msgspec.structs import replace

from tortie.bgp.config import Block, Config, Local, Peer, Pool
from tortie.bgp.policy import Policy
from tortie.bgp.prefix import network
from tortie.bgp.route import (
    NO_ADVERTISE,
    NO_EXPORT,
    Announcement,
    Attributes,
    Origin,
    Path,
    Received,
    Segment,
    Source,
)

pytestmark = pytest.mark.unit

_ME = "10.0.0.1"
_IBGP = Peer(address="10.0.0.2", kind="mesh", local_as=64512, peer_as=64512, local_address=_ME)
_IBGP2 = replace(_IBGP, address="10.0.0.3")
_EBGP = Peer(address="10.0.0.9", kind="global", local_as=64512, peer_as=65009, local_address=_ME)
_V6 = Peer(address="fd00::2", kind="mesh", local_as=64512, peer_as=64512, local_address="fd00::1")
_CLIENT = replace(_IBGP, address="10.0.0.4", client=True)


def _policy(cluster_id: str = "", **changes: Any) -> Policy:
    base = Config(
        local=Local(
            name="n", router_id=_ME, as_number=64512, addresses=(_ME, "fd00::1"), cluster_id=cluster_id
        ),
        peers=(_IBGP, _IBGP2, _EBGP),
        pools=(
            Pool(cidr="192.168.0.0/16"),
            Pool(cidr="10.77.0.0/16", exported=False),
            Pool(cidr="10.88.0.0/16", enabled=False),
        ),
        blocks=(Block(cidr="192.168.1.0/26"), Block(cidr="192.168.9.0/26", announced=False)),
    )
    return Policy(replace(base, **changes))


def _sequence(*numbers: int) -> tuple[Segment, ...]:
    return (Segment("as-sequence", numbers),)


# --- import -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "attributes", "next_hop", "reason"),
    [
        (_IBGP, Attributes(), "10.0.0.2", ""),
        (_IBGP, Attributes(origin=None), "10.0.0.2", "mandatory attribute missing"),
        (_IBGP, Attributes(), "no-nexthop", "mandatory attribute missing"),
        (_EBGP, Attributes(), "10.0.0.9", "empty AS path from another AS"),
        (_EBGP, Attributes(as_path=_sequence(65009)), "10.0.0.9", ""),
        (_EBGP, Attributes(as_path=_sequence(65009, 64512)), "10.0.0.9", "own AS 64512 in AS path"),
        (_IBGP, Attributes(as_path=(Segment("as-set", (1, 64512)),)), "10.0.0.2", "own AS 64512 in AS path"),
        (_IBGP, Attributes(), _ME, "own address as next hop"),
        (_IBGP, Attributes(originator_id=_ME), "10.0.0.2", "own route reflected"),
        (_IBGP, Attributes(cluster_list=("1.1.1.1",)), "10.0.0.2", "own cluster in cluster list"),
    ],
)
def test_import_checks(peer: Peer, attributes: Attributes, next_hop: str, reason: str) -> None:
    found = _policy("1.1.1.1").accept(peer, "10.9.9.9", Received(attributes, next_hop))
    assert (found if isinstance(found, str) else "") == reason


def test_own_as_may_be_allowed_so_many_times() -> None:
    twice = Received(Attributes(as_path=_sequence(65009, 64512, 64512)), "10.0.0.9")
    assert isinstance(_policy().accept(replace(_EBGP, allowed_own_as=1), "10.9.9.9", twice), str)
    assert isinstance(_policy().accept(replace(_EBGP, allowed_own_as=2), "10.9.9.9", twice), Path)


@pytest.mark.parametrize(
    ("peer", "given", "preference", "source"),
    [
        (_IBGP, None, 100, Source.BGP),
        (_IBGP, 2147482623, 2147482623, Source.BGP),  # metric 1024: an ordinary Calico route
        (_IBGP, 2147483135, 2147483135, Source.BGP_ELEVATED),  # metric 512: a pod on the move
        (_EBGP, 2147483135, 100, Source.BGP),  # means nothing from another AS
    ],
)
def test_local_preference_coming_in(peer: Peer, given: int | None, preference: int, source: Source) -> None:
    attributes = Attributes(as_path=_sequence(65009), local_pref=given)
    path = _policy().accept(peer, "10.9.9.9", Received(attributes, "10.0.0.9"))
    assert isinstance(path, Path)
    assert (path.attributes.local_pref, path.source, path.router_id) == (preference, source, "10.9.9.9")


# --- export -------------------------------------------------------------------------------------

_BLOCK = Path(source=Source.STATIC)


def _learned(peer: Peer, **attributes: Any) -> Path:
    received = Received(
        Attributes(**{"as_path": _sequence(65009) if peer.ebgp else ()} | attributes), peer.address
    )
    path = _policy().accept(peer, "10.9.9.9", received)
    assert isinstance(path, Path)
    return path


def test_an_own_block_to_a_node() -> None:
    told = _policy().announce(_BLOCK, _IBGP, None)
    assert told == Announcement(Attributes(local_pref=2147482623), _ME)


def test_an_own_block_to_another_as() -> None:
    told = _policy().announce(_BLOCK, _EBGP, None)
    assert told == Announcement(Attributes(as_path=_sequence(64512)), _ME)


def test_next_hops() -> None:
    foreign = replace(_learned(_EBGP), next_hop="10.5.5.5")
    policy = _policy()

    def hop(peer: Peer, path: Path = foreign, source: Peer = _EBGP) -> str:
        told = policy.announce(path, peer, source)
        assert isinstance(told, Announcement)
        return told.next_hop

    assert hop(_IBGP) == "10.5.5.5"
    assert hop(replace(_IBGP, next_hop="self")) == _ME
    internal = _learned(_IBGP)
    assert hop(_EBGP, internal, _IBGP) == _ME
    assert hop(replace(_EBGP, next_hop="keep"), internal, _IBGP) == "10.0.0.2"
    assert hop(replace(_IBGP, local_address="", next_hop="self")) == _ME


def test_no_address_no_announcement() -> None:
    alone = _policy(local=Local(name="n", router_id=_ME, as_number=64512, addresses=("fd00::1",)))
    assert alone.announce(_BLOCK, replace(_IBGP, local_address=""), None) == "no own address as next hop"


def test_attributes_to_another_as() -> None:
    path = _learned(
        _IBGP,
        med=7,
        local_pref=200,
        originator_id="1.2.3.4",
        cluster_list=("5.6.7.8",),
        communities=((1, 2),),
    )
    told = _policy().announce(path, _EBGP, _IBGP)
    assert isinstance(told, Announcement)
    assert told.attributes == Attributes(as_path=_sequence(64512), med=0, communities=((1, 2),))
    via_set = _learned(_EBGP, as_path=(Segment("as-set", (1, 2)),))
    told = _policy().announce(via_set, replace(_EBGP, address="10.0.0.8", peer_as=65008), _EBGP)
    assert isinstance(told, Announcement)
    assert told.attributes.as_path == (Segment("as-sequence", (64512,)), Segment("as-set", (1, 2)))


@pytest.mark.parametrize(
    ("source", "target", "passes"),
    [
        (_IBGP, _IBGP2, False),
        (_IBGP, _EBGP, True),
        (_EBGP, _IBGP, True),
        (_EBGP, replace(_EBGP, address="10.0.0.8"), True),
        (_IBGP, _CLIENT, True),
        (_CLIENT, _IBGP, True),
        (_CLIENT, replace(_CLIENT, address="10.0.0.5"), True),
        (_EBGP, _EBGP, False),
        (replace(_IBGP, local_as=65000, peer_as=65000), _IBGP2, True),  # another local AS: no reflection rule
    ],
)
def test_who_hears_whom(source: Peer, target: Peer, passes: bool) -> None:
    told = _policy("1.1.1.1").announce(_learned(source), target, source)
    assert isinstance(told, Announcement) == passes


def test_reflection_says_where_a_route_was() -> None:
    told = _policy("1.1.1.1").announce(_learned(_CLIENT, cluster_list=("2.2.2.2",)), _IBGP, _CLIENT)
    assert isinstance(told, Announcement)
    assert told.attributes.originator_id == "10.9.9.9"
    assert told.attributes.cluster_list == ("1.1.1.1", "2.2.2.2")
    assert told.next_hop == _CLIENT.address
    again = _policy("1.1.1.1").announce(_learned(_IBGP, originator_id="3.3.3.3"), _CLIENT, _IBGP)
    assert isinstance(again, Announcement) and again.attributes.originator_id == "3.3.3.3"


@pytest.mark.parametrize(
    ("community", "to_ibgp", "to_ebgp"), [(NO_ADVERTISE, False, False), (NO_EXPORT, True, False)]
)
def test_well_known_communities(community: tuple[int, int], to_ibgp: bool, to_ebgp: bool) -> None:
    path = _learned(_EBGP, communities=(community,))
    other = replace(_EBGP, address="10.0.0.8", peer_as=65008)
    assert isinstance(_policy().announce(path, _IBGP, _EBGP), Announcement) == to_ibgp
    assert isinstance(_policy().announce(path, other, _EBGP), Announcement) == to_ebgp


def _over(interface: str) -> Path:
    return Path(source=Source.KERNEL, interface=interface)


@pytest.mark.parametrize(
    ("prefix", "path", "peer", "reason"),
    [
        ("192.168.1.0/26", _BLOCK, _IBGP, ""),
        ("192.168.9.0/26", _BLOCK, _IBGP, "block is being released"),
        ("192.168.1.5/32", Path(source=Source.WORKLOAD), _IBGP, "inside own block"),
        ("192.168.1.5/32", Path(source=Source.WORKLOAD, metric=512), _IBGP, ""),  # a pod on the move
        ("192.168.2.5/32", Path(source=Source.WORKLOAD), _IBGP, ""),  # borrowed
        ("192.168.0.0/15", _BLOCK, _IBGP, "outside enabled pools"),
        ("203.0.113.0/24", _learned(_EBGP), _IBGP, "outside enabled pools"),
        ("10.77.1.0/26", _BLOCK, _EBGP, "disableBGPExport"),
        ("10.88.1.0/26", _learned(_IBGP), _EBGP, "outside enabled pools"),
        (
            "192.168.2.0/26",
            _over("vxlan.calico"),
            _IBGP,
            "felix's route over vxlan.calico",
        ),
        ("192.168.2.0/26", _over("vxlan.calico"), _EBGP, ""),
        (
            "192.168.2.0/26",
            _over("wireguard.cali"),
            _IBGP,
            "felix's route over wireguard.cali",
        ),
        ("192.168.2.0/26", _over("bpfin.cali"), _EBGP, "route over bpfin.cali"),
        ("192.168.2.0/26", _over("tunl0"), _IBGP, ""),
        ("192.168.2.5/32", Path(source=Source.WORKLOAD, interface="cali12345"), _IBGP, ""),
    ],
)
def test_the_export_filter(prefix: str, path: Path, peer: Peer, reason: str) -> None:
    assert _policy().withheld(network(prefix), path, peer) == reason


def test_tunnel_routes_of_felix_stay_inside() -> None:
    tunnel = _over("tunl0")
    assert _policy(tunnel_routes_exported=False).withheld(network("192.168.2.0/26"), tunnel, _IBGP) != ""
    assert _policy(tunnel_routes_exported=False).withheld(network("192.168.2.0/26"), tunnel, _EBGP) == ""


def test_who_must_wait_for_the_others() -> None:
    assert not _policy(peers=(_IBGP, _IBGP2)).takes_learned(_IBGP)
    assert _policy(peers=(_IBGP, _EBGP)).takes_learned(_IBGP)
    assert not _policy(peers=(_EBGP,)).takes_learned(_EBGP)


def test_origin_passes_unchanged() -> None:
    told = _policy().announce(_learned(_EBGP, origin=Origin.INCOMPLETE), _IBGP, _EBGP)
    assert isinstance(told, Announcement) and told.attributes.origin is Origin.INCOMPLETE


def test_what_a_workload_announces_leads_to_its_node() -> None:
    """Other nodes know no way to the workload but by its node."""
    workload = replace(_EBGP, kind="workload", address="192.168.1.7")
    path = Path(source=Source.BGP, next_hop="192.168.1.7", peer=workload.address, ebgp=True)
    told = _policy().announce(path, _IBGP, workload)
    assert isinstance(told, Announcement) and told.next_hop == _ME
