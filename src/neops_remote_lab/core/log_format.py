"""Log formats of the server: one line per event, times in UTC, as text or JSON, session ids shortened."""

import json
import logging
import re
import sys
import time
from datetime import UTC, datetime
from typing import Final, Literal

THIRD_PARTY: Final = ("aiosqlite", "sqlalchemy", "alembic", "asyncio", "filelock", "httpx", "python_multipart")
"""Library loggers that stay at WARNING even with --debug, because their details would hide ours."""
_SESSION_ID: Final = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24}\b")


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO neops_remote_lab.queue.service: message`."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One line, followed by the traceback if there is one."""
        return shorten_ids(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message`, and `exception` if there is one."""

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
    """Shortens session ids in the records of a logger, for every handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten the ids and keep the record."""
        if isinstance(record.args, tuple):
            record.args = tuple(shorten_ids(value) if isinstance(value, str) else value for value in record.args)
        return True


def shorten_ids(text: str) -> str:
    """The text with each session id cut to its first 8 characters: whoever knows the whole id can use the lab."""
    return _SESSION_ID.sub(r"\1…", text)


def configure(level: str, log_format: Literal["text", "json"]) -> None:
    """Log to standard error at the given level and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    for name in THIRD_PARTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
