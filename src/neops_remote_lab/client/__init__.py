"""The Python client: `RemoteLabClient` and its exceptions."""

from typing import TYPE_CHECKING, Any

from neops_remote_lab.client.exceptions import InvalidSetting, SessionClosed, SessionEnded

if TYPE_CHECKING:
    from neops_remote_lab.client.lab_client import RemoteLabClient

__all__ = ["InvalidSetting", "RemoteLabClient", "SessionClosed", "SessionEnded"]


def __getattr__(name: str) -> Any:
    """Import the client lazily: the pytest plugin reads its settings without loading an HTTP client."""
    if name != "RemoteLabClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from neops_remote_lab.client.lab_client import RemoteLabClient  # noqa: PLC0415 - see above

    return RemoteLabClient
