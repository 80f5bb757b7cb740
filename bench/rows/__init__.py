"""The measurements, by the names that `--only` accepts."""

from collections.abc import Callable
from typing import Final

from bench.measure import Row
from bench.rows import (
    acquire,
    calls,
    devices,
    firsttest,
    handover,
    held,
    joining,
    loop,
    plugin,
    postgresql,
    proxy,
    queue,
    slots,
    stall,
    start,
    wholerun,
)
from bench.servers import Bench

ROWS: Final[dict[str, Callable[[Bench], list[Row]]]] = {
    "hand-over": handover.measure,
    "acquire": acquire.measure,
    "acquire-real": acquire.measure_real,
    "prestart": slots.measure_prestart,
    "labs-real": slots.measure_real,
    "whole-run": wholerun.measure,
    "whole-run-real": wholerun.measure_real,
    "runs": slots.measure_runs,
    "requests": calls.measure,
    "long-queue": queue.measure,
    "held-calls": held.measure,
    "joining": joining.measure,
    "postgresql": postgresql.measure,
    "idle-servers": postgresql.measure_idle,
    "devices": devices.measure,
    "loop": loop.measure,
    "proxy": proxy.measure,
    "stall": stall.measure,
    "start": start.measure,
    "plugin-cost": plugin.measure,
    "first-test": firsttest.measure,
}
