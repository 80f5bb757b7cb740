"""Settings of the HTTP service, including those of the packages that it uses."""

from typing import Literal

from pydantic import Field

from neops_remote_lab.core.settings import PositiveSeconds, Seconds, SettingsGroup
from neops_remote_lab.labs.settings import DeviceSettings, LabSettings
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.settings import StoreSettings


class HttpSettings(SettingsGroup, title="HTTP"):
    """Connections and long-running responses."""

    http_parser: Literal["auto", "h11", "httptools"] = Field(
        default="auto", description="which parser reads requests; auto: httptools if it is installed"
    )
    send_timeout: PositiveSeconds = Field(
        default=60, description="seconds after which a client that does not read its responses is disconnected"
    )
    keep_alive: int = Field(
        default=75,  # longer than clients and proxies keep one, so that none sends a request while it is closed
        ge=1,
        description="seconds for which an idle connection is kept open",
    )
    retry_after: int = Field(default=2, ge=1, description="seconds in Retry-After")
    max_wait: PositiveSeconds = Field(default=60, description="maximum seconds of ?wait= (long poll)")
    proxy_connect_timeout: PositiveSeconds = Field(
        default=5,
        description="seconds within which another server of the queue must accept a connection, answer while its host "
        "is silent, and end a call of a session that has ended",
    )
    max_proxied_calls: int = Field(
        default=1024, ge=1, description="maximum number of concurrent calls passed on to other servers of the queue"
    )
    max_log_readers: int = Field(default=64, ge=1, description="maximum number of concurrent readers of logs")
    max_session_log_readers: int = Field(
        default=16, ge=1, description="maximum number of concurrent readers of logs per session"
    )
    log_backlog_bytes: int = Field(
        default=8 << 20,
        ge=1,
        description="how much of the end of a log is sent, and how far a slow reader may fall behind, in bytes",
    )


class UploadSettings(SettingsGroup, title="Uploads"):
    """Limits of uploads."""

    upload_timeout: PositiveSeconds = Field(
        default=60, description="seconds without a byte after which an upload is aborted"
    )
    max_topology_bytes: int = Field(default=1 << 20, ge=1, description="maximum size of a topology file, in bytes")
    max_extra_bytes: int = Field(default=64 << 20, ge=0, description="maximum total size of extra files, in bytes")
    max_extra_files: int = Field(default=200, ge=0, description="maximum number of extra files")
    max_yaml_nodes: int = Field(
        default=50_000, ge=1, description="maximum number of YAML nodes in a topology, after alias expansion"
    )


class MaintenanceSettings(SettingsGroup, title="Maintenance"):
    """Intervals and limits of the maintenance loop."""

    sql_poll: PositiveSeconds = Field(default=0.5, description="seconds between two checks for changes made with SQL")
    last_seen_write: PositiveSeconds = Field(
        default=10, description="seconds between two writes of the times at which sessions were last seen"
    )
    history_days: Seconds = Field(default=30, description="days for which ended sessions and labs are kept")
    wal_limit: int = Field(
        default=8 << 20,
        ge=1 << 20,
        description="size of the database's write-ahead log that causes a warning, in bytes",
    )


class ServiceSettings(SettingsGroup):
    """All settings of the HTTP service, independent of the program that runs it."""

    http: HttpSettings
    uploads: UploadSettings
    queue: QueueSettings
    labs: LabSettings
    devices: DeviceSettings
    netlab: NetlabSettings
    store: StoreSettings
    maintenance: MaintenanceSettings
