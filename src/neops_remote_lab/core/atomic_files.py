"""Atomic file replacement: a reader sees the old content or the new content, never a part of it."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o600


def replace(path: Path, text: str, mode: int = PRIVATE) -> None:
    """Replace the content of a file atomically.

    Args:
        path: the file; its directory must exist.
        text: the whole content.
        mode: the permissions, regardless of the umask.

    Raises:
        OSError: the file cannot be written. Its previous content is kept.
    """
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".draft", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
        Path(draft).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(draft).unlink()
        raise
