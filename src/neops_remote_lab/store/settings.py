"""Settings of the database."""

from typing import Annotated, Literal

from pydantic import Field

from neops_remote_lab.core.home import state_dir
from neops_remote_lab.core.settings import ComputedDefault, Seconds, SettingsGroup


class StoreSettings(SettingsGroup, title="Database"):
    """The database and how it is opened."""

    database: Annotated[str, ComputedDefault("`remote-lab.sqlite3` in the state directory")] = Field(
        default_factory=lambda: f"sqlite+aiosqlite:///{state_dir() / 'remote-lab.sqlite3'}",
        description="SQLAlchemy URL of the SQLite database",
    )
    synchronous: Literal["FULL", "NORMAL", "EXTRA"] = Field(
        default="FULL",
        description="SQLite's synchronous level: with FULL, commits survive a power loss; with NORMAL, only a crash",
    )
    busy_timeout: Seconds = Field(
        default=5, description="seconds to wait for a database that another program has locked"
    )
