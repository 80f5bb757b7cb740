"""The lab: acquiring it, its devices and its state."""

from typing import Any, Literal

from pydantic import BaseModel, Field, RootModel

LabState = Literal["starting", "running", "stopping", "none"]


class DeviceInfoDto(BaseModel):
    """One node of the lab. Stable: other packages import it."""

    name: str = Field(description="the node's name in the topology")
    raw: dict[str, Any] = Field(description="all data that netlab has about the node, including group variables")


class DevicesDto(RootModel[list[DeviceInfoDto]]):
    """All nodes of the lab."""

    def named(self, name: str) -> DeviceInfoDto:
        """The node with a name. Raises LookupError if there is none; the message lists the names."""
        devices = {device.name: device for device in self.root}
        if name not in devices:
            raise LookupError(f"the lab has no device {name!r}: it has {', '.join(sorted(devices)) or 'none'}")
        return devices[name]


class AcquireResponseDto(BaseModel):
    """A running lab, to which the acquire added a reference."""

    reused: bool = Field(description="true if the lab was running before this call")
    devices: list[DeviceInfoDto]


class LabStatusDto(BaseModel):
    """The lab of the calling session."""

    running: bool
    topology: str | None = Field(default=None, description="the uploaded file name of the topology")
    ref_count: int = Field(default=0, ge=0, description="number of acquires that are not yet released")
    devices: list[DeviceInfoDto] = Field(default_factory=list)
    netlab_status: str | None = Field(default=None, description="the lab's state as netlab reports it")
    state: LabState = "none"
    topology_sha256: str | None = Field(default=None, description="digest of the topology file's bytes")
    waiting_for: str | None = Field(
        default=None, description="what a starting lab waits for, for example memory; null if it does not wait"
    )
    error: str | None = Field(default=None, description="why the session's last lab failed or was lost")


class TopologyCheckDto(BaseModel):
    """The size of a topology that netlab accepts."""

    nodes: int = Field(ge=0)
    links: int = Field(ge=0)
