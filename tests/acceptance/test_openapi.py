"""The description of the HTTP API: complete, sound, and usable without internet access."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from neops_remote_lab.api.app import create_app
from neops_remote_lab.api.settings import ServiceSettings
from neops_remote_lab.core.settings import read_settings
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server

WEBSOCKETS = ("/lab/devices/{name}/console", "/lab/devices/{name}/tcp/{port}")
UNDESCRIBED = {"/openapi.json", "/docs", "/docs/docs.js", *WEBSOCKETS}
"""Routes that are not described: the description itself, the page that shows it, and WebSockets."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: LabServer) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/openapi.json")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    return dict(answer.json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def resolve(document: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/"), reference
    value: Any = document
    for part in reference[2:].split("/"):
        value = value[part.replace("~1", "/").replace("~0", "~")]
    return value


def test_the_document_has_the_shape_of_openapi_3_1(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["title"] == "neops-remote-lab"
    assert document["info"]["version"]
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert method in {"get", "post", "put", "patch", "delete"}, where
        assert path.startswith("/"), where
        assert operation["summary"], where
        assert operation["responses"], where
        for code, answer in operation["responses"].items():
            assert re.fullmatch(r"[2-5]\d\d", code), where
            assert answer["description"], where
        declared = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path)), where
        for parameter in operation["parameters"]:
            assert parameter["in"] in {"path", "query", "header"}, where
            assert parameter["in"] != "path" or parameter["required"] is True, where
            assert parameter["schema"], where


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()


def test_every_operation_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


def test_every_reference_can_be_resolved(document: dict[str, Any]) -> None:
    found = list(references(document))
    assert found
    for reference in found:
        assert resolve(document, reference)


def test_every_schema_is_used(document: dict[str, Any]) -> None:
    used = {reference.rsplit("/", 1)[1] for reference in references(document)}
    assert set(document["components"]["schemas"]) == used


def test_every_route_is_described_and_every_description_has_a_route(document: dict[str, Any]) -> None:
    routes = create_app(read_settings(ServiceSettings, {}, {})).routes
    served = {
        (method.lower(), route.path)
        for route in routes
        if isinstance(route, Route) and route.path not in UNDESCRIBED
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {(method, path) for method, path, _ in operations(document)} == served


def test_the_calls_of_existing_clients_are_described(document: dict[str, Any]) -> None:
    described = {(method, path): set(operation["responses"]) for method, path, operation in operations(document)}
    for method, path, code in [
        ("post", "/session", "201"),
        ("get", "/session/{session_id}", "200"),
        ("delete", "/session/{session_id}", "204"),
        ("get", "/active-session", "200"),
        ("post", "/session/heartbeat", "204"),
        ("post", "/lab", "200"),
        ("get", "/lab", "200"),
        ("get", "/lab/devices", "200"),
        ("post", "/lab/release", "204"),
        ("delete", "/lab", "202"),
        ("get", "/healthz", "204"),
        ("get", "/debug/health", "200"),
    ]:
        assert code in described[method, path], (method, path)


def test_responses_have_the_described_fields(document: dict[str, Any], server: LabServer) -> None:
    session_id = server.join(client="ann")
    waiter = server.join()
    assert server.acquire(session_id, topology_text(1)).status_code == 200
    headers = {"X-Session-ID": session_id}
    try:
        for path, described in [
            (f"/session/{waiter}", "/session/{session_id}"),
            ("/active-session", "/active-session"),
            ("/lab", "/lab"),
            ("/lab/devices", "/lab/devices"),
            ("/queue", "/queue"),
            ("/debug/health", "/debug/health"),
            ("/readyz", "/readyz"),
        ]:
            value = httpx.get(server.url + path, headers=headers).json()
            answer = document["paths"][described]["get"]["responses"]["200"]
            schema = answer["content"]["application/json"]["schema"]
            if isinstance(value, list):
                schema, value = schema["items"], value[0]
            fields = resolve(document, schema["$ref"])
            assert set(fields.get("required", [])) <= value.keys() <= set(fields["properties"]), path
    finally:
        for name in (waiter, session_id):
            httpx.delete(f"{server.url}/session/{name}")
        wait_until(server.is_clean, 20)


class Links(HTMLParser):
    """Collects the addresses of links and of loaded files of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.found += [value for name, value in attrs if name in {"src", "href", "action"} and value]


def test_the_interactive_page_loads_nothing_from_other_hosts(server: LabServer) -> None:
    page = httpx.get(f"{server.url}/docs")
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    links = Links()
    links.feed(page.text)
    loaded = [link for link in links.found if not link.startswith("data:")]
    assert loaded
    for link in loaded:
        assert "//" not in link, link
        assert not link.startswith("/"), f"{link} does not work behind a proxy's path prefix"
        assert httpx.get(urljoin(f"{server.url}/docs", link)).status_code == 200, link
    assert not re.search(r"https?://|url\(\s*['\"]?//", page.text)


def test_the_styles_of_the_page_load_nothing_from_other_hosts(server: LabServer) -> None:
    styles = httpx.get(f"{server.url}/docs/swagger-ui.css")
    assert styles.headers["Content-Type"].startswith("text/css")
    assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", styles.text)


@pytest.mark.parametrize("path", ["/docs/../server.py", "/docs/%2e%2e/server.py", "/docs//etc/passwd", "/docs/..%2fx"])
def test_only_the_files_of_the_page_are_served(server: LabServer, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.status_code == 404
    assert answer.json().keys() == {"detail"}
