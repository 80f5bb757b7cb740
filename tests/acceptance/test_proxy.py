"""Client, plugin and command line through a real nginx with the shipped configuration."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from neops_remote_lab.client import RemoteLabClient
from neops_remote_lab.client.access import Access, Credentials
from tests import device_network
from tests.device_network import ECHO, needs_network, nodes_that_answer
from tests.fakes import topology_text, wait_until
from tests.nginx import Nginx, needs_nginx, running_nginx
from tests.plugin import queue
from tests.server import LabServer, running_server
from tests.websocket import open_websocket

pytestmark = needs_nginx
WAYS = ("certificate", "password", "token")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(tmp_path_factory.mktemp("host")) as server:
        yield server


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory, host: LabServer) -> Iterator[dict[str, Nginx]]:
    with ExitStack() as ends:
        root = tmp_path_factory.mktemp("nginx")
        yield {way: ends.enter_context(running_nginx(root / way, host, way)) for way in WAYS}


@pytest.fixture(params=WAYS)
def proxy(request: pytest.FixtureRequest, proxies: dict[str, Nginx], host: LabServer) -> Iterator[Nginx]:
    yield proxies[request.param]
    assert queue(host) == []


@pytest.fixture
def token_proxy(proxies: dict[str, Nginx]) -> Nginx:
    return proxies["token"]


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    path = tmp_path / "triangle.yml"
    path.write_text(topology_text(3))
    return path


def keywords(proxy: Nginx) -> dict[str, Any]:
    """The credentials of the environment as arguments of `RemoteLabClient`."""
    names = {
        "REMOTE_LAB_URL": "base_url",
        "REMOTE_LAB_TOKEN": "token",
        "REMOTE_LAB_CLIENT_CERT": "client_cert",
        "REMOTE_LAB_CLIENT_KEY": "client_key",
        "REMOTE_LAB_CA_FILE": "ca_file",
    }
    return {names[name]: value for name, value in proxy.environment.items()}


def http(proxy: Nginx) -> httpx.Client:
    return Access(proxy.environment["REMOTE_LAB_URL"], Credentials.read(proxy.environment)).client()


def show_queue(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "neops_remote_lab", "queue", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_a_client_works_through_a_proxy(proxy: Nginx, topology: Path, host: LabServer) -> None:
    with RemoteLabClient(**keywords(proxy)) as client:
        assert client.base_url == proxy.bare_url
        assert [device.name for device in client.acquire(topology)] == ["r1", "r2", "r3"]
        client.release()
    assert queue(host) == []


def test_a_client_uses_the_credentials_of_the_environment(proxy: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
    RemoteLabClient(proxy.environment["REMOTE_LAB_URL"]).close()


def test_a_test_run_works_through_a_proxy_and_shows_no_credentials(
    proxy: Nginx, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
    project.makepyfile(
        """
        def test_lab(shared):
            assert shared[0].name == "r1"

        def test_fails(remote_lab_client):
            remote_lab_client.destroy(force=False)
            assert 0
        """
    )
    result = project.runpytest_subprocess("-s", "--junit-xml=junit.xml", "-o", "log_level=DEBUG", "-rA")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines([f"remote lab: joining the queue of {proxy.bare_url}"])
    text = result.stdout.str() + result.stderr.str() + project.path.joinpath("junit.xml").read_text()
    for secret in ("s3cret", "a-long-random-string"):
        assert secret not in text


def test_the_queue_is_shown(proxy: Nginx, host: LabServer) -> None:
    session = host.join(client="ann@office")
    shown = show_queue(proxy.environment)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "ann@office" in shown.stdout
    assert session not in shown.stdout
    httpx.delete(f"{host.url}/session/{session}")


@pytest.mark.parametrize("arguments", [[], ["--url"]])
def test_missing_credentials_name_the_setting(proxy: Nginx, arguments: list[str]) -> None:
    environment = {"REMOTE_LAB_URL": proxy.bare_url, "REMOTE_LAB_CA_FILE": str(proxy.files.ca)}
    shown = show_queue(environment, *arguments, *([proxy.bare_url] if arguments else []))
    missing = "REMOTE_LAB_CLIENT_CERT" if proxy.way == "certificate" else "REMOTE_LAB_TOKEN"
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert missing in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    with pytest.raises(httpx.HTTPStatusError, match=missing):
        RemoteLabClient(proxy.bare_url, ca_file=proxy.files.ca)


def test_a_wrong_password_is_not_shown(token_proxy: Nginx) -> None:
    url = token_proxy.bare_url.replace("https://", "https://ann:wr0ng@")
    shown = show_queue({"REMOTE_LAB_CA_FILE": str(token_proxy.files.ca)}, "--url", url)
    assert shown.returncode == 1
    assert "401" in shown.stderr
    assert "wr0ng" not in shown.stderr


def test_a_long_poll_is_answered_when_the_session_becomes_active(token_proxy: Nginx, host: LabServer) -> None:
    holder = host.join()
    seen: list[int] = []
    waits = threading.Event()

    def progress(position: int, _: str | None) -> None:
        seen.append(position)
        waits.set()

    def wait() -> None:
        RemoteLabClient(**keywords(token_proxy), on_progress=progress).close()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert waits.wait(30)
    with host.client() as client:
        client.delete(f"/session/{holder}")
    waiter.join(60)
    assert not waiter.is_alive()
    assert seen == [1, 0]


def test_uploads_of_several_megabytes_pass_through_a_proxy(token_proxy: Nginx, host: LabServer) -> None:
    with http(token_proxy) as client:
        session = client.post("/session").json()["session_id"]
        files: list[tuple[str, tuple[str, str | bytes]]] = [
            ("topology", ("lab.yml", topology_text(1))),
            *(("extra_files", (f"images/{number}.bin", b"x" * 2**23)) for number in range(3)),
        ]
        answer = client.post("/lab", files=files, headers={"X-Session-ID": session}, timeout=120)
        assert answer.status_code == 200, answer.text
        assert [path.stat().st_size for path in host.work_dir.rglob("*.bin")] == [2**23] * 3
        client.delete(f"/session/{session}")


def test_the_log_is_a_live_stream(token_proxy: Nginx) -> None:
    with http(token_proxy) as client:
        headers = {"X-Session-ID": client.post("/session").json()["session_id"]}
        files = {"topology": ("lab.yml", topology_text(1, start_seconds=0.5))}
        started = client.post("/lab", files=files, headers={**headers, "Prefer": "respond-async"})
        assert started.status_code == 202
        stream_headers = {**headers, "Accept": "text/event-stream"}
        with client.stream("GET", "/lab/log", headers=stream_headers, timeout=60) as stream:
            for line in stream.iter_lines():
                if line == "data: OK: Lab devices configured":  # the stream is still open, so nothing was buffered
                    client.delete("/lab", headers=headers)
                    break
            else:
                pytest.fail("the stream ended before the lab was up")
        client.delete(f"/session/{headers['X-Session-ID']}")


@needs_network
def test_connections_to_devices_pass_through_a_proxy(proxy: Nginx, host: LabServer) -> None:
    context = ssl.create_default_context(cafile=proxy.files.ca)
    if proxy.way == "certificate":
        context.load_cert_chain(proxy.files.certificate, proxy.files.key)
    with http(proxy) as client:
        session = client.post("/session").json()["session_id"]
        headers = {"X-Session-ID": session}
        if authorization := client.build_request("GET", "/").headers.get("Authorization"):
            headers["Authorization"] = authorization
        if isinstance(client.auth, httpx.BasicAuth):
            headers["Authorization"] = next(client.auth.auth_flow(client.build_request("GET", "/"))).headers[
                "Authorization"
            ]
        address = f"wss://localhost:{proxy.port}/lab/devices/r1/tcp"
        with pytest.raises(InvalidStatus) as refused:
            open_websocket(f"{address}/{ECHO}", ssl=context, **headers)
        assert refused.value.response.status_code == 404
        assert json.loads(bytes(refused.value.response.body))["detail"].startswith("no lab is running")
        assert client.post(
            "/lab", files={"topology": ("lab.yml", device_network.topology(1))}, headers={"X-Session-ID": session}
        ).is_success
        with nodes_that_answer(host.fake):
            connection = open_websocket(f"{address}/{ECHO}", ssl=context, **headers)
            connection.send(b"x" * 1_000_000)
            received = 0
            while received < 1_000_000:
                received += len(connection.recv(10))
            client.delete(f"/session/{session}")
            with pytest.raises(ConnectionClosed):
                connection.recv(2)
            assert connection.close_code == 4410
        wait_until(host.is_clean, 20, "the lab is not torn down")


def test_another_protocol_is_not_passed_on(token_proxy: Nginx) -> None:
    with http(token_proxy) as client:
        for upgrade in ("h2c", "websocket, h2c"):
            headers = {"Connection": "Upgrade", "Upgrade": upgrade}
            assert client.get("/healthz", headers=headers).status_code == 204, upgrade


def test_a_redirect_to_tls_names_the_address_to_set(token_proxy: Nginx) -> None:
    plain = f"http://localhost:{token_proxy.plain_port}"
    with pytest.raises(
        httpx.HTTPStatusError, match=f"308: redirected to .* set REMOTE_LAB_URL={token_proxy.bare_url}$"
    ):
        RemoteLabClient(plain)
    shown = show_queue({}, "--url", plain)
    assert shown.returncode == 1
    assert f"set REMOTE_LAB_URL={token_proxy.bare_url}" in shown.stderr


def test_plain_http_to_a_port_with_tls_is_explained(token_proxy: Nginx) -> None:
    with pytest.raises(httpx.HTTPStatusError, match=r"400: .* \(set REMOTE_LAB_URL to an address with https://\)"):
        RemoteLabClient(f"http://localhost:{token_proxy.port}")


def test_errors_of_tls_fail_at_once(token_proxy: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    """These errors are not retried, which would take half a minute each."""
    pauses: list[float] = []
    cases = [
        (token_proxy.bare_url, None, "certificate is not accepted: .*; REMOTE_LAB_CA_FILE"),
        (f"https://127.0.0.1:{token_proxy.port}", token_proxy.files.ca, "certificate is not accepted: .*mismatch"),
        (f"https://localhost:{token_proxy.plain_port}", token_proxy.files.ca, "speak http:// rather than https://"),
    ]
    for url, authority, message in cases:
        with pytest.raises(httpx.ConnectError, match=message):
            RemoteLabClient(url, ca_file=authority, pause=pauses.append)
    assert pauses == []


def test_a_restart_of_the_server_behind_a_proxy_is_survived(
    token_proxy: Nginx, host: LabServer, topology: Path
) -> None:
    with RemoteLabClient(**keywords(token_proxy)) as client:
        host.kill()
        devices: list[str] = []
        acquire = threading.Thread(target=lambda: devices.extend(d.name for d in client.acquire(topology)))
        acquire.start()
        host.start()
        acquire.join(60)
        assert devices == ["r1", "r2", "r3"]
    assert queue(host) == []
