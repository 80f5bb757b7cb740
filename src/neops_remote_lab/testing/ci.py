"""Reads the environment variables of CI systems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_JOBS: Final = ("CI_JOB_URL", "BUILD_URL", "CIRCLE_BUILD_URL")
"""Variables of GitLab, Jenkins and CircleCI with the URL of the running job."""


def github_run(environment: Mapping[str, str]) -> str | None:
    """The URL of the GitHub workflow run that this process belongs to, if any."""
    if run := environment.get("GITHUB_RUN_ID"):
        return f"{environment.get('GITHUB_SERVER_URL')}/{environment.get('GITHUB_REPOSITORY')}/actions/runs/{run}"
    return None


def job(environment: Mapping[str, str]) -> str | None:
    """The URL of the CI job that this process belongs to, if any."""
    return github_run(environment) or next((environment[name] for name in _JOBS if environment.get(name)), None)
