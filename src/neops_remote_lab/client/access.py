"""Access to a server: address, credentials, proxy and certificates.

All of them are checked before the first request. `InvalidSetting` names the variable that is wrong. Credentials never
appear in a displayed address, an exception, a log line or a `repr`.
"""

import base64
import importlib.util
import ipaddress
import os
import socket
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import httpx

from neops_remote_lab.client.exceptions import InvalidSetting
from neops_remote_lab.core import addresses
from neops_remote_lab.core.client_settings import LOCAL
from neops_remote_lab.core.text import hide_secrets

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they are credentials

KEEPALIVE: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Idle seconds before the first probe, seconds between two probes, and the number of unanswered probes allowed."""
_CREDENTIALS: Final = ("REMOTE_LAB_TOKEN", "REMOTE_LAB_CLIENT_CERT", "REMOTE_LAB_CLIENT_KEY", "REMOTE_LAB_CA_FILE")
_SOCKS: Final = ("socks5", "socks5h")


@dataclass(frozen=True)
class Credentials:
    """Credentials of the client for the server or a proxy in front of it, and the authorities that the client trusts.

    Attributes:
        token: `REMOTE_LAB_TOKEN`, sent as `Authorization: Bearer …`.
        client_cert: `REMOTE_LAB_CLIENT_CERT`, a PEM file with a certificate, and its key unless `client_key` has it.
        client_key: `REMOTE_LAB_CLIENT_KEY`, a PEM file with the certificate's private key, not encrypted.
        ca_file: `REMOTE_LAB_CA_FILE`, a PEM file with the authorities to trust instead of the default ones.
        sources: names of the attributes in messages, if they do not come from their variables.
    """

    NAMES: ClassVar = ("token", "client_cert", "client_key", "ca_file")

    token: str | None = field(default=None, repr=False)
    client_cert: str | Path | None = None
    client_key: str | Path | None = None
    ca_file: str | Path | None = None
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the credentials from the environment. An empty variable counts as not set."""
        token, certificate, key, authorities = (environment.get(name) or None for name in _CREDENTIALS)
        return cls(token, certificate, key, authorities)

    def environment(self) -> dict[str, str]:
        """Variables that pass these credentials on to a child process."""
        values = ((name, getattr(self, field)) for name, field in zip(_CREDENTIALS, self.NAMES, strict=True))
        return {name: str(value) for name, value in values if value is not None}

    def source(self, name: str) -> str:
        """The name of an attribute in messages."""
        return self.sources.get(name) or _CREDENTIALS[self.NAMES.index(name)]

    def over(self, other: "Credentials") -> "Credentials":
        """These credentials, completed by those of `other`. A certificate and its key are taken together."""
        pair = self if self.client_cert is not None else other
        return Credentials(
            self.token if self.token is not None else other.token,
            pair.client_cert,
            self.client_key if self.client_key is not None else pair.client_key,
            self.ca_file if self.ca_file is not None else other.ca_file,
            {name: (other if getattr(self, name) is None else self).source(name) for name in self.NAMES},
        )


@dataclass(frozen=True)
class Address:
    """An address without credentials, and its user name and password."""

    url: httpx.URL
    login: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Proxy:
    """The proxy that the environment names for one server.

    Attributes:
        variable: the variable that has its address.
        address: its address.
    """

    variable: str
    address: Address

    def __str__(self) -> str:
        return f"the proxy {self.address.url} ({self.variable})"


