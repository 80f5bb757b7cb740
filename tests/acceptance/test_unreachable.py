"""Messages of client and command line about an unreachable server, with real sockets, names and proxies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from neops_remote_lab.client import RemoteLabClient
from neops_remote_lab.client.connection import UNKNOWN_NAME_TRIES
from tests.fakes import topology_text
from tests.server import LabServer, free_port


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


def show_queue(url: str | None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "neops_remote_lab", "queue", *([] if url is None else ["--url", url])]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_a_wrong_port_is_reported_during_the_retries() -> None:
    reports: list[str] = []
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(httpx.ConnectError, match=rf"^no answer from {url} in \d+ s: .*refused$"):
        RemoteLabClient(url, unreachable_timeout=3, on_trouble=reports.append)
    assert len(reports) == 1
    assert "refused; giving up in" in reports[0]


def test_a_server_that_does_not_answer_is_reported_during_the_wait(silent_port: int) -> None:
    reports: list[str] = []
    with pytest.raises(httpx.ReadTimeout, match=r"no answer from .*: timed out"):
        RemoteLabClient(f"http://127.0.0.1:{silent_port}", 3, unreachable_timeout=2, on_trouble=reports.append)
    assert f"no answer from http://127.0.0.1:{silent_port} yet; giving up in" in reports[0]


def test_an_unreachable_proxy_is_named_instead_of_the_lab_host(
    lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("HTTP_PROXY", proxy.replace("//", "//ann:s3cret@"))
    with pytest.raises(httpx.ConnectError) as caught:
        RemoteLabClient(lab_server.url, unreachable_timeout=1)
    assert f"from {lab_server.url} through the proxy {proxy} (HTTP_PROXY) in" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("NO_PROXY", "localhost,fe80::/10,127.0.0.0/8")
    RemoteLabClient(lab_server.url).close()


def test_a_host_name_that_does_not_exist_fails_after_a_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []

    def unknown(host: str, *_: object, **__: object) -> None:
        looked_up.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # DNS of the machine that runs the tests may be anything
    message = r"the host name lab\.invalid cannot be looked up: Name or service not known$"
    with pytest.raises(httpx.ConnectError, match=message):
        RemoteLabClient("http://lab.invalid:8000")
    assert looked_up == ["lab.invalid"] * UNKNOWN_NAME_TRIES


def test_an_unreachable_server_costs_its_timeout_once_per_run(lab_server: LabServer, tmp_path: Path) -> None:
    reports: list[str] = []
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        threading.Event().wait(seconds)

    topology = tmp_path / "lab.yml"
    topology.write_text(topology_text(1))
    client = RemoteLabClient(lab_server.url, unreachable_timeout=2, on_trouble=reports.append, pause=pause)
    client.acquire(topology)
    lab_server.kill()
    with pytest.raises(httpx.TransportError, match="no answer from "):
        client.release()
    assert pauses
    pauses.clear()
    for call in (client.release, client.destroy, lambda: client.acquire(topology)):
        with pytest.raises(httpx.TransportError, match="no answer from "):
            call()
    client.close()
    assert pauses == []
    assert len(reports) == 1
    lab_server.start()  # the next start tears the lab down


def test_a_waiting_run_reports_the_loss_and_the_return_of_the_server(lab_server: LabServer) -> None:
    holder = lab_server.join()
    waits, trouble, over = threading.Event(), threading.Event(), threading.Event()

    def tell(sentence: str) -> None:
        (over if "answers again" in sentence else trouble).set()

    def wait() -> None:
        RemoteLabClient(lab_server.url, on_trouble=tell, on_progress=lambda *_: waits.set()).close()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert waits.wait(30)
    lab_server.kill()
    assert trouble.wait(30)
    lab_server.start()
    assert over.wait(60)
    with lab_server.client() as other:
        other.delete(f"/session/{holder}")
    waiter.join(60)
    assert not waiter.is_alive()


# The command line


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"REMOTE_LAB_URL": "lab:8000"}, "lacks the scheme"),
        ({"REMOTE_LAB_URL": "http://ann:s3cret@lab:80a"}, "no valid host name or port"),
        ({"REMOTE_LAB_URL": "http://lab\n"}, "a space or a line break"),
        ({"REMOTE_LAB_URL": "", "NEOPS_REMOTE_LAB_PORT": "many"}, "NEOPS_REMOTE_LAB_PORT has no valid"),
        ({"REMOTE_LAB_URL": "http://lab", "REMOTE_LAB_TOKEN": "s3cret token"}, "REMOTE_LAB_TOKEN has a space"),
        ({"REMOTE_LAB_URL": "http://lab", "HTTP_PROXY": "socks5://ann:s3cret@proxy"}, "HTTP_PROXY names a SOCKS proxy"),
        ({"REMOTE_LAB_URL": "https://lab", "SSL_CERT_FILE": "/missing/s.pem"}, "SSL_CERT_FILE names a file"),
        ({"REMOTE_LAB_URL": "https://lab", "REMOTE_LAB_CA_FILE": "/missing/c.pem"}, "REMOTE_LAB_CA_FILE names a file"),
    ],
)
def test_an_invalid_setting_is_a_usage_error_of_the_command(environment: dict[str, str], message: str) -> None:
    shown = show_queue(None, **environment)
    assert shown.returncode == 2
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr
    assert "s3cret" not in shown.stderr


def test_the_command_names_an_unreachable_proxy(lab_server: LabServer) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    shown = show_queue(lab_server.url, HTTP_PROXY=proxy)
    assert shown.returncode == 1
    assert f"through the proxy {proxy} (HTTP_PROXY)" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_the_command_reports_an_answer_of_another_service(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    tmp_path.joinpath("queue").write_text("<html><title>An index</title></html>")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            shown = show_queue(f"http://127.0.0.1:{port}")
            while "refused" in shown.stderr and process.poll() is None:
                shown = show_queue(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
    assert shown.returncode == 1
    assert "An index: this is not a response of a lab server" in shown.stderr
    assert "<" not in shown.stderr
