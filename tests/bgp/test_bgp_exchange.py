"""What passes between us and a peer: protocol, filters, Calico's rules and communities in their order."""

from typing import Any

import pytest
from msgspec.structs import replace

from tortie.bgp.config import Advertisement, Block, Config, Local, Peer, Pool
from tortie.bgp.exchange import Offer, Reception
from tortie.bgp.filters import Filter, Operation, Rule
from tortie.bgp.policy import Policy
from tortie.bgp.route import INT_MAX, Announcement, Attributes, Path, Received, Segment, Source

pytestmark = pytest.mark.unit

_ME = "10.0.0.1"
_IBGP = Peer(address="10.0.0.2", kind="mesh", local_as=64512, peer_as=64512, local_address=_ME)
_TOR = Peer(
    address="10.0.0.9", kind="global", local_as=64512, peer_as=65009, local_address=_ME, filters=("f",)
)
_BLOCK = Path(source=Source.STATIC)
_OWN, _POOL, _OUTSIDE = "192.168.1.0/26", "192.168.2.0/26", "203.0.113.0/24"
_65009 = (Segment("as-sequence", (65009,)),)


def _policy(*peers: Peer, **rules: Any) -> Policy:
    """Rules of filter f; everything else of Config by its name."""
    options = {name: rules.pop(name) for name in ("advertisements", "pools") if name in rules}
    base = Config(
        local=Local(name="n", router_id=_ME, as_number=64512, addresses=(_ME,)),
        peers=peers or (_IBGP, _TOR),
        pools=(Pool(cidr="192.168.0.0/16"),),
        blocks=(Block(cidr=_OWN),),
        filters=(Filter(name="f", **rules),),
    )
    return Policy(replace(base, **options))


def _offered(
    prefix: str, policy: Policy, path: Path = _BLOCK, peer: Peer = _TOR, interface: str = ""
) -> Announcement | str:
    source = _IBGP if path.peer else None
    return Offer(policy, path, peer, source, interface).of(prefix)


def _received(policy: Policy, prefix: str, peer: Peer = _TOR, **attributes: Any) -> Path | str:
    received = Received(Attributes(**{"as_path": _65009} | attributes), peer.address)
    return Reception(policy, peer, "10.9.9.9", received, "eth0").of(prefix)


def _learned(policy: Policy) -> Path:
    path = _received(policy, _POOL, _IBGP, as_path=(), local_pref=INT_MAX - 1024)
    assert isinstance(path, Path)
    return path


# --- out ----------------------------------------------------------------------------------------


def test_without_a_rule_that_matches_calicos_rules_hold() -> None:
    policy = _policy(export4=(Rule(accept=False, cidr="10.0.0.0/8", operator="In"),))
    assert isinstance(_offered(_OWN, policy), Announcement)
    assert _offered(_OUTSIDE, policy) == "outside enabled pools"
    assert _offered("192.168.1.5/32", policy) == "inside own block"


def test_a_filter_comes_before_calicos_rules_both_ways() -> None:
    policy = _policy(
        export4=(
            Rule(accept=True, cidr=_OUTSIDE, operator="Equal"),
            Rule(accept=False, cidr=_OWN, operator="Equal"),
        )
    )
    assert isinstance(_offered(_OUTSIDE, policy), Announcement)
    assert _offered(_OWN, policy) == "filter f, exportV4 rule 2"


def test_what_the_protocol_forbids_no_filter_allows() -> None:
    policy = _policy(_IBGP, replace(_IBGP, address="10.0.0.3", filters=("f",)), export4=(Rule(accept=True),))
    other = policy.config.peers[1]
    assert _offered(_POOL, policy, _learned(policy), other) == "iBGP route, peer is no client"
    six = replace(other, address="fd00::3", local_address="fd00::1")
    assert _offered(_OWN, policy, peer=six) == "other family"


def test_a_filter_sees_the_path_as_it_will_go_out() -> None:
    """Own AS already there, metric as LOCAL_PREF even where that is not sent (BIRD's order)."""
    policy = _policy(export4=(Rule(accept=False, as_path=(64512,), priority=1024, peer="eBGP"),))
    assert _offered(_OWN, policy) == "filter f, exportV4 rule 1"
    moving = replace(_BLOCK, metric=512)
    assert isinstance(_offered(_OWN, policy, moving), Announcement)


