"""What the client raises of its own. Each subclasses the builtin that 1.x raised in its place; all else is httpx's."""


class SessionEnded(RuntimeError):
    """The server ended the session: timeout, maximum hold, or an operator.

    Attributes:
        reason: the server's sentence.
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
    """An address, credentials, a proxy, a certificate or a timeout that cannot work.

    The message is one sentence that names the argument or the variable, and shows no credentials.
    """
