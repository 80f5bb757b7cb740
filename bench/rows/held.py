"""Thousands of long polls: memory, hand-over, and CPU time of the idle server."""

import asyncio

from bench import load
from bench.measure import Row, Sample, Target
from bench.polls import WaitingClients
from bench.servers import NEVER, Bench, fill

FEW, MANY = 10, (1000, 5000)


def measure(bench: Bench) -> list[Row]:
    """Compare few with many long polls."""
    return [row for clients in MANY for row in _compare(bench, clients)]


def _compare(bench: Bench, clients: int) -> list[Row]:
    # Last-seen times are written before the idle time begins, not during it.
    servers = [bench.our_server(waiting_timeout=NEVER, active_timeout=NEVER, last_seen_write="2") for _ in range(2)]
    groups = [
        WaitingClients(server, fill(server.database_url, count))
        for server, count in zip(servers, (FEW, clients), strict=True)
    ]
    with bench.several(servers):
        hand_over, cpu = load.run(lambda: _in_turn(bench, groups), 110)
    few, many = groups
    return [
        _row("hand-over", clients, "ms", ours=hand_over[1], few=hand_over[0], target=Target(ratio=3)),
        _row("idle CPU", clients, "% of a core", ours=cpu[1], few=cpu[0], target=Target(ceiling=1)),
        _row("memory a client", clients, "kB", ours=[many.memory / 1000], few=[few.memory / 1000], target=Target()),
    ]


def _row(what: str, clients: int, unit: str, *, ours: list[float], few: list[float], target: Target) -> Row:
    return Row(
        "held calls",
        f"{what}, {clients} held",
        unit,
        Sample(ours),
        f"{FEW} held",
        Sample(few),
        target,
        chart="held calls",
        line=f"{what}, {unit}",
        x=clients,
    )


async def _in_turn(bench: Bench, groups: list[WaitingClients]) -> tuple[list[list[float]], list[list[float]]]:
    for group in groups:
        await group.open()
    hand_over: list[list[float]] = [[], []]
    cpu: list[list[float]] = [[], []]
    for _ in range(bench.choose(60, 200)):
        for index, group in enumerate(groups):
            hand_over[index].append(1000 * await group.hand_over())
    for group in groups:
        await group.wait_until_idle()  # after the last hand-over, clients get new positions and poll again
    for _ in range(bench.choose(1, 3)):
        # Both at the same time, because idle servers in separate processes do not disturb each other.
        found = await asyncio.gather(*(group.processor_share(bench.choose(3.0, 5.0)) for group in groups))
        for index, percent in enumerate(found):
            cpu[index].append(percent)
    for group in groups:
        await group.close()
    return hand_over, cpu
