"""The validated settings of the lab host."""

from dataclasses import dataclass, field
from functools import reduce
from typing import Self

from neops_remote_lab.client.access import Access, Credentials
from neops_remote_lab.client.exceptions import InvalidSetting
from neops_remote_lab.core.client_settings import LOCAL
from neops_remote_lab.testing import ci
from neops_remote_lab.testing.sources import Sources


@dataclass(frozen=True)
class LabHostSettings:
    """Address, credentials and timeouts of the lab host. Timeouts are in seconds.

    Attributes:
        url: address of the lab host, which may contain a user name and a password, or `LOCAL`.
        shown_url: the address without user name and password.
        credentials: token, certificate and authorities.
        request_timeout: for the response to a short call.
        session_timeout: for the wait in the queue.
        acquisition_timeout: until a lab is free and running.
        unreachable_timeout: for the retries of calls to an unreachable server.
        access: how tests reach devices; None if the fixtures decide.
        job: URL of the CI job that runs the tests; None outside CI.
    """

    url: str = field(repr=False)
    shown_url: str
    credentials: Credentials
    request_timeout: float
    session_timeout: float
    acquisition_timeout: float
    unreachable_timeout: float
    access: str | None
    job: str | None

    @property
    def is_local(self) -> bool:
        """Whether the labs run on this machine, without a server."""
        return self.url == LOCAL

    @classmethod
    def read(cls, sources: Sources) -> Self:
        """Read and validate the settings, including proxies and certificates from the environment.

        Raises:
            RuntimeError: no address is set.
            InvalidSetting: a setting is invalid; the message names the flag, the variable or the ini key.
        """
        if (given := sources.given("url")) is None:
            raise RuntimeError("REMOTE_LAB_URL is not set: it names the lab host, for example http://lab-host:8000")
        credentials = reduce(Credentials.over, map(_credentials, sources.apart()))
        url, source = given
        shown = LOCAL if url == LOCAL else Access(url, credentials, name=source).url
        try:
            return cls(
                url,
                shown,
                credentials,
                request_timeout=sources.value("request_timeout"),
                session_timeout=sources.value("session_timeout"),
                acquisition_timeout=sources.value("acquisition_timeout"),
                unreachable_timeout=sources.value("unreachable_timeout"),
                access=sources.value("access"),
                job=ci.job(sources.environment),
            )
        except ValueError as error:
            raise InvalidSetting(str(error)) from None


def _credentials(source: Sources) -> Credentials:
    given = {name: found for name in Credentials.NAMES if (found := source.given(name)) is not None}
    values = {name: value for name, (value, _) in given.items()}
    return Credentials(**values, sources={name: source for name, (_, source) in given.items()})
