"""The settings of the HTTP service, and of the rooms that it puts together."""

from typing import Literal

from pydantic import Field

from neops_remote_lab.core.settings import PositiveSeconds, Seconds, SettingsGroup
from neops_remote_lab.labs.settings import DeviceSettings, LabSettings
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.settings import StoreSettings


class HttpSettings(SettingsGroup, title="HTTP"):
    """Connections, and answers that take long."""

    http_parser: Literal["auto", "h11", "httptools"] = Field(
        default="auto", description="which parser reads requests; auto: httptools where it is installed"
    )
    send_timeout: PositiveSeconds = Field(
        default=60, description="seconds after which a client that does not read its answers is disconnected"
    )
    retry_after: int = Field(default=2, ge=1, description="seconds in Retry-After")
    max_wait: PositiveSeconds = Field(default=60, description="longest seconds that ?wait= holds an answer")
    max_log_readers: int = Field(default=64, ge=1, description="most readers of logs at the same time")
    max_session_log_readers: int = Field(default=16, ge=1, description="most of them for one session")
    log_backlog_bytes: int = Field(
        default=8 << 20,
        ge=1,
        description="how much of a log's end is shown, and how far a reader of its stream may fall behind, in bytes",
    )


class UploadSettings(SettingsGroup, title="Uploads"):
    """How much may be uploaded."""

    upload_timeout: PositiveSeconds = Field(
        default=60, description="seconds without a byte after which an upload is given up"
    )
    max_topology_bytes: int = Field(default=1 << 20, ge=1, description="largest topology file, in bytes")
    max_extra_bytes: int = Field(default=64 << 20, ge=0, description="largest sum of the extra files, in bytes")
    max_extra_files: int = Field(default=200, ge=0, description="most extra files")
    max_yaml_nodes: int = Field(default=50_000, ge=1, description="most YAML nodes of a topology, aliases expanded")


class MaintenanceSettings(SettingsGroup, title="Maintenance"):
    """What the maintenance loop does to the database, and how often."""

    sql_poll: PositiveSeconds = Field(
        default=0.5, description="seconds between two looks for changes made with plain SQL"
    )
    last_seen_write: PositiveSeconds = Field(
        default=10, description="seconds between two writes of when sessions were last seen"
    )
    history_days: Seconds = Field(default=30, description="days for which ended sessions and labs are kept")
    wal_limit: int = Field(
        default=8 << 20, ge=1 << 20, description="largest write-ahead log of the database, in bytes, without a warning"
    )


class ServiceSettings(SettingsGroup):
    """All that the HTTP service needs to know, whoever serves it."""

    http: HttpSettings
    uploads: UploadSettings
    queue: QueueSettings
    labs: LabSettings
    devices: DeviceSettings
    netlab: NetlabSettings
    store: StoreSettings
    maintenance: MaintenanceSettings
