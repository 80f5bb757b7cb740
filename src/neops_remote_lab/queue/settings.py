"""Settings of the queue."""

from typing import Annotated

from pydantic import AfterValidator, Field

from neops_remote_lab.core.addresses import server_url
from neops_remote_lab.core.settings import ComputedDefault, PositiveSeconds, Seconds, SettingsGroup

ServerUrl = Annotated[str, AfterValidator(server_url)]


class QueueSettings(SettingsGroup, title="Queue"):
    """Timeouts and limits of sessions."""

    waiting_timeout: PositiveSeconds = Field(
        default=120, description="seconds without a call after which a waiting session is stale and is ended"
    )
    active_timeout: PositiveSeconds = Field(
        default=120, description="seconds without a call after which the active session is stale and is ended"
    )
    advertise: Annotated[ServerUrl | None, ComputedDefault("`http://`, the machine's name, and the port")] = Field(
        default=None,
        description="URL at which the other servers of the queue reach this one: scheme, host and port",
    )
    host_beat: PositiveSeconds = Field(
        default=2, description="seconds between two signs of life to the other servers of the queue"
    )
    host_lease: PositiveSeconds = Field(
        default=15,
        description="seconds without a sign of life after which no session becomes active on a host, and those without "
        "a lab wait again",
    )
    host_gone_after: PositiveSeconds = Field(
        default=600, description="seconds without a sign of life after which the labs of a host count as lost"
    )
    max_hold: Seconds = Field(default=0, description="seconds for which a session may be active; 0: no limit")
