"""The state directory in the user's home."""

from pathlib import Path
from typing import Final

from platformdirs import user_state_path

NO_HOME: Final = (
    "this user has no home directory: set HOME to a directory that the user can write, "
    "because netlab keeps its list of labs there"
)


def state_dir() -> Path:
    """The state directory of this program.

    Raises:
        ValueError: the user has no home directory, and no variable names a state directory.
    """
    try:
        return user_state_path("neops-remote-lab")
    except RuntimeError:
        raise ValueError(NO_HOME) from None
