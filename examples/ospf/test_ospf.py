"""Looks into the routers of the lab.

The routers are containers of the lab host, so Docker must reach that host: these tests run on it, or with
`DOCKER_HOST=ssh://user@lab-host` from anywhere else.
"""

import json
import logging
import subprocess
import time
from collections.abc import Callable

import pytest

from neops_remote_lab.models import DeviceInfoDto

DEADLINE_SECONDS = 90
"""OSPF finds its neighbours within one hello and dead interval, 40 seconds; the rest is for a slow host."""

log = logging.getLogger(__name__)


def run_in(router: DeviceInfoDto, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command inside a router. It may fail: the daemons may still be starting."""
    arguments = ["docker", "exec", router.raw["hostname"], *command]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)


def full_neighbours(router: DeviceInfoDto) -> set[str]:
    """Router ids of the OSPF neighbours with which a router has a full adjacency."""
    answer = run_in(router, "vtysh", "-c", "show ip ospf neighbor json")
    if answer.returncode != 0:
        return set()
    neighbours = json.loads(answer.stdout).get("neighbors", {})
    return {router_id for router_id, (state, *_) in neighbours.items() if state["nbrState"].startswith("Full")}


def within_deadline(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true before the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def test_the_lab_has_three_routers(ospf: list[DeviceInfoDto]) -> None:
    for router in ospf:
        log.info("%s: %s, router id %s", router.name, router.raw["box"], router.raw["ospf"]["router_id"])
    assert sorted(router.name for router in ospf) == ["r1", "r2", "r3"]


@pytest.mark.parametrize("name", ["r1", "r2", "r3"])
def test_a_router_is_fully_adjacent_to_both_others(ospf: list[DeviceInfoDto], name: str) -> None:
    router = next(router for router in ospf if router.name == name)
    others = {other.raw["ospf"]["router_id"] for other in ospf if other.name != name}
    assert within_deadline(lambda: full_neighbours(router) == others), (
        f"{name} has {sorted(full_neighbours(router))} and lacks {sorted(others - full_neighbours(router))}"
    )


def test_a_router_reaches_the_loopback_of_another(ospf: list[DeviceInfoDto]) -> None:
    routers = {router.name: router for router in ospf}
    target = routers["r3"].raw["loopback"]["ipv4"].partition("/")[0]
    assert within_deadline(lambda: run_in(routers["r1"], "ping", "-c", "1", "-W", "2", target).returncode == 0)
