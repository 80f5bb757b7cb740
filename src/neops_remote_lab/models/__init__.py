"""Request and response models of the HTTP API."""

from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.models.device import ConsoleControlDto, ExecRequestDto, ExecResponseDto
from neops_remote_lab.models.health import DebugHealthDto, ErrorDto, ReadyDto
from neops_remote_lab.models.lab import AcquireResponseDto, DeviceInfoDto, LabState, LabStatusDto, TopologyCheckDto
from neops_remote_lab.models.queue import QueueDto, QueueEntryDto, QueueHostDto
from neops_remote_lab.models.session import (
    ActiveSessionResponseDto,
    CreateSessionRequestDto,
    CreateSessionResponseDto,
    SessionInfoDto,
    SessionStatusResponseDto,
)

__all__ = [
    "AcquireResponseDto",
    "ActiveSessionResponseDto",
    "ConsoleControlDto",
    "CreateSessionRequestDto",
    "CreateSessionResponseDto",
    "DebugHealthDto",
    "DeviceInfoDto",
    "ErrorDto",
    "ExecRequestDto",
    "ExecResponseDto",
    "LabState",
    "LabStatusDto",
    "QueueDto",
    "QueueEntryDto",
    "QueueHostDto",
    "ReadyDto",
    "SessionInfoDto",
    "SessionState",
    "SessionStatusResponseDto",
    "TopologyCheckDto",
]
