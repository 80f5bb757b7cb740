"""The database: tables, connection, migrations, and the only statements there are."""

from neops_remote_lab.store.database import Database, database_file
from neops_remote_lab.store.labs import LabStore
from neops_remote_lab.store.migrate import migrate
from neops_remote_lab.store.rows import EndedLab, EndedSession, Lab, Quarantine, Session
from neops_remote_lab.store.sessions import Ending, Joining, SessionStore

__all__ = [
    "Database",
    "EndedLab",
    "EndedSession",
    "Ending",
    "Joining",
    "Lab",
    "LabStore",
    "Quarantine",
    "Session",
    "SessionStore",
    "database_file",
    "migrate",
]
