"""A server with PostgreSQL: outages of the database, and passwords."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url

from tests.chaos.shell import ask, fake, in_background, is_active, lab, sql, wait_for_event
from tests.fakes import install_fake_netlab, topology_text, wait_until
from tests.postgresql import AUTHENTICATED, Cluster, running_pooler
from tests.server import LabServer, running_server

TOPOLOGY = topology_text(nodes=2)


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    with cluster.new_database() as made:
        yield made


@pytest.fixture
def server(url: str, tmp_path: Path) -> Iterator[LabServer]:
    with running_server(tmp_path, database=url) as started:
        yield started


def is_refused_for_now(answer: httpx.Response) -> bool:
    """Whether the response is 503 with the problem of the database and `Retry-After`."""
    return answer.status_code == 503 and "Retry-After" in answer.headers and "try again" in answer.json()["detail"]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGQUIT], ids=["shutdown", "crash"])
def test_labs_keep_running_while_postgresql_is_stopped_and_the_queue_continues_afterwards(
    server: LabServer, cluster: Cluster, end: signal.Signals
) -> None:
    holder, waiting = server.join(), server.join()
    assert server.acquire(holder, TOPOLOGY).status_code == 200
    cluster.stop(end)
    try:
        for _ in range(2):
            assert is_refused_for_now(httpx.post(f"{server.url}/session"))
            assert is_refused_for_now(ask(server, holder, "DELETE", f"/session/{holder}"))
        assert server.status(waiting)["position"] == 1
        assert ask(server, holder, "POST", "/session/heartbeat").status_code == 204
        assert lab(server, holder)["running"]
        assert httpx.get(f"{server.url}/healthz").status_code == 204
        wait_until(lambda: "the database cannot be used" in server.log.read_text())
    finally:
        cluster.start()
    wait_until(lambda: "the database can be used again" in server.log.read_text())
    assert ask(server, holder, "DELETE", f"/session/{holder}").status_code == 204
    assert is_active(server, waiting)
    wait_until(server.is_clean)
    assert fake(server).violations() == []


def test_a_start_that_cannot_be_recorded_can_be_tried_again_although_postgresql_is_back(
    server: LabServer, cluster: Cluster
) -> None:
    holder = server.join()
    fake(server).control(config_seconds=0.5, down_seconds=2)  # PostgreSQL is back before the lab is gone
    with in_background(server.acquire, holder, TOPOLOGY) as call:
        [config] = wait_for_event(fake(server), "phase", phase="config")
        cluster.stop()
        try:
            wait_for_event(fake(server), "end", pid=config["pid"])
            wait_until(lambda: "did not start" in server.log.read_text())
        finally:
            cluster.start()
        assert is_refused_for_now(call.result())
    fake(server).control()
    assert server.acquire(holder, TOPOLOGY).status_code == 200


def test_a_change_that_an_operator_makes_while_the_connection_is_lost_takes_effect(server: LabServer, url: str) -> None:
    holder, waiting = server.join(), server.join()
    sql(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'neops-remote-lab'")
    sql(url, "UPDATE session SET state = 'ended' WHERE session_id = ?", holder)
    wait_until(lambda: is_active(server, waiting), 2)
    assert httpx.get(f"{server.url}/session/{holder}").status_code == 410


def test_no_acknowledged_join_is_lost_and_the_order_is_kept_when_postgresql_crashes(
    server: LabServer, cluster: Cluster
) -> None:
    acknowledged: list[str] = []
    over = threading.Event()

    def join_until_the_end() -> None:
        with httpx.Client(base_url=server.url) as client:
            while not over.is_set():
                answer = client.post("/session")
                assert answer.status_code in {201, 503}, answer.text
                if answer.status_code == 201:
                    acknowledged.append(answer.json()["session_id"])
                else:
                    over.wait(0.02)

    clients = [threading.Thread(target=join_until_the_end) for _ in range(4)]
    for client in clients:
        client.start()
    for crash in range(1, 4):
        enough = len(acknowledged) + 7 * crash
        wait_until(lambda enough=enough: len(acknowledged) >= enough)  # type: ignore[misc]
        cluster.stop(signal.SIGQUIT)
        cluster.start()
    over.set()
    for client in clients:
        client.join()
    positions = [server.status(session_id)["position"] for session_id in acknowledged]
    server.restart()
    assert [server.status(session_id)["position"] for session_id in acknowledged] == positions
    assert len(set(positions)) == len(positions)


def test_a_pooler_is_refused(url: str, cluster: Cluster, tmp_path: Path) -> None:
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"))
    with running_pooler(cluster, url) as pooled:
        server.settings["database"] = pooled
        server.launch()
        assert server.wait(30) == 1
    message = server.log.read_text()
    assert "a connection pooler answers in the place of PostgreSQL" in message
    assert "--database" in message
    assert "Traceback" not in message


def test_a_password_is_used_and_never_shown(url: str, cluster: Cluster, tmp_path: Path) -> None:
    secret = make_url(url).set(username=AUTHENTICATED, password=cluster.password)
    database = secret.render_as_string(hide_password=False)
    quoted = database.partition(f"{AUTHENTICATED}:")[2].rpartition("@")[0]
    with running_server(tmp_path, database=database, log_level="DEBUG") as server:
        assert server.join()
        cluster.stop()
        shown = [httpx.post(f"{server.url}/session").text]
        wait_until(lambda: "the database cannot be used" in server.log.read_text())
        cluster.start()
        server.stop()
        shown += [server.log.read_text(), *refusals(server, database, quoted)]
    assert f"{AUTHENTICATED}:***@" in shown[1]
    for text in shown:
        assert cluster.password not in text
        assert quoted not in text


def refusals(server: LabServer, database: str, password: str) -> Iterator[str]:
    """Messages of servers that cannot start: no such database, a wrong password, an invalid URL."""
    wrong = (
        *(database.replace("/test_", "/absent_"), database.replace(f":{password}@", f":{password}x@")),
        *(database.replace("+psycopg", "+asyncpg"), database.replace("@", "@:port")),
    )
    for url in wrong:
        server.log.write_text("")
        server.settings["database"] = url
        server.launch()
        assert server.wait(30) == 1
        message = server.log.read_text()
        assert "--database" in message
        assert "Traceback" not in message
        yield message


def test_a_password_is_read_from_a_file(url: str, cluster: Cluster, tmp_path: Path) -> None:
    passwords = tmp_path / "pgpass"
    password = cluster.password.replace(":", "\\:")
    passwords.write_text(f"*:*:*:{AUTHENTICATED}:{password}\n")
    passwords.chmod(0o600)
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"))
    server.settings["database"] = make_url(url).set(username=AUTHENTICATED).render_as_string()
    server.environment["PGPASSFILE"] = str(passwords)
    try:
        server.start()
        assert server.join()
    finally:
        server.close()