def test_operations_land_left_of_the_own_as() -> None:
    rule = Rule(accept=True, operations=(Operation(prepend=(65001, 65002)), Operation(priority=512)))
    told = _offered(_OWN, _policy(export4=(rule,)))
    assert isinstance(told, Announcement)
    assert told.attributes.as_path == (Segment("as-sequence", (65001, 65002, 64512)),)
    assert told.attributes.local_pref is None, "it means nothing to another AS"
    inside = replace(_IBGP, filters=("f",))
    told = _offered(_OWN, _policy(inside, export4=(rule,)), peer=inside)
    assert isinstance(told, Announcement) and told.attributes.local_pref == INT_MAX - 512


def test_routes_of_peers_and_own_ones_apart() -> None:
    policy = _policy(export4=(Rule(accept=False, remote=True, interface="eth*"),))
    assert isinstance(_offered(_OWN, policy), Announcement)
    learned = _learned(policy)
    assert _offered(_POOL, policy, learned, interface="eth0") == "filter f, exportV4 rule 1"
    assert isinstance(_offered(_POOL, policy, learned, interface="bond0"), Announcement)


def test_communities_of_every_advertisement_that_holds_the_prefix() -> None:
    marks = (
        Advertisement(cidr="192.168.0.0/16", communities=((65000, 1),), large_communities=((1, 2, 3),)),
        Advertisement(cidr=_OWN, communities=((65000, 0),)),
        Advertisement(cidr="10.0.0.0/8", communities=((65000, 9),)),
    )
    policy = _policy(advertisements=marks)
    told = _offered(_OWN, policy)
    assert isinstance(told, Announcement)
    assert told.attributes.communities == ((65000, 0), (65000, 1))
    assert told.attributes.large_communities == ((1, 2, 3),)


def test_what_a_filter_accepts_gets_no_communities() -> None:
    marks = (Advertisement(cidr=_OWN, communities=((65000, 1),)),)
    told = _offered(_OWN, _policy(advertisements=marks, export4=(Rule(accept=True),)))
    assert isinstance(told, Announcement) and not told.attributes.communities


def test_a_hidden_pool_is_hidden_unless_a_filter_says_otherwise() -> None:
    hidden = (Pool(cidr="192.168.0.0/16", exported=False),)
    assert _offered(_OWN, _policy(pools=hidden)) == "disableBGPExport"
    assert isinstance(_offered(_OWN, _policy(pools=hidden, export4=(Rule(accept=True),))), Announcement)


# --- in -----------------------------------------------------------------------------------------


def test_import_rules() -> None:
    policy = _policy(
        import4=(
            Rule(accept=True, cidr="10.1.0.0/16", operator="In", operations=(Operation(prepend=(7,)),)),
            Rule(accept=False, cidr="10.0.0.0/8", operator="In"),
        )
    )
    changed = _received(policy, "10.1.2.0/24")
    assert isinstance(changed, Path)
    assert changed.attributes.as_path == (Segment("as-sequence", (7, 65009)),)
    assert _received(policy, "10.2.0.0/16") == "filter f, importV4 rule 2"
    assert isinstance(_received(policy, "11.0.0.0/8"), Path), "no rule matches: it passes"


def test_checks_that_protect_us_come_first() -> None:
    policy = _policy(import4=(Rule(accept=True),))
    looped = (Segment("as-sequence", (65009, 64512)),)
    assert _received(policy, _POOL, as_path=looped) == "own AS 64512 in AS path"


def test_a_priority_that_is_set_counts_even_from_another_as() -> None:
    rule = Rule(accept=True, operations=(Operation(priority=512),))
    path = _received(_policy(import4=(rule,)), _POOL, local_pref=5)
    assert isinstance(path, Path)
    assert (path.attributes.local_pref, path.source) == (INT_MAX - 512, Source.BGP_ELEVATED)
    rule = Rule(accept=True, operations=(Operation(priority=2048),))
    path = _received(_policy(import4=(rule,)), _POOL)
    assert isinstance(path, Path) and path.source is Source.BGP


def test_a_filter_on_import_sees_the_usual_local_preference_of_another_as() -> None:
    policy = _policy(import4=(Rule(accept=False, priority=INT_MAX - 100),))
    assert isinstance(_received(policy, _POOL, local_pref=5), str)


def test_the_same_answer_is_the_same_object() -> None:
    """The agent groups prefixes by it."""
    rule = Rule(accept=True, cidr="10.0.0.0/8", operator="In", operations=(Operation(prepend=(7,)),))
    policy = _policy(import4=(rule,), export4=(rule,))
    received = Reception(policy, _TOR, "10.9.9.9", Received(Attributes(as_path=_65009), "10.0.0.9"), "")
    assert received.of("10.1.0.0/16") is received.of("10.2.0.0/16") is not received.of("11.0.0.0/8")
    offer = Offer(policy, _BLOCK, _TOR, None, "")
    assert offer.of("10.1.0.0/16") is offer.of("10.2.0.0/16")
