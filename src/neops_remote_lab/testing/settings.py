"""What the environment says about the lab host: the plugin's only look at it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from neops_remote_lab.client.access import Access, Credentials
from neops_remote_lab.client.connection import UNREACHABLE_TIMEOUT
from neops_remote_lab.client.exceptions import InvalidSetting

_CI_JOBS = ("CI_JOB_URL", "BUILD_URL", "CIRCLE_BUILD_URL")
"""Variables in which GitLab, Jenkins and CircleCI leave the address of the running job."""


@dataclass(frozen=True)
class LabHostSettings:
    """Where the lab host is and how long to wait for it; times are in seconds.

    Attributes:
        url: `REMOTE_LAB_URL`, which may hold a user name and a password.
        shown_url: the same without them.
        request_timeout: `REMOTE_LAB_REQUEST_TIMEOUT`, for one short call.
        session_timeout: `REMOTE_LAB_SESSION_TIMEOUT`, in the queue.
        acquisition_timeout: `REMOTE_LAB_ACQUISITION_TIMEOUT`, for a lab to be free and to start.
        unreachable_timeout: `REMOTE_LAB_UNREACHABLE_TIMEOUT`, for a server that cannot be reached.
        job: the address of the CI job that runs the tests, if any.
    """

    url: str = field(repr=False)
    shown_url: str
    request_timeout: float
    session_timeout: float
    acquisition_timeout: float
    unreachable_timeout: float
    job: str | None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings, and check that with them and with what the environment says of proxies and certificates
        there is a way to the server.

        Raises:
            RuntimeError: `REMOTE_LAB_URL` is not set.
            InvalidSetting: something cannot work; one sentence that names the variable.
        """
        url = environment.get("REMOTE_LAB_URL")
        if not url:
            raise RuntimeError("REMOTE_LAB_URL is not set: it names the lab host, for example http://lab-host:8000")
        access = Access(url, Credentials.read(environment), name="REMOTE_LAB_URL")
        return cls(
            url,
            access.url,
            _seconds(environment, "REMOTE_LAB_REQUEST_TIMEOUT", 30),
            _seconds(environment, "REMOTE_LAB_SESSION_TIMEOUT", 600),
            _seconds(environment, "REMOTE_LAB_ACQUISITION_TIMEOUT", 600),
            _seconds(environment, "REMOTE_LAB_UNREACHABLE_TIMEOUT", UNREACHABLE_TIMEOUT),
            _ci_job(environment),
        )


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InvalidSetting(f"{name} must be a number of seconds above 0, not {text!r}")
    return value


def _ci_job(environment: Mapping[str, str]) -> str | None:
    if run := environment.get("GITHUB_RUN_ID"):
        return f"{environment.get('GITHUB_SERVER_URL')}/{environment.get('GITHUB_REPOSITORY')}/actions/runs/{run}"
    return next((environment[name] for name in _CI_JOBS if environment.get(name)), None)