class Access:
    """The checked settings for connections to one server.

    Args:
        url: the server's address; it may contain a user name and a password.
        credentials: further credentials.
        name: name of the address in messages, such as its variable.

    Attributes:
        url: the server's address for display, without credentials and without a trailing slash.
        proxy: the proxy, if any.

    Raises:
        InvalidSetting: a setting is wrong; the message names the variable.
    """

    def __init__(self, url: str, credentials: Credentials | None = None, *, name: str = "base_url") -> None:
        self._address = parse_address(url, name)
        self._credentials = credentials or Credentials()
        self.url = str(self._address.url).rstrip("/")
        self.proxy = proxy_for(self._address.url)
        _check_token(self._credentials, self._address, name)
        self._tls = self._tls_context()

    def client(self, transport: httpx.BaseTransport | None = None) -> httpx.Client:
        """An HTTP client for the server. It follows no redirects, which could leak the credentials."""
        return httpx.Client(
            base_url=self._address.url,
            headers=self._authorization(),
            transport=transport or self._transport(),
            trust_env=False,  # this class reads the environment itself, with better messages
        )

    def web_socket(self, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
        """Arguments for `websockets.connect` to reach a path of the server with the same settings.

        Raises:
            InvalidSetting: the proxy is a SOCKS proxy, and the package that this needs is not installed.
        """
        options: dict[str, Any] = {"additional_headers": {**self._authorization(), **headers}, "proxy": None}
        url = self._address.url
        if url.scheme == "https":
            options["ssl"] = self._tls
        if self.proxy is not None:
            at = self.proxy.address
            if at.url.scheme in _SOCKS and importlib.util.find_spec("python_socks") is None:
                raise InvalidSetting(
                    f"{self.proxy.variable} names a SOCKS proxy, which needs another package for connections to "
                    f"devices: install python-socks[asyncio], or add {url.host} to NO_PROXY"
                )
            name, password = at.login or (None, None)
            options["proxy"] = str(at.url.copy_with(username=name, password=password))
            if at.url.scheme == "https":
                options["proxy_ssl"] = self._tls
        scheme = {"http": "ws", "https": "wss"}[url.scheme]
        return options | {"uri": str(url.copy_with(scheme=scheme)).rstrip("/") + path}

    def _authorization(self) -> dict[str, str]:
        token, login = self._credentials.token, self._address.login
        if token:
            return {"Authorization": f"Bearer {token}"}
        if login:
            return {"Authorization": f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"}
        return {}

    def _transport(self) -> httpx.HTTPTransport:
        proxy = None
        if self.proxy is not None:
            at = self.proxy.address
            proxy = httpx.Proxy(at.url, auth=at.login, ssl_context=self._tls if at.url.scheme == "https" else None)
        return httpx.HTTPTransport(verify=self._tls, proxy=proxy, trust_env=False, socket_options=_keepalive())

    def __str__(self) -> str:
        return f"{self.url} through {self.proxy}" if self.proxy else self.url

    def _tls_context(self) -> ssl.SSLContext:
        schemes = {self._address.url.scheme} | ({self.proxy.address.url.scheme} if self.proxy else set())
        if "https" not in schemes:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; loading authorities is slow
        context = _trusting(self._credentials)
        _load_client_certificate(context, self._credentials)
        return context


def _keepalive() -> list[tuple[int, int, int]]:
    """TCP keepalive options, to detect a dead host during a long wait for a response."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # other systems than Linux lack some of them
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


# Addresses


def parse_address(
    text: str, name: str, schemes: tuple[str, ...] = addresses.HTTP, example: str = "http://lab-host:8000"
) -> Address:
    """Parse the address of a server or proxy.

    Raises:
        InvalidSetting: the text is not such an address; the message names the variable and shows no credentials.
    """
    trouble = _trouble_with(text, schemes)
    if trouble is None:
        try:
            url = httpx.URL(text)
            url.raw_host.decode("ascii").encode("idna")  # as the DNS lookup will do
        except (httpx.InvalidURL, UnicodeError):
            trouble = addresses.INVALID
        else:
            trouble = addresses.trouble_with_parts(url.host, url.port)
    if trouble is not None:
        shown = hide_secrets(text)
        raise InvalidSetting(f"{name} {trouble}: it must be an address such as {example}, not {shown!r}")
    login = (url.username, url.password) if url.userinfo else None
    return Address(url.copy_with(username=None, password=None), login)


def _trouble_with(text: str, schemes: tuple[str, ...]) -> str | None:
    if text.partition("://")[0] == LOCAL and schemes == addresses.HTTP:
        return f"is {LOCAL!r}, which needs no server but works only in pytest"
    return addresses.trouble_with(text, schemes)


# Proxies


def proxy_for(url: httpx.URL) -> Proxy | None:
    """The proxy for an address, from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`; None if there is none.

    Raises:
        InvalidSetting: the address of the proxy cannot be used.
    """
    found = urllib.request.getproxies()
    kind = url.scheme if found.get(url.scheme) else "all"
    text = found.get(kind)
    if not text or _is_excepted(url, found.get("no", "")):
        return None
    variable = f"{kind}_proxy"
    if not os.environ.get(variable):
        variable = variable.upper()
    text = text if "://" in text else f"http://{text}"
    address = parse_address(text, variable, (*addresses.HTTP, *_SOCKS), "http://proxy:3128")
    if address.url.scheme in _SOCKS and importlib.util.find_spec("socksio") is None:
        raise InvalidSetting(
            f"{variable} names a SOCKS proxy, which needs another package: install httpx[socks], "
            f"or add {url.host} to NO_PROXY"
        )
    return Proxy(variable, address)


def _is_excepted(url: httpx.URL, no_proxy: str) -> bool:
    entries = [entry.strip() for entry in no_proxy.split(",")]
    if "*" in entries:
        return True
    try:
        host = ipaddress.ip_address(url.host)
    except ValueError:
        return bool(urllib.request.proxy_bypass(url.netloc.decode("ascii")))
    return any(host in network for entry in entries if (network := _network(entry)) is not None)


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    text = entry.replace("[", "").replace("]", "")
    for candidate in (text, text.rpartition(":")[0]):  # the second without a port
        try:
            return ipaddress.ip_network(candidate, strict=False)
        except ValueError:
            continue
    return None


# Certificates and tokens


def _check_token(credentials: Credentials, address: Address, name: str) -> None:
    token, source = credentials.token, credentials.source("token")
    if token is None:
        return
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise InvalidSetting(f"{source} has a space, a line break or another character that no token has: copy it anew")
    if address.login is not None:
        raise InvalidSetting(
            f"{name} holds a user name, and {source} is set: a request can carry one of them, remove the other"
        )


def _trusting(credentials: Credentials) -> ssl.SSLContext:
    ca_file = credentials.ca_file
    variable, path = credentials.source("ca_file"), ca_file
    if path is None:
        variable, path = "SSL_CERT_FILE", os.environ.get("SSL_CERT_FILE")
    if path:
        _require_readable(variable, path)
    elif (directory := os.environ.get("SSL_CERT_DIR")) and not Path(directory).is_dir():
        raise InvalidSetting(f"SSL_CERT_DIR names a directory that does not exist: {directory!r}")
    try:
        return ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context()
    except ssl.SSLError:
        raise InvalidSetting(f"{variable} names a file without PEM certificates: {str(path)!r}") from None
    except OSError as error:  # the only other file that a context opens
        raise InvalidSetting(f"SSLKEYLOGFILE names a file that cannot be written: {error.strerror}") from None


def _load_client_certificate(context: ssl.SSLContext, credentials: Credentials) -> None:
    certificate, key = credentials.client_cert, credentials.client_key
    certificate_source, key_source = credentials.source("client_cert"), credentials.source("client_key")
    if certificate is None:
        if key is not None:
            raise InvalidSetting(f"{key_source} is set without {certificate_source}: a key needs its certificate")
        return
    _require_readable(certificate_source, certificate)
    if key is not None:
        _require_readable(key_source, key)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # without it, OpenSSL prompts on the terminal
    except (ssl.SSLError, ValueError):
        raise InvalidSetting(
            f"{certificate_source}={str(certificate)!r} cannot be used: it must be a PEM certificate, with its "
            f"private key in the same file or in {key_source}, and the key must not be encrypted"
        ) from None


def _require_readable(variable: str, path: str | Path) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidSetting(f"{variable} names a file that cannot be read: {str(path)!r}: {reason}") from None
