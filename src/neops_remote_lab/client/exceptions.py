"""Exceptions of the client. Each subclasses the builtin that 1.x raised instead; all others are httpx's."""


class SessionEnded(RuntimeError):
    """The server ended the session: timeout, maximum hold, or an operator.

    Attributes:
        reason: the server's message.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the session was ended by the server: {self.reason}"


class SessionClosed(RuntimeError):
    """A call after `close()` or `detach()` of the same client."""

    def __str__(self) -> str:
        return "the session is closed"


class InvalidSetting(ValueError):
    """An address, credentials, a proxy, a certificate or a timeout is wrong.

    The message names the argument or the variable and shows no credentials.
    """
