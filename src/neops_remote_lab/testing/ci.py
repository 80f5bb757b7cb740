"""What CI systems say of themselves in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_JOBS: Final = ("CI_JOB_URL", "BUILD_URL", "CIRCLE_BUILD_URL")
"""Variables in which GitLab, Jenkins and CircleCI leave the address of the running job."""


def github_run(environment: Mapping[str, str]) -> str | None:
    """The address of the run of a workflow of GitHub's that this process belongs to, if any."""
    if run := environment.get("GITHUB_RUN_ID"):
        return f"{environment.get('GITHUB_SERVER_URL')}/{environment.get('GITHUB_REPOSITORY')}/actions/runs/{run}"
    return None


def job(environment: Mapping[str, str]) -> str | None:
    """The address of the CI job that this process belongs to, if any."""
    return github_run(environment) or next((environment[name] for name in _JOBS if environment.get(name)), None)
