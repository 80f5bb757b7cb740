"""How the server's log looks: one line an event, times in UTC, as text or as JSON, and never a whole session id."""

import json
import logging
import re
import sys
import time
from datetime import UTC, datetime
from typing import Final, Literal

THIRD_PARTY: Final = ("aiosqlite", "sqlalchemy", "alembic", "asyncio", "filelock", "httpx", "python_multipart")
"""Loggers of libraries, whose details drown ours: they log warnings, also with --debug."""
_SESSION_ID: Final = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24}\b")


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO neops_remote_lab.queue.service: message`."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback where there is one."""
        return shorten_ids(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return shorten_ids(json.dumps(line, ensure_ascii=False))


class ShortIds(logging.Filter):
    """Shortens session ids in the records of a logger, whichever handler prints them."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record."""
        if isinstance(record.args, tuple):
            record.args = tuple(shorten_ids(value) if isinstance(value, str) else value for value in record.args)
        return True


def shorten_ids(text: str) -> str:
    """The text with the first 8 characters of each session id: the whole id is the key to a lab."""
    return _SESSION_ID.sub(r"\1…", text)


def configure(level: str, log_format: Literal["text", "json"]) -> None:
    """Log to standard error from a level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    for name in THIRD_PARTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
