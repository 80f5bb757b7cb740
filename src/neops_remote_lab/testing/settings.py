"""What the environment says about the lab host: the plugin's only look at it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

_CI_JOBS = ("CI_JOB_URL", "BUILD_URL", "CIRCLE_BUILD_URL")
"""Variables in which GitLab, Jenkins and CircleCI leave the address of the running job."""


@dataclass(frozen=True)
class LabHostSettings:
    """Where the lab host is and how long to wait for it; times are in seconds.

    Attributes:
        url: `REMOTE_LAB_URL`.
        request_timeout: `REMOTE_LAB_REQUEST_TIMEOUT`, for one short call.
        session_timeout: `REMOTE_LAB_SESSION_TIMEOUT`, in the queue.
        acquisition_timeout: `REMOTE_LAB_ACQUISITION_TIMEOUT`, for a lab to be free and to start.
        job: the address of the CI job that runs the tests, if any.
    """

    url: str
    request_timeout: float
    session_timeout: float
    acquisition_timeout: float
    job: str | None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings.

        Raises:
            RuntimeError: `REMOTE_LAB_URL` is not set, or a time is not a number above 0.
        """
        url = environment.get("REMOTE_LAB_URL")
        if not url:
            raise RuntimeError("REMOTE_LAB_URL is not set: it names the lab host, for example http://lab-host:8000")
        return cls(
            url,
            _seconds(environment, "REMOTE_LAB_REQUEST_TIMEOUT", 30),
            _seconds(environment, "REMOTE_LAB_SESSION_TIMEOUT", 600),
            _seconds(environment, "REMOTE_LAB_ACQUISITION_TIMEOUT", 600),
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
        raise RuntimeError(f"{name} must be a number of seconds above 0, not {text!r}")
    return value


def _ci_job(environment: Mapping[str, str]) -> str | None:
    if run := environment.get("GITHUB_RUN_ID"):
        return f"{environment.get('GITHUB_SERVER_URL')}/{environment.get('GITHUB_REPOSITORY')}/actions/runs/{run}"
    return next((environment[name] for name in _CI_JOBS if environment.get(name)), None)
