"""WebSocket connections of tests, with any supported version of the library."""

from __future__ import annotations

from ssl import SSLContext

from websockets.sync.client import ClientConnection, connect


def open_websocket(url: str, *, ssl: SSLContext | None = None, **headers: str) -> ClientConnection:
    """A connection that the caller closes; headers as keywords, with `_` for `-`."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection = connect(url, ssl=ssl, additional_headers=sent, compression=None, max_size=None, open_timeout=30)
    return connection.__enter__()
