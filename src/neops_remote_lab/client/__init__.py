"""`RemoteLabClient`, what it raises, and how a server is reached."""

from typing import TYPE_CHECKING, Any

from neops_remote_lab.client.exceptions import InvalidSetting, SessionClosed, SessionEnded

if TYPE_CHECKING:
    from neops_remote_lab.client.lab_client import RemoteLabClient

__all__ = ["InvalidSetting", "RemoteLabClient", "SessionClosed", "SessionEnded"]


def __getattr__(name: str) -> Any:
    """Import the client when it is asked for: the pytest plugin reads its settings without an HTTP client."""
    if name != "RemoteLabClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from neops_remote_lab.client.lab_client import RemoteLabClient  # noqa: PLC0415 - see above

    return RemoteLabClient
