"""Access to the server: addresses, credentials, proxies and certificates, and errors in them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest
import trustme

from neops_remote_lab.client.access import Access, Credentials, parse_address, proxy_for
from neops_remote_lab.testing.settings import LabHostSettings
from neops_remote_lab.testing.sources import Sources

PASSWORD = "s3cret"  # noqa: S105 - no account has it
NOT_UTF8 = b"http://lab\xff".decode(errors="surrogateescape")


def read(environment: dict[str, str]) -> LabHostSettings:
    return LabHostSettings.read(Sources({}, environment, {}))


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://lab:8000\n", "a space or a line break"),
        (" http://lab:8000", "a space or a line break"),
        ("http://lab host:8000", "a space, a control character"),
        ("http://lab\x1b[31m:8000", "a space, a control character"),
        (NOT_UTF8, "not UTF-8"),
        ("lab:8000", "lacks the scheme"),
        ("lab", "lacks the scheme"),
        ("//lab:8000", "lacks the scheme"),
        ("ftp://lab", "another scheme"),
        ("htttp://lab", "another scheme"),
        ("http://", "names no host"),
        ("http:///queue", "names no host"),
        ("http://:8000", "names no host"),
        ("http://lab:", "lacks the port number"),
        ("http://lab:/path", "lacks the port number"),
        ("http://lab:80a", "no valid host name or port"),
        ("http://lab:99999", "no valid port"),
        ("http://lab:0", "no valid port"),
        ("http://lab:-1", "no valid"),
        ("http://[::1", "no valid"),
        ("http://1.2.3.999", "no valid"),
        ("http://a..b", "no valid"),
        (f"http://{'a' * 70}", "no valid"),
        (f"http://lab/?token={PASSWORD}", "a query or a fragment"),
        (f"http://lab/#{PASSWORD}", "a query or a fragment"),
        (f"https://user:{PASSWORD}#1@lab", "a query or a fragment"),
        (f"https://user:{PASSWORD}@lab:80a", "no valid"),
        (f"https://user:{PASSWORD}@lab ", "a space or a line break"),
        (f"user:{PASSWORD}@lab", "lacks the scheme"),
    ],
)
def test_an_invalid_address_is_refused_with_one_message(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^REMOTE_LAB_URL ") as caught:
        read({"REMOTE_LAB_URL": url})
    message = str(caught.value)
    assert reason in message
    assert message.isprintable()
    assert PASSWORD not in message


@pytest.mark.parametrize(
    ("url", "shown", "login"),
    [
        ("http://lab:8000", "http://lab:8000", None),
        ("http://lab:8000/", "http://lab:8000", None),
        ("HTTPS://Lab/lab-1/", "https://lab/lab-1", None),
        ("http://[::1]:8000", "http://[::1]:8000", None),
        ("https://ann:p%40ss%3A%2F@lab", "https://lab", ("ann", "p@ss:/")),
        ("https://ann@lab", "https://lab", ("ann", "")),
    ],
)
def test_an_address_is_shown_without_its_credentials(url: str, shown: str, login: tuple[str, str] | None) -> None:
    assert Access(url).url == shown
    assert parse_address(url, "url").login == login


def test_no_representation_shows_credentials() -> None:
    settings = read({"REMOTE_LAB_URL": f"https://user:{PASSWORD}@lab"})
    access = Access(f"https://user:{PASSWORD}@lab")
    things = [settings, access, vars(access), Credentials(PASSWORD), parse_address(f"http://u:{PASSWORD}@lab", "url")]
    things += [access.client(), Access("http://lab", Credentials(PASSWORD)).client()]
    assert not [thing for thing in things if PASSWORD in f"{thing} {thing!r}"]


def test_a_missing_address_differs_from_an_invalid_one() -> None:
    with pytest.raises(RuntimeError, match="REMOTE_LAB_URL is not set"):
        read({})


# Credentials


def test_credentials_are_sent_but_never_in_the_address() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(204)

    for access in (Access("http://ann:pw@lab/x"), Access("http://lab/x", Credentials("t0k"))):
        access.client(httpx.MockTransport(answer)).get("/queue")
    assert [str(request.url) for request in seen] == ["http://lab/x/queue"] * 2
    assert [request.headers["Authorization"] for request in seen] == ["Basic YW5uOnB3", "Bearer t0k"]


@pytest.mark.parametrize("token", ["two words", "line\n", "é", "", NOT_UTF8])
def test_a_token_that_is_not_valid_in_a_header_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match=r"^REMOTE_LAB_TOKEN has a space") as caught:
        Access("http://lab", Credentials(token))
    assert not token or token not in str(caught.value)


def test_a_password_and_a_token_exclude_each_other() -> None:
    environment = {"REMOTE_LAB_URL": f"http://user:{PASSWORD}@lab", "REMOTE_LAB_TOKEN": "t0k"}
    with pytest.raises(ValueError, match="REMOTE_LAB_URL holds a user name, and REMOTE_LAB_TOKEN is set"):
        read(environment)


def test_arguments_override_the_environment() -> None:
    environment = Credentials("env", "env.pem", "env.key", "env-ca.pem")
    assert Credentials().over(environment) == environment
    assert Credentials("t", "c.pem").over(environment) == Credentials("t", "c.pem", None, "env-ca.pem")
    assert Credentials.read({"REMOTE_LAB_TOKEN": "t", "REMOTE_LAB_CA_FILE": ""}) == Credentials("t")


# Certificates


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with a certificate and its key, another key, and files that hold neither."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in ("ann", "bob"):
        certificate = authority.issue_cert(f"{name}@example.net")
        certificate.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
        certificate.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{name}-both.pem"))
    tmp_path.joinpath("text.pem").write_text("no certificate\n")
    command = ["openssl", "pkey", "-aes128", "-passout", "pass:abc", "-in", "ann.key", "-out", "encrypted.key"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"REMOTE_LAB_CA_FILE": "missing.pem"}, "REMOTE_LAB_CA_FILE names a file that cannot be read"),
        ({"REMOTE_LAB_CA_FILE": "."}, "REMOTE_LAB_CA_FILE names a file that cannot be read"),
        ({"REMOTE_LAB_CA_FILE": "text.pem"}, "REMOTE_LAB_CA_FILE names a file without PEM certificates"),
        ({"REMOTE_LAB_CLIENT_CERT": "missing.pem"}, "REMOTE_LAB_CLIENT_CERT names a file that cannot be read"),
        ({"REMOTE_LAB_CLIENT_CERT": "ann.pem"}, "REMOTE_LAB_CLIENT_CERT=.* cannot be used"),
        ({"REMOTE_LAB_CLIENT_CERT": "text.pem"}, "REMOTE_LAB_CLIENT_CERT=.* cannot be used"),
        (
            {"REMOTE_LAB_CLIENT_CERT": "ann.pem", "REMOTE_LAB_CLIENT_KEY": "missing.key"},
            "REMOTE_LAB_CLIENT_KEY names a file that cannot be read",
        ),
        ({"REMOTE_LAB_CLIENT_CERT": "ann.pem", "REMOTE_LAB_CLIENT_KEY": "bob.key"}, "CLIENT_CERT=.* cannot be used"),
        (
            {"REMOTE_LAB_CLIENT_CERT": "ann.pem", "REMOTE_LAB_CLIENT_KEY": "encrypted.key"},
            "the key must not be encrypted",
        ),
        ({"REMOTE_LAB_CLIENT_KEY": "ann.key"}, "REMOTE_LAB_CLIENT_KEY is set without REMOTE_LAB_CLIENT_CERT"),
    ],
)
def test_an_unusable_certificate_is_reported_with_its_variable(
    files: Path, variables: dict[str, str], message: str
) -> None:
    environment = {name: str(files / value) for name, value in variables.items()}
    with pytest.raises(ValueError, match=message):
        read({"REMOTE_LAB_URL": "https://lab", **environment})
    read({"REMOTE_LAB_URL": "http://lab", **environment})  # plain HTTP uses no certificate


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SSL_CERT_FILE", "missing.pem", "SSL_CERT_FILE names a file that cannot be read"),
        ("SSL_CERT_FILE", "text.pem", "SSL_CERT_FILE names a file without PEM certificates"),
        ("SSL_CERT_DIR", "missing", "SSL_CERT_DIR names a directory that does not exist"),
        ("SSLKEYLOGFILE", "missing/keys", "SSLKEYLOGFILE names a file that cannot be written"),
    ],
)
def test_an_unusable_authority_of_the_environment_is_reported_with_its_variable(
    files: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, str(files / value))
    with pytest.raises(ValueError, match=message):
        Access("https://lab")
    Access("http://lab")


@pytest.mark.parametrize(("certificate", "key"), [("ann.pem", "ann.key"), ("ann-both.pem", None)])
def test_a_certificate_and_its_key_may_be_in_one_file_or_two(files: Path, certificate: str, key: str | None) -> None:
    Access("https://lab", Credentials(None, files / certificate, key and files / key, files / "ca.pem"))


# Proxies


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("http://lab", {}, None),
        ("http://lab", {"HTTP_PROXY": "http://proxy:3128"}, "the proxy http://proxy:3128 (HTTP_PROXY)"),
        ("http://lab", {"http_proxy": "proxy:3128"}, "the proxy http://proxy:3128 (http_proxy)"),
        ("https://lab", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("https://lab", {"HTTPS_PROXY": "http://proxy:3128"}, "the proxy http://proxy:3128 (HTTPS_PROXY)"),
        ("https://lab", {"ALL_PROXY": "http://proxy:3128"}, "the proxy http://proxy:3128 (ALL_PROXY)"),
        ("http://lab", {"HTTP_PROXY": f"http://u:{PASSWORD}@proxy"}, "the proxy http://proxy (HTTP_PROXY)"),
        ("http://lab", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "lab"}, None),
        ("http://lab.example.net", {"HTTP_PROXY": "http://proxy", "NO_PROXY": ".example.net"}, None),
        ("http://lab:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "*"}, None),
        ("http://127.0.0.1:8000", {"HTTP_PROXY": "http://proxy"}, "the proxy http://proxy (HTTP_PROXY)"),
        ("http://127.0.0.1:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "localhost,127.0.0.0/8"}, None),
        ("http://127.0.0.1:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "127.0.0.1:8000"}, None),
        ("http://[fe80::1]", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "localhost,fe80::/10"}, None),
        ("http://[::1]:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "[::1]"}, None),
        ("http://lab", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "fe80::/10, [, :::, ://"}, "the proxy http://proxy"),
        # an unusable proxy is no error if the server is reached without it
        ("http://lab", {"ALL_PROXY": "socks5://proxy", "NO_PROXY": "lab"}, None),
        ("http://lab", {"HTTPS_PROXY": "nonsense://"}, None),
    ],
)
def test_the_proxy_is_chosen_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str, variables: dict[str, str], expected: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    proxy = proxy_for(httpx.URL(url))
    assert (proxy is None) if expected is None else str(proxy).startswith(expected)
    Access(url).client().close()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HTTP_PROXY", "http://proxy:3128\n", "HTTP_PROXY begins or ends with a space"),
        ("http_proxy", "http://proxy:", "http_proxy lacks the port number"),
        ("HTTP_PROXY", "http://proxy:80a", "HTTP_PROXY has no valid host name or port"),
        ("HTTP_PROXY", f"ftp://user:{PASSWORD}@proxy", "HTTP_PROXY has another scheme"),
        ("ALL_PROXY", "socks5://proxy:1080", "ALL_PROXY names a SOCKS proxy, .* or add lab to NO_PROXY"),
        ("ALL_PROXY", "socks4://proxy:1080", "ALL_PROXY has another scheme"),
    ],
)
def test_an_invalid_proxy_is_reported_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message) as caught:
        read({"REMOTE_LAB_URL": "http://lab"})
    assert PASSWORD not in str(caught.value)
