"""The rules of the queue: who is where, who is stale, what a reload changes, how long it will take."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from neops_remote_lab.roster import HoldHistory, Roster
from neops_remote_lab.store import Session

JOINED = datetime(2026, 1, 1, tzinfo=UTC)


def waiting(number: int, name: str = "") -> Session:
    return Session(number, name or f"s{number}", "waiting", None, None, JOINED, None)


def active(number: int) -> Session:
    return replace(waiting(number), state="active", activated_at=JOINED)


def queue(*sessions: Session, now: float = 0) -> Roster:
    roster = Roster()
    for session in sessions:
        roster.put(session, now)
    return roster


def order(roster: Roster) -> list[str]:
    return [session.session_id for session in roster]


def positions(roster: Roster) -> dict[str, int]:
    return {session.session_id: roster.position(session) for session in roster}


def stale(roster: Roster, now: float, waiting_timeout: float = 10, active_timeout: float = 10) -> list[str]:
    return roster.stale(now, waiting_timeout=waiting_timeout, active_timeout=active_timeout)


# Order


def test_the_active_session_is_at_0_and_those_who_wait_follow_in_the_order_they_joined() -> None:
    roster = queue(active(3), waiting(7), waiting(8), waiting(12))
    assert positions(roster) == {"s3": 0, "s7": 1, "s8": 2, "s12": 3}
    assert roster.active == active(3)
    assert (len(roster), roster.waiting) == (4, 3)


def test_the_number_decides_and_not_the_order_in_which_sessions_become_known() -> None:
    assert order(queue(waiting(12), waiting(7), active(3), waiting(8))) == ["s3", "s7", "s8", "s12"]


def test_who_leaves_from_the_middle_moves_up_only_those_behind() -> None:
    roster = queue(active(1), waiting(2), waiting(3), waiting(4), waiting(5))
    roster.drop("s3")
    assert positions(roster) == {"s1": 0, "s2": 1, "s4": 2, "s5": 3}


def test_a_promoted_session_leaves_the_waiting_line() -> None:
    roster = queue(active(1), waiting(2), waiting(3))
    roster.drop("s1")
    assert roster.active is None
    roster.put(active(2), 5)
    assert positions(roster) == {"s2": 0, "s3": 1}
    assert roster.waiting == 1


def test_dropping_somebody_unknown_changes_nothing() -> None:
    roster = queue(active(1), waiting(2))
    roster.drop("nobody")
    assert order(roster) == ["s1", "s2"]
    assert "nobody" not in roster
    assert roster.get("nobody") is None


# Silence


def test_a_waiting_session_is_stale_once_its_timeout_is_over_and_not_before() -> None:
    roster = queue(active(1), waiting(2), now=0)
    roster.renew("s1", 10)
    assert stale(roster, 10.0) == []
    assert stale(roster, 10.1) == ["s2"]


def test_a_call_starts_the_timeout_anew() -> None:
    roster = queue(active(1), waiting(2), waiting(3), now=0)
    for session_id in ("s1", "s2"):
        roster.renew(session_id, 8)
    assert stale(roster, 12) == ["s3"]
    assert stale(roster, 18.5, active_timeout=100) == ["s3", "s2"]


def test_waiting_and_active_sessions_have_time_outs_of_their_own() -> None:
    roster = queue(active(1), waiting(2), now=0)
    assert stale(roster, 30, waiting_timeout=10, active_timeout=100) == ["s2"]
    assert stale(roster, 30, waiting_timeout=100, active_timeout=10) == ["s1"]


def test_a_session_with_an_open_call_is_never_stale() -> None:
    roster = queue(active(1), waiting(2), waiting(3), now=0)
    roster.call_opened("s1")
    roster.call_opened("s2")
    assert stale(roster, 1000) == ["s3"]
    assert roster.unseen_for("s2", 1000) == 0


def test_the_end_of_the_last_open_call_renews_the_session() -> None:
    roster = queue(waiting(1), now=0)
    roster.call_opened("s1")
    roster.call_opened("s1")
    roster.call_closed("s1", 50)
    assert stale(roster, 1000) == []
    roster.call_closed("s1", 1000)
    assert stale(roster, 1010) == []
    assert stale(roster, 1010.1) == ["s1"]


def test_a_session_that_was_ended_during_its_call_stays_forgotten() -> None:
    roster = queue(waiting(1), now=0)
    roster.call_opened("s1")
    roster.drop("s1")
    roster.call_closed("s1", 5)
    assert "s1" not in roster
    assert stale(roster, 1000) == []


def test_an_open_call_of_the_stalest_does_not_hide_others() -> None:
    roster = queue(waiting(1), waiting(2), waiting(3), now=0)
    roster.call_opened("s1")
    assert sorted(stale(roster, 11)) == ["s2", "s3"]
    roster.call_closed("s1", 11)
    assert sorted(stale(roster, 12)) == ["s2", "s3"]


def test_an_open_call_survives_promotion() -> None:
    roster = queue(waiting(1), now=0)
    roster.call_opened("s1")
    roster.put(active(1), 1)
    assert stale(roster, 1000) == []


# Reload


def test_a_reload_without_changes_keeps_when_sessions_were_seen_and_says_nothing() -> None:
    rows = [active(1), waiting(2)]
    roster = queue(*rows, now=0)
    difference = roster.reload(rows, now=100)
    assert (difference.vanished, difference.changed) == (frozenset(), frozenset())
    assert roster.unseen_for("s2", 100) == 100


def test_a_reload_tells_who_has_vanished() -> None:
    roster = queue(active(1), waiting(2), waiting(3))
    difference = roster.reload([waiting(2), waiting(3)], now=1)
    assert difference.vanished == {"s1"}
    assert difference.changed == frozenset()
    assert roster.active is None
    assert positions(roster) == {"s2": 1, "s3": 2}


def test_a_reload_tells_whose_state_has_changed() -> None:
    roster = queue(active(1), waiting(2), waiting(3))
    difference = roster.reload([active(2), waiting(3)], now=1)
    assert (difference.vanished, difference.changed) == (frozenset({"s1"}), frozenset({"s2"}))
    assert positions(roster) == {"s2": 0, "s3": 1}


def test_two_sessions_may_swap_their_numbers() -> None:
    roster = queue(active(1), waiting(2, "ann"), waiting(3, "bob"), waiting(4))
    difference = roster.reload([active(1), waiting(3, "ann"), waiting(2, "bob"), waiting(4)], now=1)
    assert difference.changed == {"ann", "bob"}
    assert order(roster) == ["s1", "bob", "ann", "s4"]
    assert positions(roster) == {"s1": 0, "bob": 1, "ann": 2, "s4": 3}


def test_the_active_session_and_a_waiting_one_may_swap_their_states() -> None:
    roster = queue(active(1), waiting(2))
    roster.reload([waiting(1), active(2)], now=1)
    assert positions(roster) == {"s2": 0, "s1": 1}


def test_a_reload_takes_in_newcomers_and_gives_them_their_full_time() -> None:
    roster = queue(active(1), now=0)
    difference = roster.reload([active(1), waiting(2)], now=100)
    assert difference.changed == frozenset()
    assert stale(roster, 110, active_timeout=1000) == []
    assert stale(roster, 110.1, active_timeout=1000) == ["s2"]


def test_a_call_that_is_open_during_a_reload_stays_open() -> None:
    roster = queue(active(1), waiting(2))
    roster.call_opened("s2")
    roster.reload([active(2)], now=1)
    assert stale(roster, 1000) == []


# How long it will take


def test_the_hold_is_counted_from_the_promotion() -> None:
    roster = queue(active(1), now=100)
    assert roster.held_for(130) == 30
    roster.drop("s1")
    assert roster.held_for(130) == 0


def test_without_history_nobody_can_tell_how_long_it_takes() -> None:
    assert HoldHistory().eta(1, 0) is None


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
def test_the_expected_wait_follows_from_the_mean_hold(position: int, held_for: float, expected: float) -> None:
    assert HoldHistory([10, 30]).eta(position, held_for) == pytest.approx(expected)


def test_only_the_latest_holds_count() -> None:
    history = HoldHistory([1000, 1000, 10], size=2)
    history.add(20)
    assert history.eta(1, 0) == pytest.approx(15)


def test_time_in_which_nobody_could_be_heard_counts_against_nobody() -> None:
    roster = queue(active(1), waiting(2), waiting(3))
    roster.renew_all(100)
    assert stale(roster, 109) == []
    assert len(stale(roster, 111)) == 3
