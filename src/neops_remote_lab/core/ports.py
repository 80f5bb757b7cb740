"""TCP ports."""

from typing import Final

LAST_PORT: Final = 65535


def require_port(port: int) -> None:
    """Raise ValueError unless a number is that of a TCP port."""
    if not 0 < port <= LAST_PORT:
        raise ValueError(f"a TCP port is a number from 1 to {LAST_PORT}, not {port}")
