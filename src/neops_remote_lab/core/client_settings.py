"""Values of client settings: the address that needs no server, and the default timeouts in seconds."""

from typing import Final

LOCAL: Final = "local"
"""The address that selects the netlab of this machine for a pytest run, without a server."""
REQUEST_TIMEOUT: Final[float] = 30
"""For the response to a short call."""
SESSION_TIMEOUT: Final[float] = 600
"""For the wait in the queue."""
ACQUISITION_TIMEOUT: Final[float] = 600
"""Until a lab is free and running."""
UNREACHABLE_TIMEOUT: Final[float] = 120
"""For the retries of calls to a server that has answered before."""
