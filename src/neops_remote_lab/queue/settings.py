"""The settings of the queue."""

from pydantic import Field

from neops_remote_lab.core.settings import PositiveSeconds, Seconds, SettingsGroup


class QueueSettings(SettingsGroup, title="Queue"):
    """How long sessions may last."""

    waiting_timeout: PositiveSeconds = Field(
        default=120, description="seconds without a call of its client until a waiting session is stale, and ends"
    )
    active_timeout: PositiveSeconds = Field(
        default=120, description="seconds without a call of its client until the active session is stale, and ends"
    )
    max_hold: Seconds = Field(default=0, description="seconds for which a session may be active; 0: without limit")
