"""Create queues, hosts, sessions, labs, references and events, with views for operators."""

import re
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TIME = sa.DateTime().with_variant(sa.DateTime(timezone=True), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
IS_A_TIME = {
    # Compares whole seconds, because SQLite's rounding of fractions could refuse a valid time.
    "sqlite": (
        "{0} IS NULL OR (substr(datetime(substr({0}, 1, 19), '+0 days'), 1, length(substr({0}, 1, 19)))"
        " IS replace(substr({0}, 1, 19), 'T', ' ') AND substr({0}, 20) NOT GLOB '*[^0-9.+:]*')"
    ),
    "postgresql": "{0} BETWEEN '0001-01-02' AND '9999-12-30'",
}

NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"

OUTCOMES = (
    *("released", "destroyed", "session_ended", "replaced", "reclaimed", "server_ended"),
    *("lost", "rejected", "in_the_way", "failed"),
)
EVENTS = (
    *("session_joined", "session_moved", "session_granted", "session_requeued", "session_ended"),
    *("lab_starting", "lab_running", "lab_stopping", "lab_ended", "reference_acquired", "reference_released"),
    *("quarantine_set", "quarantine_lifted"),
)

SHOWN = {
    "sqlite": "datetime({0})",
    "postgresql": "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')",
}
"""A time in UTC as people read it."""
PRESENT = {"sqlite": "'now'", "postgresql": "clock_timestamp()"}
SECONDS = {
    "sqlite": "CAST(round((julianday({1}) - julianday({0})) * 86400) AS INTEGER)",
    "postgresql": "CAST(round(extract(epoch FROM {1} - {0})) AS INTEGER)",
}
"""The whole seconds between two times."""


def views(dialect: str) -> dict[str, str]:
    """The queries of the views."""
    time, seconds, now = SHOWN[dialect].format, SECONDS[dialect].format, PRESENT[dialect]
    return {
        "waiting": f"""
            SELECT row_number() OVER (PARTITION BY queue ORDER BY rank, number) AS place,
                   substr(session_id, 1, 8) AS session, client, purpose, {time("created_at")} AS waits_since,
                   {time("last_seen_at")} AS last_seen, {seconds("created_at", now)} AS waited_seconds,
                   queue, rank, session_id
            FROM session WHERE state = 'waiting' ORDER BY queue, rank, number
        """,
        "active": f"""
            SELECT substr(session_id, 1, 8) AS session, client, purpose, {time("activated_at")} AS active_since,
                   {time("last_seen_at")} AS last_seen, host, slot, session_id
            FROM session WHERE state = 'active' ORDER BY host, slot
        """,
        "current_lab": f"""
            SELECT lab.topology, lab.state, {time("lab.started_at")} AS since, substr(lab.session_id, 1, 8) AS session,
                   session.client,
                   (SELECT count(*) FROM lab_reference r WHERE r.lab_id = lab.lab_id AND r.released_at IS NULL)
                       AS references_held,
                   coalesce(json_array_length(lab.devices), 0) AS devices, lab.work_dir, lab.host, lab.slot,
                   lab.lab_number, lab.lab_id
            FROM lab LEFT JOIN session ON session.session_id = lab.session_id
            WHERE lab.state <> 'ended' ORDER BY lab.host, lab.slot
        """,
        "held_references": f"""
            SELECT lab.topology, substr(r.session_id, 1, 8) AS session, session.client,
                   {time("r.acquired_at")} AS held_since, lab.host, lab.slot, r.number
            FROM lab_reference r JOIN lab ON lab.lab_id = r.lab_id
            LEFT JOIN session ON session.session_id = r.session_id
            WHERE r.released_at IS NULL ORDER BY r.number
        """,
        "session_history": f"""
            SELECT substr(session_id, 1, 8) AS session, client, purpose, {time("created_at")} AS joined,
                   {time("activated_at")} AS became_active, {time("ended_at")} AS ended, end_code,
                   end_detail AS end_reason,
                   {seconds("created_at", "coalesce(activated_at, ended_at)")} AS waited_seconds,
                   {seconds("activated_at", "ended_at")} AS held_seconds,
                   {seconds("ended_at", now)} / 86400 AS ended_days_ago,
                   queue, host, slot, session_id
            FROM session WHERE state = 'ended' ORDER BY ended_at DESC
        """,
        "lab_history": f"""
            SELECT topology, {time("started_at")} AS started, {time("ended_at")} AS ended, outcome_code,
                   outcome_detail AS outcome,
                   {seconds("started_at", "running_at")} AS start_seconds,
                   substr(session_id, 1, 8) AS session, host, slot, lab_id
            FROM lab WHERE state = 'ended' ORDER BY ended_at DESC
        """,
        "recent_events": f"""
            SELECT {time("event.at")} AS time, event.what, substr(event.session_id, 1, 8) AS session, session.client,
                   lab.topology, event.code, event.detail, event.host, event.slot, event.session_id, event.lab_id,
                   event.number
            FROM event LEFT JOIN session ON session.session_id = event.session_id
            LEFT JOIN lab ON lab.lab_id = event.lab_id ORDER BY event.number DESC
        """,
        "quarantine": f"""
            SELECT name AS host, {time("quarantined_at")} AS since, quarantined_by, quarantine_reason AS reason
            FROM lab_host WHERE quarantine_reason IS NOT NULL
        """,
    }


POSTGRESQL_TRIGGERS = Path(__file__).with_name("0001_postgresql.sql")
"""The same triggers as those of SQLite below, and the notifications of changes."""

# The triggers write the events, keep the queue's counter ahead of every rank, and complete the columns that an operator
# omits when changing a state or a quarantine with SQL.
SQLITE_TRIGGERS = (
    """
    CREATE TRIGGER session_joined AFTER INSERT ON session
    BEGIN
        UPDATE queue SET last_rank = max(last_rank, NEW.rank) WHERE name = NEW.queue;
        INSERT INTO event (at, what, session_id) VALUES (NEW.created_at, 'session_joined', NEW.session_id);
    END
    """,
    f"""
    CREATE TRIGGER session_moved AFTER UPDATE OF rank ON session
    WHEN NEW.rank <> OLD.rank
    BEGIN
        UPDATE queue SET last_rank = max(last_rank, NEW.rank) WHERE name = NEW.queue;
        INSERT INTO event (at, what, session_id, detail)
        VALUES ({NOW}, 'session_moved', NEW.session_id, 'from rank ' || OLD.rank || ' to rank ' || NEW.rank);
    END
    """,
    f"""
    CREATE TRIGGER session_granted AFTER UPDATE OF state ON session
    WHEN NEW.state = 'active' AND OLD.state <> 'active'
    BEGIN
        UPDATE session
        SET activated_at = coalesce(activated_at, {NOW}),
            (host, slot) = (
                SELECT slot.host, slot.slot FROM slot JOIN lab_host ON lab_host.name = slot.host
                WHERE slot.host = coalesce(NEW.host, slot.host) AND slot.slot = coalesce(NEW.slot, slot.slot)
                AND (lab_host.queue = NEW.queue OR NEW.host IS NOT NULL)
                ORDER BY EXISTS (
                    SELECT 1 FROM session AS busy
                    WHERE busy.host = slot.host AND busy.slot = slot.slot AND busy.state = 'active'
                ), NOT slot.is_open, slot.slot, slot.host LIMIT 1
            )
        WHERE number = NEW.number AND (activated_at IS NULL OR host IS NULL OR slot IS NULL);
        SELECT RAISE(ABORT, 'constraint failed: no host serves the queue of this session, or it has no such slot')
        FROM session WHERE number = NEW.number AND host IS NULL;
        INSERT INTO event (at, what, session_id, host, slot)
        SELECT activated_at, 'session_granted', session_id, host, slot FROM session WHERE number = NEW.number;
    END
    """,
    f"""
    CREATE TRIGGER session_requeued AFTER UPDATE OF state ON session
    WHEN NEW.state = 'waiting' AND OLD.state <> 'waiting'
    BEGIN
        UPDATE session
        SET host = NULL, slot = NULL, activated_at = NULL, ended_at = NULL, end_code = NULL, end_detail = NULL
        WHERE number = NEW.number;
        INSERT INTO event (at, what, session_id, host, slot)
        VALUES ({NOW}, 'session_requeued', NEW.session_id, OLD.host, OLD.slot);
    END
    """,
    f"""
    CREATE TRIGGER session_ended AFTER UPDATE OF state ON session
    WHEN NEW.state = 'ended' AND OLD.state <> 'ended'
    BEGIN
        UPDATE session SET ended_at = coalesce(ended_at, {NOW}),
                           end_code = coalesce(end_code, 'operator'),
                           end_detail = coalesce(end_detail, 'ended by an operator')
        WHERE number = NEW.number AND (ended_at IS NULL OR end_code IS NULL OR end_detail IS NULL);
        INSERT INTO event (at, what, session_id, host, slot, code, detail)
        SELECT ended_at, 'session_ended', session_id, host, slot, end_code, end_detail
        FROM session WHERE number = NEW.number;
    END
    """,
    f"""
    CREATE TRIGGER session_removed AFTER DELETE ON session
    WHEN OLD.state <> 'ended'
    BEGIN
        INSERT INTO event (at, what, session_id, host, slot, code, detail)
        VALUES ({NOW}, 'session_ended', OLD.session_id, OLD.host, OLD.slot, 'operator', 'removed by an operator');
    END
    """,
    """
    CREATE TRIGGER lab_starting AFTER INSERT ON lab
    BEGIN
        INSERT INTO event (at, what, session_id, lab_id, host, slot)
        VALUES (NEW.started_at, 'lab_starting', NEW.session_id, NEW.lab_id, NEW.host, NEW.slot);
    END
    """,
    f"""
    CREATE TRIGGER lab_changed AFTER UPDATE OF state ON lab
    WHEN NEW.state <> OLD.state
    BEGIN
        INSERT INTO event (at, what, session_id, lab_id, host, slot, code, detail)
        VALUES (
            coalesce(CASE NEW.state WHEN 'running' THEN NEW.running_at WHEN 'ended' THEN NEW.ended_at END, {NOW}),
            'lab_' || NEW.state, NEW.session_id, NEW.lab_id, NEW.host, NEW.slot, NEW.outcome_code, NEW.outcome_detail
        );
    END
    """,
    """
    CREATE TRIGGER reference_acquired AFTER INSERT ON lab_reference
    BEGIN
        INSERT INTO event (at, what, session_id, lab_id, host, slot)
        SELECT NEW.acquired_at, 'reference_acquired', NEW.session_id, NEW.lab_id, host, slot
        FROM lab WHERE lab_id = NEW.lab_id;
    END
    """,
    """
    CREATE TRIGGER reference_released AFTER UPDATE OF released_at ON lab_reference
    WHEN OLD.released_at IS NULL AND NEW.released_at IS NOT NULL
    BEGIN
        INSERT INTO event (at, what, session_id, lab_id, host, slot)
        SELECT NEW.released_at, 'reference_released', NEW.session_id, NEW.lab_id, host, slot
        FROM lab WHERE lab_id = NEW.lab_id;
    END
    """,
    # The server sets reason, time and source together; an operator may set only the reason.
    f"""
    CREATE TRIGGER lab_host_quarantined AFTER UPDATE OF quarantine_reason ON lab_host
    WHEN NEW.quarantine_reason IS NOT OLD.quarantine_reason AND NEW.quarantine_reason IS NOT NULL
    BEGIN
        UPDATE lab_host SET quarantined_by = 'operator', quarantined_at = {NOW}
        WHERE name = NEW.name AND (quarantined_by IS NULL OR quarantined_at IS OLD.quarantined_at);
        INSERT INTO event (at, what, host, code, detail)
        SELECT quarantined_at, 'quarantine_set', name, quarantined_by, quarantine_reason
        FROM lab_host WHERE name = NEW.name;
    END
    """,
    f"""
    CREATE TRIGGER lab_host_quarantine_lifted AFTER UPDATE OF quarantine_reason ON lab_host
    WHEN NEW.quarantine_reason IS NULL AND OLD.quarantine_reason IS NOT NULL
    BEGIN
        UPDATE lab_host SET quarantined_by = NULL, quarantined_at = NULL WHERE name = NEW.name;
        INSERT INTO event (at, what, host, code, detail)
        VALUES ({NOW}, 'quarantine_lifted', NEW.name, OLD.quarantined_by, OLD.quarantine_reason);
    END
    """,
    """
    CREATE TRIGGER event_unchanged BEFORE UPDATE ON event
    BEGIN
        SELECT RAISE(ABORT, 'constraint failed: an event is never changed');
    END
    """,
)


def _is_a_time(table: str, *columns: str) -> list[sa.CheckConstraint]:
    condition = IS_A_TIME[op.get_bind().dialect.name]
    return [sa.CheckConstraint(condition.format(name), name=op.f(f"ck_{table}_{name}_is_a_time")) for name in columns]


def _one_of(table: str, column: str, *codes: str) -> sa.CheckConstraint:
    values = ", ".join(f"'{code}'" for code in codes)
    return sa.CheckConstraint(f"{column} IN ({values})", name=op.f(f"ck_{table}_{column}"))


def _number() -> sa.Column[int]:
    return sa.Column("number", NUMBER, nullable=False)


def _where(condition: str) -> dict[str, sa.TextClause]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    queue = op.create_table(
        "queue",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("last_rank", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_queue"),
    )
    op.bulk_insert(queue, [{"name": "default", "last_rank": 0}])
    op.create_table(
        "lab_host",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("boot_id", sa.Text),
        sa.Column("address", sa.Text),
        sa.Column("state", sa.Text, nullable=False, server_default="live"),
        sa.Column("is_draining", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("holds_grants", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("epoch", NUMBER, nullable=False, server_default="0"),
        sa.Column("incarnation", sa.Text),
        sa.Column("beat", NUMBER, nullable=False, server_default="0"),
        sa.Column("quarantined_at", TIME),
        sa.Column("quarantined_by", sa.Text),
        sa.Column("quarantine_reason", sa.Text),
        sa.PrimaryKeyConstraint("name", name="pk_lab_host"),
        sa.ForeignKeyConstraint(["queue"], ["queue.name"], name="fk_lab_host_queue"),
        _one_of("lab_host", "state", "live", "silent", "gone"),
        _one_of("lab_host", "quarantined_by", "server", "operator"),
        *_is_a_time("lab_host", "quarantined_at"),
    )
    op.create_table(
        "slot",
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("host", "slot", name="pk_slot"),
        sa.ForeignKeyConstraint(["host"], ["lab_host.name"], name="fk_slot_host"),
        sa.CheckConstraint("slot > 0", name=op.f("ck_slot_slot")),
    )
    _create_session()
    _create_lab()
    op.create_table(
        "node_memory",
        _number(),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("measured_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_node_memory"),
        *_is_a_time("node_memory", "measured_at"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_node_memory_image", "node_memory", ["image"])
    op.create_table(
        "event",
        _number(),
        sa.Column("at", TIME, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text),
        sa.Column("lab_id", sa.Text),
        sa.Column("host", sa.Text),
        sa.Column("slot", sa.Integer),
        sa.Column("code", sa.Text),
        sa.Column("detail", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_event"),
        _one_of("event", "what", *EVENTS),
        sqlite_autoincrement=True,
    )
    dialect = op.get_bind().dialect.name
    for name, query in views(dialect).items():
        op.execute(f"CREATE VIEW {name} AS {query}")
    for statement in SQLITE_TRIGGERS if dialect == "sqlite" else [POSTGRESQL_TRIGGERS.read_text(encoding="utf-8")]:
        op.get_bind().exec_driver_sql(statement)


def _create_session() -> None:
    op.create_table(
        "session",
        _number(),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("rank", NUMBER, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("host", sa.Text),
        sa.Column("slot", sa.Integer),
        sa.Column("owner", sa.Text),
        sa.Column("client", sa.Text),
        sa.Column("purpose", sa.Text),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("activated_at", TIME),
        sa.Column("last_seen_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("end_code", sa.Text),
        sa.Column("end_detail", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_session"),
        sa.UniqueConstraint("session_id", name="uq_session_session_id"),
        sa.ForeignKeyConstraint(["queue"], ["queue.name"], name="fk_session_queue"),
        _one_of("session", "state", "waiting", "active", "ended"),
        _one_of("session", "end_code", "client", "stale", "max_hold", "host_gone", "operator"),
        *_is_a_time("session", "created_at", "activated_at", "last_seen_at", "ended_at"),
        sqlite_autoincrement=True,
    )
    active, waiting, ended = (_where(f"state = '{state}'") for state in ("active", "waiting", "ended"))
    keyed = _where("idempotency_key IS NOT NULL AND state IN ('waiting', 'active')")
    op.create_index("uq_session_active_slot", "session", ["host", "slot"], unique=True, **active)
    op.create_index("ix_session_active", "session", ["queue"], **active)
    op.create_index("ix_session_waiting", "session", ["queue", "rank", "number"], **waiting)
    op.create_index("uq_session_live_key", "session", ["queue", "idempotency_key"], unique=True, **keyed)
    op.create_index("ix_session_ended_at", "session", ["ended_at"], **ended)


def _create_lab() -> None:
    op.create_table(
        "lab",
        _number(),
        sa.Column("lab_id", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("lab_number", sa.Integer),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("topology", sa.Text, nullable=False),
        sa.Column("topology_sha256", sa.Text, nullable=False),
        sa.Column("extra_sha256", sa.Text),
        sa.Column("work_dir", sa.Text, nullable=False),
        sa.Column("devices", sa.JSON),
        sa.Column("memory_bytes", sa.BigInteger),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("running_at", TIME),
        sa.Column("ended_at", TIME),
        sa.Column("outcome_code", sa.Text),
        sa.Column("outcome_detail", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_lab"),
        sa.UniqueConstraint("lab_id", name="uq_lab_lab_id"),
        sa.CheckConstraint("lab_number BETWEEN 1 AND 200", name=op.f("ck_lab_lab_number")),
        _one_of("lab", "state", "starting", "running", "stopping", "ended"),
        _one_of("lab", "outcome_code", *OUTCOMES),
        *_is_a_time("lab", "started_at", "running_at", "ended_at"),
        sqlite_autoincrement=True,
    )
    live, ended = _where("state IN ('starting', 'running', 'stopping')"), _where("state = 'ended'")
    op.create_index("uq_lab_live_slot", "lab", ["host", "slot"], unique=True, **live)
    op.create_index("uq_lab_live_number", "lab", ["host", "lab_number"], unique=True, **live)
    op.create_index("ix_lab_session_id", "lab", ["session_id"])
    op.create_index("ix_lab_ended_at", "lab", ["ended_at"], **ended)
    op.create_table(
        "lab_reference",
        _number(),
        sa.Column("lab_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("acquired_at", TIME, nullable=False),
        sa.Column("released_at", TIME),
        sa.PrimaryKeyConstraint("number", name="pk_lab_reference"),
        sa.ForeignKeyConstraint(["lab_id"], ["lab.lab_id"], name="fk_lab_reference_lab_id", ondelete="CASCADE"),
        *_is_a_time("lab_reference", "acquired_at", "released_at"),
        sqlite_autoincrement=True,
    )
    keyed = _where("idempotency_key IS NOT NULL AND released_at IS NULL")
    columns = ["session_id", "idempotency_key"]
    op.create_index("uq_lab_reference_key", "lab_reference", columns, unique=True, **keyed)
    op.create_index("ix_lab_reference_lab_id", "lab_reference", ["lab_id"])


def downgrade() -> None:
    dialect = op.get_bind().dialect.name
    for name in views(dialect):
        op.execute(f"DROP VIEW {name}")
    for table in ("event", "node_memory", "lab_reference", "lab", "session", "slot", "lab_host", "queue"):
        op.drop_table(table)
    if dialect == "postgresql":  # SQLite's triggers have no functions
        for function in re.findall(r"CREATE FUNCTION (\w+)", POSTGRESQL_TRIGGERS.read_text(encoding="utf-8")):
            op.execute(f"DROP FUNCTION {function}")
