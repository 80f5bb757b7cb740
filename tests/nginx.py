"""A real nginx with the shipped configuration, in front of a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme

from tests.fakes import wait_until
from tests.server import LabServer, free_port

SHIPPED = Path(__file__).parents[1] / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
TOKEN = "a-long-random-string"  # noqa: S105 - the example of the shipped file
MAIN = """\
daemon off;
{user}
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    include {root}/site.conf;
}}
"""

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@dataclass(frozen=True)
class Files:
    """The certificate files of a test."""

    root: Path

    @property
    def ca(self) -> Path:
        return self.root / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.root / "user.pem"

    @property
    def key(self) -> Path:
        return self.root / "user.key"


def make_certificates(root: Path) -> Files:
    """Create an authority, a certificate for `localhost`, and one for a user."""
    root.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(root / "ca.pem"))
    for name, identity in (("server", "localhost"), ("user", "ann@example.net")):
        certificate = authority.issue_cert(identity)
        certificate.cert_chain_pems[0].write_to_path(str(root / f"{name}.pem"))
        certificate.private_key_pem.write_to_path(str(root / f"{name}.key"))
    return Files(root)


@dataclass(frozen=True)
class Nginx:
    """A running proxy, and the credentials of its clients."""

    port: int
    plain_port: int
    files: Files
    way: str

    @property
    def bare_url(self) -> str:
        """The URL without credentials."""
        return f"https://localhost:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a client."""
        login = "ann:s3cret%40%2F@" if self.way == "password" else ""
        variables = {
            "REMOTE_LAB_URL": f"https://{login}localhost:{self.port}",
            "REMOTE_LAB_CA_FILE": str(self.files.ca),
        }
        if self.way == "token":
            variables["REMOTE_LAB_TOKEN"] = TOKEN
        if self.way == "certificate":
            variables |= {
                "REMOTE_LAB_CLIENT_CERT": str(self.files.certificate),
                "REMOTE_LAB_CLIENT_KEY": str(self.files.key),
            }
        return variables


@contextmanager
def running_nginx(root: Path, server: LabServer, way: str) -> Iterator[Nginx]:
    """The shipped configuration with one of its three ways to authenticate: certificate, password or token."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    root.mkdir()
    proxy = Nginx(free_port(), free_port(), make_certificates(root / "tls"), way)
    root.joinpath("site.conf").write_text(_site(root, server, proxy))
    root.joinpath("users").write_text("ann:{PLAIN}s3cret@/\n")
    user = "user root;" if os.getuid() == 0 else ""  # so that the workers can read the directory of the test
    root.joinpath("nginx.conf").write_text(MAIN.format(root=root, user=user))
    command = [NGINX, "-e", str(root / "error.log"), "-p", str(root), "-c", str(root / "nginx.conf")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: _serves(process, proxy), 30, f"nginx does not start: {root / 'error.log'}")
        yield proxy
    finally:
        process.terminate()
        process.wait(30)


def _site(root: Path, server: LabServer, proxy: Nginx) -> str:
    tls = proxy.files.root
    changes = {
        "listen 80;": f"listen 127.0.0.1:{proxy.plain_port};",
        "listen 443 ssl;": f"listen 127.0.0.1:{proxy.port} ssl;",
        "https://$host$request_uri": f"https://$host:{proxy.port}$request_uri",
        "server_name lab-host.example.net;": "server_name localhost;",
        "/etc/ssl/certs/lab-host.pem": f"{tls}/server.pem",
        "/etc/ssl/private/lab-host.key": f"{tls}/server.key",
        "/etc/ssl/certs/lab-users-ca.pem": f"{tls}/ca.pem",
        "/etc/nginx/lab-users": f"{root}/users",
        "http://127.0.0.1:8000": server.url,
    }
    if proxy.way != "certificate":
        changes["ssl_verify_client on;"] = ""
    if proxy.way == "password":
        changes |= {"# auth_basic ": "auth_basic ", "# auth_basic_user_file": "auth_basic_user_file"}
    if proxy.way == "token":
        changes["# if ($http"] = "if ($http"
    text = SHIPPED.read_text()
    for shipped, ours in changes.items():
        assert shipped in text, f"{SHIPPED} does not contain {shipped!r}"
        text = text.replace(shipped, ours)
    return text


def _serves(process: subprocess.Popen[bytes], proxy: Nginx) -> bool:
    assert process.poll() is None, "nginx ended"
    try:
        return httpx.get(f"http://localhost:{proxy.plain_port}/").status_code == 308
    except httpx.TransportError:
        return False
