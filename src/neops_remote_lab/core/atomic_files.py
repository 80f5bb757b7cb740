"""Files that readers see either as they were or whole."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o600


def replace(path: Path, text: str, mode: int = PRIVATE) -> None:
    """Write a file in one step.

    Args:
        path: the file; its directory exists.
        text: all of its content.
        mode: its permissions, whatever the umask.

    Raises:
        OSError: it cannot be written; what was there before is left as it was.
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
