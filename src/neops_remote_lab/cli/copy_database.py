"""`neops-remote-lab copy-database`: copy the database of a stopped server, for example from SQLite to PostgreSQL."""

import argparse
import sys
from typing import Final

from neops_remote_lab.cli.command import Commands, refuse

DATABASES: Final = (
    "A database is named as with `serve --database`: the path of a SQLite file, or a URL such as "
    "postgresql+psycopg://user@host/database. PGPASSFILE names a file with passwords."
)


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "copy-database",
        help="copy the database of a stopped server to SQLite or PostgreSQL",
        description="Copies the database of a stopped server into an empty one, completely or not at all.",
        epilog=DATABASES,
    )
    parser.add_argument("source", metavar="FROM", help="database of the stopped server")
    parser.add_argument("target", metavar="TO", help="empty database, or a SQLite file that does not exist")
    return parser


def run(options: argparse.Namespace) -> None:
    """Copy the database and print how many rows each table has. The exit status is 1 if that is not possible."""
    from neops_remote_lab.store.protocol import DatabaseError
    from neops_remote_lab.store.sql import copying  # loads SQLAlchemy, which no client command needs

    try:
        copied = copying.copy(options.source, options.target)
    except (ValueError, RuntimeError, DatabaseError, OSError) as error:
        refuse(f"nothing was copied: {error}")
    sys.stdout.write("copied: " + ", ".join(f"{table} {count}" for table, count in copied.items()) + "\n")
