"""Settings of the queue."""

from pydantic import Field

from neops_remote_lab.core.settings import PositiveSeconds, Seconds, SettingsGroup


class QueueSettings(SettingsGroup, title="Queue"):
    """Timeouts and limits of sessions."""

    waiting_timeout: PositiveSeconds = Field(
        default=120, description="seconds without a call after which a waiting session is stale and is ended"
    )
    active_timeout: PositiveSeconds = Field(
        default=120, description="seconds without a call after which the active session is stale and is ended"
    )
    max_hold: Seconds = Field(default=0, description="seconds for which a session may be active; 0: no limit")
