"""A time limit for clients that do not read, for each of uvicorn's protocol classes."""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvicorn.protocols.http.flow_control import FlowControl

    class _Protocol(asyncio.Protocol):
        loop: asyncio.AbstractEventLoop
        transport: asyncio.Transport
        flow: FlowControl
else:
    _Protocol = object


class SendTimeout(_Protocol):
    """Mixin in front of one of uvicorn's protocol classes: disconnects a client that does not read."""

    send_timeout: float
    """Seconds after which a client that does not read is disconnected."""
    _overdue: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the send timer."""
        self.stop_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the send timer, because the client does not read."""
        super().pause_writing()
        self.stop_timer()
        self._overdue = self.loop.call_later(self.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the send timer, because the client reads again."""
        super().resume_writing()
        self.stop_timer()

    def stop_timer(self) -> None:
        """Stop the send timer."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
