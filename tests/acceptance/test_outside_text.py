"""Untrusted text that is shown on the terminal or in the browser of another user."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.chaos.shell import ask, queue, sql
from tests.corpora import UNPRINTABLE
from tests.fakes import wait_until
from tests.server import LabServer, running_server

CONTROL_SEQUENCES = "\x1b[2J\x9b31m\r\nforged \u202eline\u2028" + "".join(UNPRINTABLE.values())
MARKUP = "<script>alert('x')</script>&amp;"
BEYOND_ASCII = {name: character for name, character in UNPRINTABLE.items() if not character.isascii()}
"""Only these can be in a header: HTTP itself does not allow control characters."""

characters = pytest.mark.parametrize("character", UNPRINTABLE.values(), ids=UNPRINTABLE.keys())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(autouse=True)
def end_sessions(server: LabServer) -> Iterator[None]:
    yield
    for (session_id,) in sql(server.database, "SELECT session_id FROM session WHERE state <> 'ended'"):
        httpx.delete(f"{server.url}/session/{session_id}")
    wait_until(lambda: queue(server)["length"] == 0)


# Input


@characters
@pytest.mark.parametrize("field", ["client", "purpose"])
def test_a_label_with_unprintable_characters_is_refused(server: LabServer, field: str, character: str) -> None:
    answer = httpx.post(f"{server.url}/session", json={field: f"a{character}b"})
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["body", field]
    assert f"the label has the character U+{ord(character):04X}" in problem["msg"]
    assert queue(server)["length"] == 0


@pytest.mark.parametrize(
    "label", ["ada@laptop", "Владимир", "ночной прогон №7", "東京", "🚀 release", MARKUP, "ü" * 200]
)
def test_an_ordinary_label_of_any_script_is_kept(server: LabServer, label: str) -> None:
    server.join(client=label, purpose=label)
    (entry,) = queue(server)["sessions"]
    assert (entry["client"], entry["purpose"]) == (label, label)


@pytest.mark.parametrize("character", BEYOND_ASCII.values(), ids=BEYOND_ASCII.keys())
def test_an_idempotency_key_that_is_not_printable_is_refused(server: LabServer, character: str) -> None:
    session_id = server.join()
    for path in ("/session", "/lab/release"):
        headers = {b"Idempotency-Key": f"a{character}b".encode(), b"X-Session-ID": session_id.encode()}
        answer = httpx.post(server.url + path, headers=headers)
        assert answer.status_code == 422, answer.text
        assert f"Idempotency-Key has the character U+{ord(character):04X}" in answer.json()["detail"]
    assert queue(server)["length"] == 1


def test_an_idempotency_key_may_use_any_script(server: LabServer) -> None:
    headers = {b"Idempotency-Key": "nächtlich №7 à".encode()}
    first, second = (httpx.post(f"{server.url}/session", headers=headers) for _ in range(2))
    assert first.status_code == second.status_code == 201
    assert first.json()["session_id"] == second.json()["session_id"]


def test_only_the_first_mistakes_of_a_body_are_reported(server: LabServer) -> None:
    body = {f"{CONTROL_SEQUENCES}{number}": number for number in range(40)}
    answer = httpx.post(f"{server.url}/session", json=body)
    assert answer.status_code == 422
    assert 0 < len(answer.json()["detail"]) <= 10
    assert all(problem["loc"][1].isprintable() for problem in answer.json()["detail"])


def test_a_body_that_is_too_large_is_refused(server: LabServer) -> None:
    answer = httpx.post(f"{server.url}/session", content=b'{"client": "' + b"x" * 10_000 + b'"}')
    assert answer.status_code == 413
    assert "larger than 8192 bytes" in answer.json()["detail"]


# Output


@pytest.fixture
def waiting(server: LabServer) -> str:
    """A session that waits for one whose labels were written to the database with SQL."""
    holder, waiting = server.join(), server.join(client="bob")
    sql(
        server.database,
        "UPDATE session SET client = ?, purpose = ? WHERE session_id = ?",
        f"ann{CONTROL_SEQUENCES}",
        f"nightly{CONTROL_SEQUENCES}",
        holder,
    )
    wait_until(lambda: str(queue(server)["sessions"][0]["client"]).startswith("ann"))
    return waiting


def test_text_written_with_sql_is_escaped_in_responses(server: LabServer, waiting: str) -> None:
    entry = queue(server)["sessions"][0]
    assert entry["client"].startswith("ann\\x1b[2J\\x9b31m\\r\\nforged \\u202eline\\u2028")
    assert entry["purpose"].isprintable()
    assert server.status(waiting)["waiting_for"].startswith("ann\\x1b[2J")
    assert server.status(waiting)["waiting_for"].isprintable()


def test_text_written_with_sql_is_escaped_on_a_terminal(server: LabServer, waiting: str) -> None:
    command = [sys.executable, "-m", "neops_remote_lab", "queue", "--url", server.url]
    shown = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\n")
    assert len(shown) == 4  # headings, two sessions, and an empty string after the last newline
    assert all(line.isprintable() for line in shown)
    assert "ann\\x1b[2J" in shown[1]


def test_the_reason_for_the_end_of_a_session_is_escaped(server: LabServer) -> None:
    session_id = server.join()
    sql(
        server.database,
        "UPDATE session SET state = 'ended', ended_at = '2026-01-01 00:00:00', end_detail = ? WHERE session_id = ?",
        CONTROL_SEQUENCES,
        session_id,
    )
    wait_until(lambda: queue(server)["length"] == 0)
    detail = httpx.get(f"{server.url}/session/{session_id}").json()["detail"]
    assert detail.startswith("the session has ended: ")
    assert detail.isprintable()


# In a browser


def test_no_response_contains_markup(server: LabServer) -> None:
    holder = server.join(client=MARKUP, purpose=MARKUP)
    waiting = server.join(client=MARKUP)
    answers = [
        httpx.get(f"{server.url}/queue"),
        httpx.get(f"{server.url}/session/{waiting}"),
        httpx.post(f"{server.url}/session", json={MARKUP: 1}),
        httpx.get(f"{server.url}/queue?limit={MARKUP}"),
        httpx.get(f"{server.url}/{MARKUP}"),
        httpx.get(f"{server.url}/openapi.json"),
        httpx.get(f"{server.url}/active-session"),
        ask(server, holder, "POST", "/lab", files={"topology": (f"{MARKUP}.txt", "x")}),
        ask(server, holder, "POST", "/lab", files={"topology": ("x.yml", f"- {MARKUP}")}),
        ask(server, holder, "DELETE", "/lab", params={"force": MARKUP}),
    ]
    for answer in answers:
        assert answer.headers["Content-Type"] == "application/json", answer.url
        assert not set("<>&") & set(answer.text), answer.url
        json.loads(answer.text)
    assert answers[0].json()["sessions"][0]["client"] == MARKUP
    assert answers[1].json()["waiting_for"].startswith(f"{MARKUP} holds the lab for {MARKUP}")


@pytest.mark.parametrize(
    "path", ["/queue", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/metrics", "/healthz", "/nowhere", "/lab/log"]
)
def test_responses_forbid_browsers_to_guess_their_type(server: LabServer, path: str) -> None:
    assert httpx.get(server.url + path).headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_runs_only_its_own_scripts(server: LabServer) -> None:
    page = httpx.get(f"{server.url}/docs")
    assert page.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert "script-src 'self';" in page.text
    assert page.text.count("<script") == page.text.count('<script src="docs/')
    assert httpx.get(f"{server.url}/docs/docs.js").headers["Content-Type"].split(";")[0].endswith("javascript")


# Errors that leave the connection open


def test_an_invalid_parameter_leaves_the_connection_open(server: LabServer) -> None:
    session_id = server.join()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.connect()
        first = connection.sock
        for _ in range(2):
            connection.request("DELETE", "/lab?force=maybe", headers={"X-Session-ID": session_id})
            answer = connection.getresponse()
            assert answer.status == 422
            assert "'force' must be true or false" in json.loads(answer.read())["detail"]
            assert answer.getheader("Connection") != "close"
            assert connection.sock is first  # http.client would reconnect after `Connection: close`
    finally:
        connection.close()
