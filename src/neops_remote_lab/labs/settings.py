"""Settings of the server for labs."""

import os
from typing import Annotated, Literal

from pydantic import Field

from neops_remote_lab.core.settings import ComputedDefault, PositiveSeconds, Seconds, SettingsGroup


class LabSettings(SettingsGroup, title="Labs"):
    """How the server starts, checks and ends labs."""

    on_exit: Literal["teardown", "keep"] = Field(
        default="teardown", description="what happens to the lab when the server ends"
    )
    max_prepared: int = Field(default=8, ge=0, description="maximum number of prepared topologies per waiting session")
    quarantine_retry: PositiveSeconds = Field(
        default=60, description="seconds between two sweeps of a quarantined host"
    )
    ready_cache: Seconds = Field(default=5, description="seconds for which GET /readyz caches the state of the host")
    lab_starts: Annotated[int, ComputedDefault("the number of processors")] = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="maximum number of labs that start at a time, on a host with several slots",
    )
    node_memory: int = Field(
        default=512 << 20,
        ge=0,
        description="memory that a node is expected to use if nothing is known about its image, in bytes",
    )
    memory_reserve: int = Field(
        default=512 << 20, ge=0, description="memory of the host that is not used for labs, in bytes"
    )
    memory_interval: PositiveSeconds = Field(
        default=30, description="seconds between two measurements of the memory of labs, on a host with several slots"
    )
    lab_threads: int = Field(default=8, ge=2, description="threads for netlab, files and locks")


class DeviceSettings(SettingsGroup, title="Devices"):
    """Limits of commands in devices and of connections to them."""

    exec_threads: int = Field(default=8, ge=1, description="maximum number of concurrent commands in devices")
    exec_timeout: PositiveSeconds = Field(
        default=60, description="default timeout of a command in a device, in seconds"
    )
    max_exec_timeout: PositiveSeconds = Field(
        default=3600, description="maximum timeout that a client may set for a command in a device, in seconds"
    )
    max_exec_request_bytes: int = Field(
        default=8 << 20,
        ge=1,
        description="maximum size of a request to run a command in a device, including standard input, in bytes",
    )
    max_exec_output_bytes: int = Field(
        default=8 << 20,
        ge=1,
        description="maximum size of standard output and of standard error of a command, in bytes",
    )
    connect_timeout: PositiveSeconds = Field(
        default=10, description="seconds within which a device must accept a connection"
    )
    connection_idle_timeout: PositiveSeconds = Field(
        default=3600, description="seconds without data after which a connection to a device is closed"
    )
    max_connections: int = Field(default=512, ge=1, description="maximum number of connections to devices")
    max_session_connections: int = Field(
        default=256, ge=1, description="maximum number of connections to devices per session"
    )
    max_message_bytes: int = Field(
        default=1 << 20, ge=1, description="maximum size of a WebSocket message from a client, in bytes"
    )
    connection_piece_bytes: int = Field(
        default=128 << 10, ge=1, description="maximum size of a WebSocket message to a client, in bytes"
    )
