"""The session cache: positions, stale sessions, reloads and estimates."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.queue.estimates import HoldHistory
from neops_remote_lab.queue.session_cache import SessionCache
from neops_remote_lab.store.rows import Session

JOINED = datetime(2026, 1, 1, tzinfo=UTC)


def waiting(number: int, name: str = "") -> Session:
    return Session(number, number, name or f"s{number}", SessionState.WAITING, None, None, JOINED, None)


def active(number: int, slot: int = 1) -> Session:
    return replace(waiting(number), state=SessionState.ACTIVE, activated_at=JOINED, host="lab-7", slot=slot)


def queue(*sessions: Session, now: float = 0) -> SessionCache:
    cache = SessionCache()
    for session in sessions:
        cache.put(session, now)
    return cache


def order(cache: SessionCache) -> list[str]:
    return [session.session_id for session in cache]


def positions(cache: SessionCache) -> dict[str, int]:
    return {session.session_id: cache.position(session) for session in cache}


def stale(cache: SessionCache, now: float, waiting_timeout: float = 10, active_timeout: float = 10) -> list[str]:
    return cache.stale(now, waiting_timeout=waiting_timeout, active_timeout=active_timeout)


# Order


def test_the_active_session_is_at_0_and_waiting_sessions_follow_in_the_order_of_their_joins() -> None:
    cache = queue(active(3), waiting(7), waiting(8), waiting(12))
    assert positions(cache) == {"s3": 0, "s7": 1, "s8": 2, "s12": 3}
    assert cache.active == [active(3)]
    assert (len(cache), cache.waiting) == (4, 3)


def test_several_active_sessions_are_in_the_order_of_their_slots_and_all_at_0() -> None:
    cache = queue(active(3, slot=2), active(5, slot=1), waiting(7), waiting(8))
    assert positions(cache) == {"s5": 0, "s3": 0, "s7": 1, "s8": 2}
    assert (len(cache), cache.waiting, cache.occupied) == (4, 2, 2)
    cache.drop("s5")
    assert positions(cache) == {"s3": 0, "s7": 1, "s8": 2}


def test_positions_follow_the_numbers_of_the_sessions() -> None:
    assert order(queue(waiting(12), waiting(7), active(3), waiting(8))) == ["s3", "s7", "s8", "s12"]


def test_only_sessions_behind_one_that_leaves_move_up() -> None:
    cache = queue(active(1), waiting(2), waiting(3), waiting(4), waiting(5))
    cache.drop("s3")
    assert positions(cache) == {"s1": 0, "s2": 1, "s4": 2, "s5": 3}


def test_a_promoted_session_is_no_longer_waiting() -> None:
    cache = queue(active(1), waiting(2), waiting(3))
    cache.drop("s1")
    assert cache.active == []
    cache.put(active(2), 5)
    assert positions(cache) == {"s2": 0, "s3": 1}
    assert cache.waiting == 1


def test_dropping_an_unknown_session_changes_nothing() -> None:
    cache = queue(active(1), waiting(2))
    cache.drop("nobody")
    assert order(cache) == ["s1", "s2"]
    assert "nobody" not in cache
    assert cache.get("nobody") is None


# Timeouts


def test_a_waiting_session_is_stale_once_its_timeout_is_over_and_not_before() -> None:
    cache = queue(active(1), waiting(2), now=0)
    cache.renew("s1", 10)
    assert stale(cache, 10.0) == []
    assert stale(cache, 10.1) == ["s2"]


def test_a_call_restarts_the_timeout() -> None:
    cache = queue(active(1), waiting(2), waiting(3), now=0)
    for session_id in ("s1", "s2"):
        cache.renew(session_id, 8)
    assert stale(cache, 12) == ["s3"]
    assert stale(cache, 18.5, active_timeout=100) == ["s3", "s2"]


def test_waiting_and_active_sessions_have_different_timeouts() -> None:
    cache = queue(active(1), waiting(2), now=0)
    assert stale(cache, 30, waiting_timeout=10, active_timeout=100) == ["s2"]
    assert stale(cache, 30, waiting_timeout=100, active_timeout=10) == ["s1"]


def test_each_active_session_has_its_own_timeout() -> None:
    cache = queue(active(1), active(2, slot=2), active(3, slot=3), now=0)
    cache.renew("s2", 8)
    assert stale(cache, 12) == ["s1", "s3"]


def test_a_session_with_an_open_call_is_never_stale() -> None:
    cache = queue(active(1), waiting(2), waiting(3), now=0)
    cache.call_opened("s1")
    cache.call_opened("s2")
    assert stale(cache, 1000) == ["s3"]
    assert cache.unseen_for("s2", 1000) == 0


def test_the_end_of_the_last_open_call_renews_the_session() -> None:
    cache = queue(waiting(1), now=0)
    cache.call_opened("s1")
    cache.call_opened("s1")
    cache.call_closed("s1", 50)
    assert stale(cache, 1000) == []
    cache.call_closed("s1", 1000)
    assert stale(cache, 1010) == []
    assert stale(cache, 1010.1) == ["s1"]


def test_the_end_of_a_call_does_not_add_an_ended_session_again() -> None:
    cache = queue(waiting(1), now=0)
    cache.call_opened("s1")
    cache.drop("s1")
    cache.call_closed("s1", 5)
    assert "s1" not in cache
    assert stale(cache, 1000) == []


def test_an_open_call_of_one_stale_session_does_not_hide_others() -> None:
    cache = queue(waiting(1), waiting(2), waiting(3), now=0)
    cache.call_opened("s1")
    assert sorted(stale(cache, 11)) == ["s2", "s3"]
    cache.call_closed("s1", 11)
    assert sorted(stale(cache, 12)) == ["s2", "s3"]


def test_an_open_call_survives_promotion() -> None:
    cache = queue(waiting(1), now=0)
    cache.call_opened("s1")
    cache.put(active(1), 1)
    assert stale(cache, 1000) == []


# Reload


def test_a_reload_without_changes_keeps_the_last_seen_times_and_reports_nothing() -> None:
    rows = [active(1), waiting(2)]
    cache = queue(*rows, now=0)
    difference = cache.reload(rows, now=100)
    assert (difference.vanished, difference.changed) == (frozenset(), frozenset())
    assert cache.unseen_for("s2", 100) == 100


def test_a_reload_reports_vanished_sessions() -> None:
    cache = queue(active(1), waiting(2), waiting(3))
    difference = cache.reload([waiting(2), waiting(3)], now=1)
    assert difference.vanished == {"s1"}
    assert difference.changed == frozenset()
    assert cache.active == []
    assert positions(cache) == {"s2": 1, "s3": 2}


def test_a_reload_reports_changed_states() -> None:
    cache = queue(active(1), waiting(2), waiting(3))
    difference = cache.reload([active(2), waiting(3)], now=1)
    assert (difference.vanished, difference.changed) == (frozenset({"s1"}), frozenset({"s2"}))
    assert positions(cache) == {"s2": 0, "s3": 1}


def test_two_sessions_may_swap_their_numbers() -> None:
    cache = queue(active(1), waiting(2, "ann"), waiting(3, "bob"), waiting(4))
    difference = cache.reload([active(1), waiting(3, "ann"), waiting(2, "bob"), waiting(4)], now=1)
    assert difference.changed == {"ann", "bob"}
    assert order(cache) == ["s1", "bob", "ann", "s4"]
    assert positions(cache) == {"s1": 0, "bob": 1, "ann": 2, "s4": 3}


def test_the_active_session_and_a_waiting_one_may_swap_their_states() -> None:
    cache = queue(active(1), waiting(2))
    cache.reload([waiting(1), active(2)], now=1)
    assert positions(cache) == {"s2": 0, "s1": 1}


def test_a_reload_adds_new_sessions_with_their_full_timeout() -> None:
    cache = queue(active(1), now=0)
    difference = cache.reload([active(1), waiting(2)], now=100)
    assert difference.changed == frozenset()
    assert stale(cache, 110, active_timeout=1000) == []
    assert stale(cache, 110.1, active_timeout=1000) == ["s2"]


def test_a_reload_of_some_sessions_does_not_change_the_others() -> None:
    cache = queue(active(1), waiting(2), waiting(3), waiting(4), now=0)
    difference = cache.reload([active(3, slot=2), waiting(9)], 100, ["s2", "s3", "s9", "nobody"])
    assert (difference.vanished, difference.changed) == (frozenset({"s2"}), frozenset({"s3"}))
    assert difference.activated == (active(3, slot=2),)
    assert positions(cache) == {"s1": 0, "s3": 0, "s4": 1, "s9": 2}
    assert cache.unseen_for("s4", 100) == 100


def test_a_call_that_is_open_during_a_reload_stays_open() -> None:
    cache = queue(active(1), waiting(2))
    cache.call_opened("s2")
    cache.reload([active(2)], now=1)
    assert stale(cache, 1000) == []


# Estimated waits


def test_the_active_time_begins_with_the_promotion() -> None:
    cache = queue(active(1), now=100)
    assert cache.held_for(130) == {"s1": 30}
    cache.drop("s1")
    assert cache.held_for(130) == {}


def test_without_history_there_is_no_estimate() -> None:
    assert HoldHistory().eta(1, []) is None


@pytest.mark.parametrize(
    ("position", "held_for", "expected"),
    [
        pytest.param(0, 5, 0, id="the active session waits for nothing"),
        pytest.param(1, 0, 20, id="the next waits for one whole hold"),
        pytest.param(1, 5, 15, id="or for what is left of it"),
        pytest.param(1, 500, 0, id="a hold that is overdue may end at any time"),
        pytest.param(3, 5, 55, id="everybody in between holds as long as the mean"),
    ],
)
def test_the_estimated_wait_follows_from_the_mean_active_time(position: int, held_for: float, expected: float) -> None:
    assert HoldHistory([10, 30]).eta(position, [held_for]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        pytest.param(1, 0, id="a slot is free"),
        pytest.param(2, 5, id="the longest hold ends first"),
        pytest.param(3, 20, id="the shortest hold ends last"),
        pytest.param(4, 20, id="the free slot is used for one hold"),
        pytest.param(5, 25, id="and so on in turns"),
    ],
)
def test_the_estimated_wait_uses_all_slots(position: int, expected: float) -> None:
    assert HoldHistory([10, 30]).eta(position, [0, 15], slots=3) == pytest.approx(expected)


def test_only_the_latest_active_times_are_used() -> None:
    history = HoldHistory([1000, 1000, 10], size=2)
    history.add(20)
    assert history.eta(1, [0]) == pytest.approx(15)


def test_time_in_which_the_server_was_blocked_does_not_count() -> None:
    cache = queue(active(1), waiting(2), waiting(3))
    cache.renew_all(100)
    assert stale(cache, 109) == []
    assert len(stale(cache, 111)) == 3
