"""Every statement of docs/sql.md, run as an operator runs it while a server is working."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.chaos.shell import SQL_TAKES_EFFECT, ask, fake, in_background, is_active, lab, queue, refused, sql
from tests.fakes import topology_text, wait_until
from tests.postgresql import dumped_and_restored
from tests.server import LabServer, running_server
from tests.stores import NewDatabase, sqlite_url

COOKBOOK = Path(__file__).parents[2] / "docs" / "sql.md"
SESSION, CLIENT = "1a2b3c4d", "ann@laptop"
"""The client in the examples of the page."""
TOPOLOGY = topology_text(nodes=2)


def recipes() -> dict[str, list[str]]:
    """The statements of the page, by their heading."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", COOKBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading = section.partition("\n")[0]
        found[heading] = re.findall(r"^```sql\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return {heading: statements for heading, statements in found.items() if statements}


RECIPES = recipes()


def recipe(heading: str, number: int = 0, session_id: str = "") -> str:
    """One statement, with the session and the client of the test instead of those of the page."""
    statement = RECIPES[heading][number]
    return statement.replace(SESSION, session_id[: len(SESSION)]) if session_id else statement


@pytest.fixture(scope="module")
def long_lived(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    directory = tmp_path_factory.mktemp("server")
    with new_database(directory) as database, running_server(directory, database=database, sql_poll="0.5") as server:
        yield server


@pytest.fixture
def server(long_lived: LabServer) -> Iterator[LabServer]:
    """A server with the default `--sql-poll` and an empty queue, before and after a test."""
    yield long_lived
    sql(long_lived.database_url, "UPDATE lab_host SET quarantine_reason = NULL")
    sql(long_lived.database_url, "UPDATE session SET state = 'ended' WHERE state <> 'ended'")
    wait_until(lambda: queue(long_lived)["length"] == 0 and long_lived.is_clean(), 20)


def takes_effect(condition: object) -> None:
    wait_until(condition, SQL_TAKES_EFFECT)  # type: ignore[arg-type]


def test_views_show_waiting_sessions_and_held_labs(server: LabServer) -> None:
    holder = server.join(client="bob", purpose="nightly")
    waiting = [server.join(client=CLIENT), server.join()]
    assert server.acquire(holder, TOPOLOGY).status_code == 200
    rows = [sql(server.database_url, recipe("Waiting and active sessions", number)) for number in range(5)]
    assert [(row[0], row[1], row[2]) for row in rows[0]] == [
        (1, waiting[0][:8], CLIENT),
        (2, waiting[1][:8], None),
    ]
    assert [row[:3] for row in rows[1]] == [(holder[:8], "bob", "nightly")]
    assert [(row[0], row[1], row[3], row[5], row[6]) for row in rows[2]] == [
        ("topology.yml", "running", holder[:8], 1, 2)
    ]
    assert [row[:3] for row in rows[3]] == [("topology.yml", holder[:8], "bob")]
    assert rows[4] == []
    for when in (rows[0][0][4], rows[0][0][5], rows[1][0][3], rows[2][0][2], rows[3][0][3]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", when)


@pytest.mark.parametrize(
    ("heading", "number", "status", "reason"),
    [
        ("End a session", 0, 410, "ended by an operator"),
        ("End a session", 1, 410, "needed for a demo"),
        ("End a session", 2, 410, "ended by an operator"),
        ("End a session", 4, 404, "unknown session"),
    ],
)
def test_the_end_of_the_active_session_takes_effect(
    server: LabServer, heading: str, number: int, status: int, reason: str
) -> None:
    holder, waiting = server.join(client=CLIENT), server.join()
    assert server.acquire(holder, TOPOLOGY).status_code == 200
    with in_background(server.status, waiting, 30) as held:
        sql(server.database_url, recipe(heading, number, holder))
        assert held.result(SQL_TAKES_EFFECT)["status"] == "active"
    answer = httpx.get(f"{server.url}/session/{holder}")
    assert answer.status_code == status
    assert reason in answer.json()["detail"]
    assert ask(server, holder, "GET", "/lab").status_code == 404
    wait_until(server.is_clean)
    assert server.acquire(waiting, TOPOLOGY).status_code == 200
    assert fake(server).violations() == []


def test_the_end_of_an_active_session_stops_the_start_of_its_lab(server: LabServer) -> None:
    holder, waiting = server.join(), server.join()
    with in_background(server.acquire, holder, topology_text(nodes=2, hang="start")) as call:
        wait_until(lambda: fake(server).containers())
        sql(server.database_url, recipe("End a session", 0, holder))
        takes_effect(lambda: is_active(server, waiting))
        assert call.result().status_code == 404
    wait_until(server.is_clean)


def test_the_end_of_a_waiting_session_takes_effect(server: LabServer) -> None:
    server.join()
    first, second = server.join(), server.join()
    with in_background(httpx.get, f"{server.url}/session/{first}?wait=30", timeout=60) as held:
        sql(server.database_url, recipe("End a session", 0, first))
        answer = held.result(SQL_TAKES_EFFECT)
    assert answer.status_code == 410
    assert "operator" in answer.json()["detail"]
    assert server.status(second)["position"] == 1
    rows = sql(server.database_url, "SELECT ended, end_reason FROM session_history WHERE session_id = ?", first)
    assert rows[0][0] is not None
    assert rows[0][1] == "ended by an operator"


def test_all_sessions_of_one_client_are_ended(server: LabServer) -> None:
    others = [server.join(client="bob"), server.join()]
    theirs = [server.join(client=CLIENT) for _ in range(3)]
    sql(server.database_url, recipe("End a session", 2))
    takes_effect(lambda: queue(server)["length"] == len(others))
    assert all(httpx.get(f"{server.url}/session/{session_id}").status_code == 410 for session_id in theirs)
    assert [server.status(session_id)["position"] for session_id in others] == [0, 1]


def test_only_sessions_that_have_waited_for_long_are_ended(server: LabServer) -> None:
    holder, old, young = (server.join() for _ in range(3))
    sql(
        server.database_url,
        "UPDATE session SET created_at = '2020-01-01 00:00:00' WHERE session_id IN (?, ?)",
        holder,
        old,
    )
    sql(server.database_url, recipe("End a session", 3))
    takes_effect(lambda: httpx.get(f"{server.url}/session/{old}").status_code == 410)
    assert is_active(server, holder)
    assert server.status(young)["position"] == 1


def test_the_order_is_changed(server: LabServer) -> None:
    holder, *waiting = (server.join() for _ in range(4))

    def order() -> list[str]:
        return sorted(waiting, key=lambda session_id: int(server.status(session_id)["position"]))

    first, second, third = waiting
    sql(server.database_url, recipe("Change the order", 0, third))
    takes_effect(lambda: order() == [third, first, second])
    sql(server.database_url, recipe("Change the order", 1, first))
    takes_effect(lambda: order() == [third, second, first])
    late = server.join()
    assert server.status(late)["position"] == 4
    assert is_active(server, holder)
    server.restart()
    assert order() == [third, second, first]
    ask(server, holder, "DELETE", f"/session/{holder}")
    assert is_active(server, third)


def test_the_queue_is_paused_and_continues(server: LabServer) -> None:
    holder, waiting = server.join(), server.join()
    sql(server.database_url, recipe("Quarantine", 0))
    takes_effect(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
    assert queue(server)["quarantined"] == "maintenance until noon"
    assert server.acquire(holder, TOPOLOGY).status_code == 200  # active sessions continue
    assert ask(server, holder, "DELETE", f"/session/{holder}").status_code == 204
    wait_until(server.is_clean)
    assert "maintenance" in server.status(waiting)["waiting_for"]
    with in_background(server.status, waiting, 30) as held:
        sql(server.database_url, recipe("Quarantine", 1))
        assert held.result(SQL_TAKES_EFFECT)["status"] == "active"
    assert httpx.get(f"{server.url}/readyz").status_code == 200


HOSTS = "Hosts and slots"


def of_this_host(number: int) -> str:
    """A statement about the only slot of the test's host."""
    return recipe(HOSTS, number).replace("lab-2", "test-host").replace("slot = 3", "slot = 1")


def test_views_show_hosts_and_slots(server: LabServer) -> None:
    holder = server.join(client=CLIENT)
    assert server.acquire(holder, TOPOLOGY).status_code == 200
    hosts, slots, labs, memory = (sql(server.database_url, recipe(HOSTS, number)) for number in range(4))
    assert [(name, state, bool(draining)) for name, state, draining, *_ in hosts] == [("test-host", "live", False)]
    assert [(host, slot, bool(is_open), *rest[:2]) for host, slot, is_open, *rest in slots] == [
        ("test-host", 1, True, holder[:8], CLIENT)
    ]
    assert labs == [("test-host", 1, None, "topology.yml", "running", holder[:8])]
    assert memory == []


@pytest.mark.parametrize(("stop", "resume"), [(4, 5), (6, 7)], ids=["host", "slot"])
def test_a_drained_host_or_a_closed_slot_admits_no_further_session(server: LabServer, stop: int, resume: int) -> None:
    holder, waiting = server.join(), server.join()

    def slots() -> int:
        [host] = queue(server)["hosts"]
        return 0 if host["draining"] else int(host["slots"])

    sql(server.database_url, of_this_host(stop))
    takes_effect(lambda: slots() == 0)
    assert is_active(server, holder)
    assert ask(server, holder, "DELETE", f"/session/{holder}").status_code == 204
    assert server.status(waiting)["position"] == 1
    with in_background(server.status, waiting, 30) as held:
        sql(server.database_url, of_this_host(resume))
        assert held.result(SQL_TAKES_EFFECT)["status"] == "active"


def test_a_host_is_removed(server: LabServer) -> None:
    sql(server.database_url, "INSERT INTO lab_host (name, queue, state) VALUES ('lab-2', 'default', 'gone')")
    sql(server.database_url, "INSERT INTO slot (host, slot, is_open) VALUES ('lab-2', 1, true)")
    takes_effect(lambda: len(queue(server)["hosts"]) == 2)
    for number in (8, 9):
        sql(server.database_url, recipe(HOSTS, number))
    takes_effect(lambda: [host["name"] for host in queue(server)["hosts"]] == ["test-host"])
    assert is_active(server, server.join())


def test_history_and_statistics(server: LabServer) -> None:
    for client in (CLIENT, CLIENT, "bob"):
        session_id = server.join(client=client)
        assert server.acquire(session_id, TOPOLOGY).status_code == 200
        assert ask(server, session_id, "DELETE", f"/session/{session_id}").status_code == 204
        wait_until(server.is_clean)
    failing = server.join(client="bob")
    assert server.acquire(failing, topology_text(fail="start"), name="broken.yml").status_code == 500
    assert ask(server, failing, "DELETE", f"/session/{failing}").status_code == 204
    sessions, labs, users, days, topologies, failures = (
        sql(server.database_url, recipe("History and statistics", number)) for number in range(6)
    )
    assert [row[1] for row in sessions[:4]] == ["bob", "bob", CLIENT, CLIENT]
    assert {row[6] for row in sessions[:4]} == {"ended by its client"}
    assert [row[0] for row in labs[:2]] == ["broken.yml", "topology.yml"]
    assert {CLIENT, "bob"} <= {row[0] for row in users}
    assert days[0][1] >= 4
    assert topologies[0][0] == "topology.yml"
    assert "exit status 1" in failures[0][3]


def test_the_events_of_a_session_and_its_lab(server: LabServer) -> None:
    first, second = server.join(client=CLIENT), server.join()
    assert server.acquire(first, TOPOLOGY).status_code == 200
    sql(server.database_url, recipe("Change the order", 0, second))
    sql(server.database_url, recipe("End a session", 1))
    takes_effect(lambda: is_active(server, second))
    wait_until(server.is_clean)
    wait_until(lambda: sql(server.database_url, "SELECT state FROM lab ORDER BY number DESC LIMIT 1") == [("ended",)])
    events = sql(server.database_url, recipe("Events", 1, first))
    assert [(what, topology, code) for _, what, topology, _, code, _ in events] == [
        ("session_joined", None, None),
        ("session_granted", None, None),
        ("lab_starting", "topology.yml", None),
        ("lab_running", "topology.yml", None),
        ("reference_acquired", "topology.yml", None),
        ("session_ended", None, "operator"),
        ("lab_stopping", "topology.yml", None),
        ("reference_released", "topology.yml", None),
        ("lab_ended", "topology.yml", "session_ended"),
    ]
    assert events[5][5] == "the lab host is needed for a demo"
    latest = sql(server.database_url, recipe("Events", 0))
    assert {row[1] for row in latest} >= {"session_moved", "session_granted"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row[0]) for row in latest)


@pytest.mark.parametrize("number", range(len(RECIPES["Refused changes"])))
def test_changes_that_violate_an_invariant_are_refused(server: LabServer, number: int) -> None:
    sessions = [server.join() for _ in range(3)]
    with refused(server.database_url):
        sql(server.database_url, recipe("Refused changes", number))
    assert [server.status(session_id)["position"] for session_id in sessions] == [0, 1, 2]


UNREADABLE: dict[str, list[object]] = {
    "sqlite": ["", "noon", "12:00", "2026-02-30 10:00:00", "2026-01-01 24:00:00", 2460000.5, 0],
    "postgresql": ["", "noon", "12:00", "2026-02-30 10:00:00", 2460000.5, 0, "infinity", "44-03-15 BC", "12026-01-01"],
}


def test_an_invalid_time_is_refused(server: LabServer) -> None:
    session_id = server.join()
    for time in UNREADABLE[server.database_url.partition("+")[0]]:
        with refused(server.database_url):
            sql(server.database_url, "UPDATE session SET created_at = ? WHERE session_id = ?", time, session_id)


@pytest.mark.parametrize(
    "time", ["2026-01-01", "2026-01-01 10:00", "2026-01-01 10:00:00", "2026-01-01T10:00:00.123456"]
)
def test_a_time_written_by_a_person_is_accepted(server: LabServer, time: str) -> None:
    session_id = server.join()
    sql(server.database_url, "UPDATE session SET created_at = ? WHERE session_id = ?", time, session_id)
    takes_effect(lambda: queue(server)["sessions"][0]["age_seconds"] > 3600)
    assert is_active(server, session_id)


def test_many_operators_at_once_do_no_harm(server: LabServer) -> None:
    holder = server.join()
    waiting = [server.join() for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for session_id in waiting[:6]:
            pool.submit(sql, server.database_url, recipe("End a session", 0, session_id)).result()
            pool.submit(sql, server.database_url, recipe("Change the order", 0, waiting[7])).result()
    takes_effect(lambda: queue(server)["length"] == 3)
    assert [server.status(name)["position"] for name in (holder, waiting[7], waiting[6])] == [0, 1, 2]


@pytest.fixture
def session_id(server: LabServer) -> str:
    return server.join()


@pytest.fixture
def backup(server: LabServer, session_id: str, tmp_path: Path) -> Iterator[str]:
    """A backup of the server's database, made as the pages describe and restored as another database."""
    if not server.database_url.startswith("sqlite"):
        with dumped_and_restored(server.database_url, tmp_path / "backup") as url:
            yield url
        return
    if shutil.which("sqlite3") is None:
        pytest.skip("the sqlite3 shell is not installed")
    copy = tmp_path / "copy.sqlite3"
    subprocess.run(["sqlite3", str(server.database), f".backup '{copy}'"], check=True)
    assert sql(copy, "PRAGMA integrity_check") == [("ok",)]
    yield sqlite_url(copy)


def test_a_backup_of_a_running_server_is_complete(server: LabServer, session_id: str, backup: str) -> None:
    assert sql(backup, "SELECT session_id FROM active") == [(session_id,)]
    assert is_active(server, session_id)
    assert lab(server, session_id)["state"] == "none"


def test_every_recipe_has_a_test_above() -> None:
    assert {heading: len(statements) for heading, statements in RECIPES.items()} == {
        "Waiting and active sessions": 5,
        "End a session": 5,
        "Change the order": 2,
        "Quarantine": 2,
        "Hosts and slots": 10,
        "History and statistics": 6,
        "Events": 2,
        "Refused changes": 5,
    }
