"""The settings of what a server does with labs."""

from typing import Literal

from pydantic import Field

from neops_remote_lab.core.settings import PositiveSeconds, Seconds, SettingsGroup


class LabSettings(SettingsGroup, title="Labs"):
    """Labs on behalf of sessions."""

    on_exit: Literal["teardown", "keep"] = Field(
        default="teardown", description="what becomes of the lab when the server ends"
    )
    max_prepared: int = Field(
        default=8, ge=0, description="checked topologies that are kept prepared for each waiting session"
    )
    quarantine_retry: PositiveSeconds = Field(
        default=60, description="seconds between two sweeps of a quarantined host"
    )
    ready_cache: Seconds = Field(
        default=5, description="seconds for which GET /readyz repeats what it has found on the host"
    )
    lab_threads: int = Field(default=8, ge=2, description="threads for netlab, files and locks")
