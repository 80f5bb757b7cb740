"""The Python client: `RemoteLabClient`, its results and its exceptions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from neops_remote_lab.client.exceptions import InvalidSetting, SessionClosed, SessionEnded

if TYPE_CHECKING:
    from neops_remote_lab.client.devices import ExecResult
    from neops_remote_lab.client.forwards import Forward
    from neops_remote_lab.client.lab_client import RemoteLabClient

__all__ = ["ExecResult", "Forward", "InvalidSetting", "RemoteLabClient", "SessionClosed", "SessionEnded"]

_MODULES: Final = {"ExecResult": "devices", "Forward": "forwards", "RemoteLabClient": "lab_client"}


def __getattr__(name: str) -> Any:
    """Import the client lazily: the pytest plugin reads its settings without loading an HTTP client."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
