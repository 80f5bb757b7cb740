"""What tests with models of the queue share: a clock that they move, and how much they try."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, Phase, settings

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.store.sql.tables import METADATA, QUEUE
from tests.chaos.shell import Shell

EXAMPLES = int(os.environ.get("REMOTE_LAB_MODEL_EXAMPLES", "15"))
"""Number of runs of each model. Each has at most as many steps as `STEPS`."""
STEPS = 25


class HandClock(Clock):
    """A clock that only the test moves; the wall clock also jumps."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.wrong = timedelta()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds) + self.wrong

    def monotonic(self) -> float:
        return self.seconds


def remove_rows(shell: Shell) -> None:
    """Leave a database as it was created, which takes less time than to create one."""
    for table in reversed(METADATA.sorted_tables):
        if table is not QUEUE:
            shell(f"DELETE FROM {table.name}")  # noqa: S608
    shell("DELETE FROM event")  # of the sessions that were removed
    shell("UPDATE queue SET last_rank = 0")


def limits() -> settings:
    """How much a model is compared. A failed run is reported as it is, because shrinking it takes minutes."""
    return settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
    )
