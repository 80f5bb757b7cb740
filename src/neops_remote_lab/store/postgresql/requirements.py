"""Checks whether the server can use a connection to PostgreSQL."""

from psycopg import ConnectionInfo

from neops_remote_lab.store.protocol import DatabaseError


def require_usable(info: ConnectionInfo, pid: int) -> None:
    """Raise `DatabaseError` if the database cannot be used with a connection.

    Args:
        info: what the connection knows.
        pid: the result of `pg_backend_pid()`.
    """
    if pid != info.backend_pid:
        raise DatabaseError(
            "a connection pooler answers in the place of PostgreSQL, and poolers drop notifications of changes: "
            "name PostgreSQL itself with --database"
        )
    if info.parameter_status("server_encoding") != "UTF8":
        raise DatabaseError("the database must have the encoding UTF8")
