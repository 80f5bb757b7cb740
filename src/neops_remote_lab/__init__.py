"""Shares one netlab host among many: a FIFO queue of sessions, real virtual labs, and a pytest plugin."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neops_remote_lab.models import (
        AcquireResponseDto,
        ActiveSessionResponseDto,
        CreateSessionResponseDto,
        DeviceInfoDto,
        LabStatusDto,
        SessionInfoDto,
        SessionState,
        SessionStatusResponseDto,
    )

    __version__: str

__all__ = [
    "AcquireResponseDto",
    "ActiveSessionResponseDto",
    "CreateSessionResponseDto",
    "DeviceInfoDto",
    "LabStatusDto",
    "SessionInfoDto",
    "SessionState",
    "SessionStatusResponseDto",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: every pytest run imports this package, and few need what is in it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        return _version()
    from neops_remote_lab import models  # noqa: PLC0415 - see above

    return getattr(models, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata  # noqa: PLC0415 - see above

    try:
        return metadata.version("neops-remote-lab")
    except metadata.PackageNotFoundError:
        return "0+source"  # a source tree that is not installed
