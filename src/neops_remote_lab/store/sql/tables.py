"""The table definitions. The migrations in `alembic/` create the tables, and a test compares the two.

Partial unique indexes allow one active session and one live lab per slot of a host, whoever writes the rows. The
migration also creates views and triggers; the triggers write the events.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    false,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from neops_remote_lab.core.codes import (
    ENDED,
    EndCode,
    EventKind,
    HostState,
    LiveLabState,
    OutcomeCode,
    QuarantineSource,
    SessionState,
)

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A time in UTC. SQLite stores it as text that its date functions understand, PostgreSQL as `timestamptz`."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """With a time zone where the database has them."""
        return dialect.type_descriptor(DateTime(timezone=dialect.name != "sqlite"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert an aware time to UTC."""
        if value is None:
            return None
        return value.astimezone(UTC).replace(tzinfo=None if dialect.name == "sqlite" else UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Convert a time of the database to an aware one in UTC."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def written(time: datetime) -> str:
    """A time as SQLite stores it, in UTC."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def read(time: str | datetime) -> datetime:
    """A time as the driver of the database returns it: text in UTC, or an aware time."""
    return datetime.fromisoformat(time).replace(tzinfo=UTC) if isinstance(time, str) else time.astimezone(UTC)


_IS_A_TIME = {
    "sqlite": (
        "{0} IS NULL OR (substr(datetime(substr({0}, 1, 19), '+0 days'), 1, length(substr({0}, 1, 19)))"
        " IS replace(substr({0}, 1, 19), 'T', ' ') AND substr({0}, 20) NOT GLOB '*[^0-9.+:]*')"
    ),
    "postgresql": "{0} BETWEEN '0001-01-02' AND '9999-12-30'",
}
"""What Python can read as a time, by the name of the database."""
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def _number() -> Column[int]:
    """A number that is never given twice."""
    return Column("number", _NUMBER, primary_key=True)


def _time(name: str, *, nullable: bool = True) -> Column[datetime]:
    return Column(name, UtcDateTime, nullable=nullable)


def _readable(*columns: str) -> list[CheckConstraint]:
    """Constraints that refuse malformed times on writing, so that reading cannot fail."""
    return [
        CheckConstraint(condition.format(name), f"{name}_is_a_time").ddl_if(dialect=dialect)
        for name in columns
        for dialect, condition in _IS_A_TIME.items()
    ]


def _where(condition: ColumnElement[bool]) -> dict[str, Any]:
    """Limits an index to some rows."""
    return {"sqlite_where": condition, "postgresql_where": condition}


QUEUE = Table(
    "queue",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("last_rank", _NUMBER, nullable=False),
)


def _one_of(column: str, *codes: str) -> CheckConstraint:
    values = ", ".join(f"'{code}'" for code in codes)
    return CheckConstraint(f"{column} IN ({values})", column)


LAB_HOST = Table(
    "lab_host",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("queue", Text, ForeignKey("queue.name"), nullable=False),
    Column("boot_id", Text),
    Column("address", Text),
    Column("state", Text, nullable=False, server_default=HostState.LIVE),
    Column("is_draining", Boolean, nullable=False, server_default=false()),
    Column("holds_grants", Boolean, nullable=False, server_default=false()),
    Column("epoch", _NUMBER, nullable=False, server_default="0"),
    Column("incarnation", Text),
    Column("beat", _NUMBER, nullable=False, server_default="0"),
    _time("quarantined_at"),
    Column("quarantined_by", Text),
    Column("quarantine_reason", Text),
    _one_of("state", *HostState),
    _one_of("quarantined_by", *QuarantineSource),
    *_readable("quarantined_at"),
)

SLOT = Table(
    "slot",
    METADATA,
    Column("host", Text, ForeignKey("lab_host.name"), primary_key=True),
    Column("slot", Integer, primary_key=True),
    Column("is_open", Boolean, nullable=False),
    CheckConstraint("slot > 0", "slot"),
)

SESSION = Table(
    "session",
    METADATA,
    _number(),
    Column("session_id", Text, nullable=False, unique=True),
    Column("queue", Text, ForeignKey("queue.name"), nullable=False),
    Column("rank", _NUMBER, nullable=False),
    Column("state", Text, nullable=False),
    Column("host", Text),
    Column("slot", Integer),
    Column("owner", Text),
    Column("client", Text),
    Column("purpose", Text),
    Column("idempotency_key", Text),
    _time("created_at", nullable=False),
    _time("activated_at"),
    _time("last_seen_at", nullable=False),
    _time("ended_at"),
    Column("end_code", Text),
    Column("end_detail", Text),
    _one_of("state", *SessionState, ENDED),
    _one_of("end_code", *EndCode),
    *_readable("created_at", "activated_at", "last_seen_at", "ended_at"),
    sqlite_autoincrement=True,
)
Index(
    "uq_session_active_slot",
    *(SESSION.c.host, SESSION.c.slot),
    unique=True,
    **_where(SESSION.c.state == SessionState.ACTIVE),
)
Index("ix_session_active", SESSION.c.queue, **_where(SESSION.c.state == SessionState.ACTIVE))
Index(
    "ix_session_waiting",
    *(SESSION.c.queue, SESSION.c.rank, SESSION.c.number),
    **_where(SESSION.c.state == SessionState.WAITING),
)
Index(
    "uq_session_live_key",
    *(SESSION.c.queue, SESSION.c.idempotency_key),
    unique=True,
    **_where(SESSION.c.idempotency_key.is_not(None) & SESSION.c.state.in_(SessionState)),
)
Index("ix_session_ended_at", SESSION.c.ended_at, **_where(SESSION.c.state == ENDED))

LAB = Table(
    "lab",
    METADATA,
    _number(),
    Column("lab_id", Text, nullable=False, unique=True),
    Column("host", Text, nullable=False),
    Column("slot", Integer, nullable=False),
    Column("lab_number", Integer),
    Column("session_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("topology", Text, nullable=False),
    Column("topology_sha256", Text, nullable=False),
    Column("extra_sha256", Text),
    Column("work_dir", Text, nullable=False),
    Column("devices", JSON(none_as_null=True)),
    Column("memory_bytes", BigInteger),
    _time("started_at", nullable=False),
    _time("running_at"),
    _time("ended_at"),
    Column("outcome_code", Text),
    Column("outcome_detail", Text),
    CheckConstraint("lab_number BETWEEN 1 AND 200", "lab_number"),
    _one_of("state", *LiveLabState, ENDED),
    _one_of("outcome_code", *OutcomeCode),
    *_readable("started_at", "running_at", "ended_at"),
    sqlite_autoincrement=True,
)
Index("uq_lab_live_slot", LAB.c.host, LAB.c.slot, unique=True, **_where(LAB.c.state.in_(LiveLabState)))
Index("uq_lab_live_number", LAB.c.host, LAB.c.lab_number, unique=True, **_where(LAB.c.state.in_(LiveLabState)))
Index("ix_lab_session_id", LAB.c.session_id)
Index("ix_lab_ended_at", LAB.c.ended_at, **_where(LAB.c.state == ENDED))

LAB_REFERENCE = Table(
    "lab_reference",
    METADATA,
    _number(),
    Column("lab_id", Text, ForeignKey("lab.lab_id", ondelete="CASCADE"), nullable=False),
    Column("session_id", Text, nullable=False),
    Column("idempotency_key", Text),
    _time("acquired_at", nullable=False),
    _time("released_at"),
    *_readable("acquired_at", "released_at"),
    sqlite_autoincrement=True,
)
Index(
    "uq_lab_reference_key",
    LAB_REFERENCE.c.session_id,
    LAB_REFERENCE.c.idempotency_key,
    unique=True,
    **_where(LAB_REFERENCE.c.idempotency_key.is_not(None) & LAB_REFERENCE.c.released_at.is_(None)),
)
Index("ix_lab_reference_lab_id", LAB_REFERENCE.c.lab_id)

NODE_MEMORY = Table(
    "node_memory",
    METADATA,
    _number(),
    Column("image", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    _time("measured_at", nullable=False),
    *_readable("measured_at"),
    sqlite_autoincrement=True,
)
Index("ix_node_memory_image", NODE_MEMORY.c.image)

EVENT = Table(
    "event",
    METADATA,
    _number(),
    _time("at", nullable=False),
    Column("what", Text, nullable=False),
    Column("session_id", Text),
    Column("lab_id", Text),
    Column("host", Text),
    Column("slot", Integer),
    Column("code", Text),
    Column("detail", Text),
    _one_of("what", *EventKind),
    sqlite_autoincrement=True,
)
