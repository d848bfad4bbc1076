"""How long the paths of a lost session are kept, and what start-up waits for."""

import pytest

from tortie.bgp.graceful import Capability, Retention, is_restart
from tortie.bgp.startup import Startup

pytestmark = pytest.mark.unit

_LOST = "closing connection"
_ABLE = Capability(90, families={4: True})


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        (_LOST, True),
        ("", True),
        ("graceful restarted negotiated, closing without sending any notification", True),
        ("notification sent (4,0)", False),
        ("notification received (6,2)", False),
        ("stop, message [removed]", False),
    ],
)
def test_only_a_broken_connection_may_be_a_restart(reason: str, kept: bool) -> None:
    assert is_restart(reason) == kept
    assert Retention(_ABLE).lost(reason, 4, 0.0) == kept


@pytest.mark.parametrize(
    "capability", [None, Capability(90, families={6: True}), Capability(0, families={4: True})]
)
def test_nothing_is_kept_without_the_capability(capability: Capability | None) -> None:
    assert not Retention(capability).lost(_LOST, 4, 0.0)


def test_a_restart_that_takes_too_long() -> None:
    retention = Retention(_ABLE)
    assert retention.lost(_LOST, 4, 100.0)
    assert not retention.expired(189.0) and retention.expired(190.0)


def test_a_restart_in_time_is_over_with_end_of_rib() -> None:
    retention = Retention(_ABLE)
    retention.lost(_LOST, 4, 100.0)
    assert retention.back(4, 150.0)
    assert not retention.expired(300.0)
    retention.confirmed()
    assert not retention.expired(10_000.0)


@pytest.mark.parametrize("capability", [None, Capability(90, families={4: False}), Capability(90)])
def test_forwarding_state_that_was_lost(capability: Capability | None) -> None:
    retention = Retention(_ABLE)
    retention.lost(_LOST, 4, 100.0)
    retention.capability = capability
    assert not retention.back(4, 101.0)


def test_two_restarts_in_a_row_keep_what_is_left_but_not_for_ever() -> None:
    retention = Retention(_ABLE)
    now = 0.0
    for _ in range(10):
        assert retention.lost(_LOST, 4, now)
        now += 30
        if not retention.back(4, now):
            break
        now += 10
    assert retention.expired(400.0)


def test_a_first_session_has_nothing_to_keep() -> None:
    assert Retention(_ABLE).back(4, 0.0) and Retention(None).back(4, 0.0)


# --- our own start ------------------------------------------------------------------------------


def test_start_up_ends_when_all_were_heard() -> None:
    startup = Startup(["a", "b"], 90.0)
    startup.heard("a")
    assert not startup.check(1.0)
    startup.heard("b")
    assert startup.check(2.0) and not startup.check(3.0), "true once"


def test_start_up_ends_in_time() -> None:
    startup = Startup(["a"], 90.0)
    assert not startup.check(89.0) and startup.check(90.0)


def test_start_up_without_peers_is_short() -> None:
    assert Startup([], 90.0).check(0.0)


def test_a_session_that_was_found_need_not_say_anything() -> None:
    startup = Startup(["a"], 90.0)
    startup.wait_until("a", 5.0)
    startup.wait_until("a", 60.0)
    startup.wait_until("stranger", 1.0)
    assert not startup.check(4.0) and startup.check(5.0)


def test_removed_peers_are_not_waited_for() -> None:
    startup = Startup(["a", "b"], 90.0)
    startup.forget_others(["b", "c"])
    startup.heard("b")
    assert startup.check(0.0)


def test_end_of_rib_does_not_wait_for_a_peer_that_waits_for_ours() -> None:
    startup = Startup(["a", "b"], 90.0)
    assert not startup.may_end_rib(0.0)
    startup.restarting("a")
    startup.heard("b")
    assert startup.may_end_rib(0.0)
    assert not startup.check(0.0), "the kernel's routes wait for it all the same"
    assert Startup(["a"], 90.0).may_end_rib(90.0)
