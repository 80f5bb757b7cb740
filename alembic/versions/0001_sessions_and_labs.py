"""Hosts, sessions, labs and references, with the views for people."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TIME = sa.DateTime()
# To the second, so that SQLite's rounding of fractions cannot refuse a time that is right.
IS_A_TIME = (
    "{0} IS NULL OR (substr(datetime(substr({0}, 1, 19), '+0 days'), 1, length(substr({0}, 1, 19)))"
    " IS replace(substr({0}, 1, 19), 'T', ' ') AND substr({0}, 20) NOT GLOB '*[^0-9.+:]*')"
)

OUTCOMES = (
    *("released", "destroyed", "session_ended", "replaced", "server_ended"),
    *("lost", "rejected", "in_the_way", "failed"),
)

VIEWS = {
    "waiting": """
        SELECT row_number() OVER (PARTITION BY host ORDER BY number) AS place, substr(session_id, 1, 8) AS session,
               client, purpose, datetime(created_at) AS waits_since, datetime(last_seen_at) AS last_seen, host,
               session_id
        FROM session WHERE state = 'waiting' ORDER BY host, number
    """,
    "active": """
        SELECT substr(session_id, 1, 8) AS session, client, purpose, datetime(activated_at) AS active_since,
               datetime(last_seen_at) AS last_seen, host, session_id
        FROM session WHERE state = 'active' ORDER BY host
    """,
    "current_lab": """
        SELECT lab.topology, lab.state, datetime(lab.started_at) AS since, substr(lab.session_id, 1, 8) AS session,
               session.client,
               (SELECT count(*) FROM lab_reference r WHERE r.lab_id = lab.lab_id AND r.released_at IS NULL)
                   AS references_held,
               json_array_length(lab.devices) AS devices, lab.work_dir, lab.host, lab.lab_id
        FROM lab LEFT JOIN session ON session.session_id = lab.session_id
        WHERE lab.state <> 'ended' ORDER BY lab.host
    """,
    "held_references": """
        SELECT lab.topology, substr(r.session_id, 1, 8) AS session, session.client,
               datetime(r.acquired_at) AS held_since, lab.host, r.number
        FROM lab_reference r JOIN lab ON lab.lab_id = r.lab_id
        LEFT JOIN session ON session.session_id = r.session_id
        WHERE r.released_at IS NULL ORDER BY r.number
    """,
    "session_history": """
        SELECT substr(session_id, 1, 8) AS session, client, purpose, datetime(created_at) AS joined,
               datetime(activated_at) AS became_active, datetime(ended_at) AS ended, end_code,
               end_detail AS end_reason,
               CAST(round((julianday(coalesce(activated_at, ended_at)) - julianday(created_at)) * 86400) AS INTEGER)
                   AS waited_seconds,
               CAST(round((julianday(ended_at) - julianday(activated_at)) * 86400) AS INTEGER) AS held_seconds,
               host, session_id
        FROM session WHERE state = 'ended' ORDER BY ended_at DESC
    """,
    "lab_history": """
        SELECT topology, datetime(started_at) AS started, datetime(ended_at) AS ended, outcome_code,
               outcome_detail AS outcome,
               CAST(round((julianday(running_at) - julianday(started_at)) * 86400) AS INTEGER) AS start_seconds,
               substr(session_id, 1, 8) AS session, host, lab_id
        FROM lab WHERE state = 'ended' ORDER BY ended_at DESC
    """,
    "quarantine": """
        SELECT name AS host, datetime(quarantined_at) AS since, quarantined_by, quarantine_reason AS reason
        FROM lab_host WHERE quarantine_reason IS NOT NULL
    """,
}

# A person who ends a session sets `state` alone; when and by whom is filled in.
ENDED_BY_HAND = """
    CREATE TRIGGER session_ended_by_hand AFTER UPDATE OF state ON session
    WHEN NEW.state = 'ended' AND (NEW.ended_at IS NULL OR NEW.end_code IS NULL OR NEW.end_detail IS NULL)
    BEGIN
        UPDATE session SET ended_at = coalesce(ended_at, strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'),
                           end_code = coalesce(end_code, 'operator'),
                           end_detail = coalesce(end_detail, 'ended by an operator')
        WHERE number = NEW.number;
    END
"""
# A person who sets or lifts a quarantine writes the reason alone; the server writes the time with it.
QUARANTINED_BY_HAND = """
    CREATE TRIGGER lab_host_quarantined_by_hand AFTER UPDATE OF quarantine_reason ON lab_host
    WHEN NEW.quarantine_reason IS NOT OLD.quarantine_reason
         AND (NEW.quarantined_by IS NULL OR NEW.quarantined_at IS OLD.quarantined_at)
    BEGIN
        UPDATE lab_host
        SET quarantined_by = CASE WHEN quarantine_reason IS NOT NULL THEN 'operator' END,
            quarantined_at = CASE WHEN quarantine_reason IS NOT NULL
                                  THEN strftime('%Y-%m-%d %H:%M:%f', 'now') || '000' END
        WHERE name = NEW.name;
    END
"""


def _is_a_time(table: str, *columns: str) -> list[sa.CheckConstraint]:
    return [sa.CheckConstraint(IS_A_TIME.format(name), name=op.f(f"ck_{table}_{name}_is_a_time")) for name in columns]


def _one_of(table: str, column: str, *codes: str) -> sa.CheckConstraint:
    values = ", ".join(f"'{code}'" for code in codes)
    return sa.CheckConstraint(f"{column} IN ({values})", name=op.f(f"ck_{table}_{column}"))


def upgrade() -> None:
    op.create_table(
        "lab_host",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("boot_id", sa.Text),
        sa.Column("quarantined_at", TIME),
        sa.Column("quarantined_by", sa.Text),
        sa.Column("quarantine_reason", sa.Text),
        sa.PrimaryKeyConstraint("name", name="pk_lab_host"),
        _one_of("lab_host", "quarantined_by", "server", "operator"),
        *_is_a_time("lab_host", "quarantined_at"),
    )
    op.create_table(
        "session",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
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
        _one_of("session", "state", "waiting", "active", "ended"),
        _one_of("session", "end_code", "client", "stale", "max_hold", "operator"),
        *_is_a_time("session", "created_at", "activated_at", "last_seen_at", "ended_at"),
        sqlite_autoincrement=True,
    )
    active, waiting, ended = (sa.text(f"state = '{state}'") for state in ("active", "waiting", "ended"))
    live = sa.text("state IN ('waiting', 'active')")
    op.create_index("uq_session_active_host", "session", ["host"], unique=True, sqlite_where=active)
    op.create_index("ix_session_waiting", "session", ["host", "number"], sqlite_where=waiting)
    op.create_index("uq_session_live_key", "session", ["host", "idempotency_key"], unique=True, sqlite_where=live)
    op.create_index("ix_session_ended_at", "session", ["ended_at"], sqlite_where=ended)
    op.create_table(
        "lab",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("lab_id", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("topology", sa.Text, nullable=False),
        sa.Column("topology_sha256", sa.Text, nullable=False),
        sa.Column("extra_sha256", sa.Text),
        sa.Column("work_dir", sa.Text, nullable=False),
        sa.Column("devices", sa.JSON),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("running_at", TIME),
        sa.Column("ended_at", TIME),
        sa.Column("outcome_code", sa.Text),
        sa.Column("outcome_detail", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_lab"),
        sa.UniqueConstraint("lab_id", name="uq_lab_lab_id"),
        _one_of("lab", "state", "starting", "running", "stopping", "ended"),
        _one_of("lab", "outcome_code", *OUTCOMES),
        *_is_a_time("lab", "started_at", "running_at", "ended_at"),
        sqlite_autoincrement=True,
    )
    live = sa.text("state IN ('starting', 'running', 'stopping')")
    op.create_index("uq_lab_live_host", "lab", ["host"], unique=True, sqlite_where=live)
    op.create_index("ix_lab_session_id", "lab", ["session_id"])
    op.create_index("ix_lab_ended_at", "lab", ["ended_at"], sqlite_where=ended)
    op.create_table(
        "lab_reference",
        sa.Column("number", sa.Integer, nullable=False),
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
    keyed = sa.text("idempotency_key IS NOT NULL AND released_at IS NULL")
    columns = ["session_id", "idempotency_key"]
    op.create_index("uq_lab_reference_key", "lab_reference", columns, unique=True, sqlite_where=keyed)
    op.create_index("ix_lab_reference_lab_id", "lab_reference", ["lab_id"])
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")
    op.execute(ENDED_BY_HAND)
    op.execute(QUARANTINED_BY_HAND)


def downgrade() -> None:
    for name in VIEWS:
        op.execute(f"DROP VIEW {name}")
    for table in ("lab_reference", "lab", "session", "lab_host"):
        op.drop_table(table)
