"""Responses that may come from other programs than the server: redirects, pages of proxies, `Retry-After`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from neops_remote_lab.client.answers import (
    CALL_PATH,
    PAGE_LENGTH,
    detail_of,
    name_of,
    parsed,
    raise_for_error,
    retry_after,
)
from neops_remote_lab.models import QueueDto

PAGE = """<!doctype html><html><head><style>body { color: red }</style><script>alert("no")</script>
<title>502 Bad Gateway</title></head><body><h1>long</h1></body></html>"""
SESSION = "0123456789abcdef0123456789abcdef"


def answer(status: int, path: str = "/session", **options: Any) -> httpx.Response:
    request = httpx.Request("GET", f"http://lab/lab-1{path}", extensions={CALL_PATH: path})
    return httpx.Response(status, request=request, **options)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://lab/lab-1/session", "set REMOTE_LAB_URL=https://lab/lab-1"),
        ("http://lab:8443/lab-1/session", "set REMOTE_LAB_URL=http://lab:8443/lab-1"),
        (
            "https://sso.example.net/login?state=s3cret",
            "redirected to https://sso.example.net/login: if that is a login",
        ),
        ("/login#s3cret", "redirected to http://lab/login: if that is a login page"),
        ("http://[::1", "redirected to something that is not an address"),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_names_its_target_and_the_setting(status: int, location: str, expected: str) -> None:
    detail = detail_of(answer(status, headers={"Location": location}, html=PAGE))
    assert expected in detail
    assert "<" not in detail
    assert "s3cret" not in detail


def test_a_redirect_does_not_show_the_session() -> None:
    path = f"/session/{SESSION}"
    detail = detail_of(answer(301, path, headers={"Location": f"https://lab/lab-1{path}"}))
    assert detail == "redirected to https://lab/lab-1/session/01234567…: set REMOTE_LAB_URL=https://lab/lab-1"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"html": PAGE}, "502 Bad Gateway"),
        ({"text": PAGE}, "502 Bad Gateway"),
        ({"text": "\n\nno healthy upstream\nmore"}, "no healthy upstream"),
        ({"text": "\x1b[31mred\u202e"}, r"\x1b[31mred\u202e"),
        ({"json": {"detail": "one\ntwo"}}, "one\ntwo"),
        ({"json": {"detail": "one\r\x1b[2J"}}, r"one\r\x1b[2J"),
        ({"json": {"message": "other"}}, '{"message":"other"}'),
        ({"content": b"\xff\xfe\x00"}, None),
        ({}, "Bad Gateway"),
    ],
)
def test_the_first_line_of_a_response_is_shown_without_markup(options: dict[str, Any], expected: str | None) -> None:
    detail = detail_of(answer(502, **options))
    assert expected is None or detail == expected
    assert "\x1b" not in detail


@pytest.mark.parametrize("body", ["x" * 10**6, "<p>" + "x" * 10**6, "<" * 10**5, "<a " * 10**5])
def test_the_shown_part_of_a_response_is_limited(body: str) -> None:
    assert len(detail_of(answer(500, text=body))) <= PAGE_LENGTH


@pytest.mark.parametrize(
    ("status", "text", "variable"),
    [
        (401, "401 Authorization Required", "REMOTE_LAB_TOKEN"),
        (407, "Proxy Authentication Required", "HTTP_PROXY"),
        (400, "No required SSL certificate was sent", "REMOTE_LAB_CLIENT_CERT"),
        (400, "The plain HTTP request was sent to HTTPS port", "https://"),
    ],
)
def test_a_response_of_a_proxy_names_the_setting(status: int, text: str, variable: str) -> None:
    with pytest.raises(httpx.HTTPStatusError, match=rf"^GET /lab-1/session: {status}: {text} \(.*{variable}"):
        raise_for_error(answer(status, html=f"<title>{text}</title>"))


@pytest.mark.parametrize("options", [{"html": PAGE}, {"json": {"no": "queue"}}, {}, {"content": b"\xff"}])
def test_a_success_of_another_service_is_not_accepted(options: dict[str, Any]) -> None:
    with pytest.raises(httpx.DecodingError, match="this is not a response of a lab server") as caught:
        parsed(answer(200, **options), QueueDto)
    assert "<" not in str(caught.value)


def test_a_session_is_shortened_in_the_name_of_a_call() -> None:
    assert name_of(answer(500, f"/session/{SESSION}")) == "GET /lab-1/session/01234567…"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3),
        ("900", 10),
        ("9" * 400, 10),
        ("Wed, 01 Jan 2025 00:00:04 GMT", 4),
        ("Wed, 01 Jan 2025 00:00:04", 4),
        ("Wed, 01 Jan 2025 01:00:00 GMT", 10),
        ("Tue, 31 Dec 2024 00:00:00 GMT", 0),
        ("soon", 1.5),
        ("-1", 1.5),
        ("²", 1.5),
        ("Wed, 99 Jan 2025 00:00:04 GMT", 1.5),
        ("", 1.5),
    ],
)
def test_retry_after_is_a_number_or_a_date_within_bounds(text: str, seconds: float) -> None:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    assert retry_after(answer(503, headers={"Retry-After": text.encode("latin-1")}), 1.5, now) == seconds
