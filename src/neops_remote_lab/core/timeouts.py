"""The client's default timeouts, in seconds."""

from typing import Final

REQUEST_TIMEOUT: Final[float] = 30
"""For the response to a short call."""
SESSION_TIMEOUT: Final[float] = 600
"""For the wait in the queue."""
ACQUISITION_TIMEOUT: Final[float] = 600
"""Until a lab is free and running."""
UNREACHABLE_TIMEOUT: Final[float] = 120
"""For the retries of calls to a server that has answered before."""
