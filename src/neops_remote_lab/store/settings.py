"""Settings of the database."""

from typing import Annotated, Literal

from pydantic import Field

from neops_remote_lab.core.home import state_dir
from neops_remote_lab.core.settings import ComputedDefault, Seconds, SettingsGroup


class StoreSettings(SettingsGroup, title="Database"):
    """The database and how it is opened."""

    database: Annotated[str, ComputedDefault("`remote-lab.sqlite3` in the state directory")] = Field(
        default_factory=lambda: f"sqlite+aiosqlite:///{state_dir() / 'remote-lab.sqlite3'}",
        description="SQLite file, by its absolute path, or SQLAlchemy URL of a SQLite file or a PostgreSQL database",
    )
    synchronous: Literal["FULL", "NORMAL", "EXTRA"] = Field(
        default="FULL",
        description="with FULL, commits survive a power loss; with NORMAL, only a crash; EXTRA is a level of SQLite",
    )
    busy_timeout: Seconds = Field(
        default=5, description="seconds to wait for a database that another program has locked"
    )
