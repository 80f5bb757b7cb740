"""Several labs on one host at the same time, separated from each other and from labs of other servers and users."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from neops_remote_lab.core.host_locks import HostLock
from neops_remote_lab.netlab import ownership, tools
from neops_remote_lab.netlab.failures import LabInTheWay, SharesHost
from neops_remote_lab.netlab.host_lab import HostLab
from neops_remote_lab.netlab.lab_manager import LabManager
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import remove_workspace
from tests.fakes import FakeNetlab, topology_text
from tests.labs import Labs, killed_server
from tests.server import labs_in

LAN = """\
provider: clab
defaults.device: frr
nodes: [r1, r2, r3]
links: [r1-r2, r1-r2-r3]
"""


@pytest.fixture
def new_labs(host: FakeNetlab, settings: dict[str, Any]) -> Iterator[Callable[..., Labs]]:
    made: list[Labs] = []

    def make(**changes: object) -> Labs:
        made.append(Labs(settings, **changes))
        return made[-1]

    yield make
    host.control()
    for labs in made:
        labs.close()


@pytest.fixture
def labs(new_labs: Callable[..., Labs]) -> Labs:
    return new_labs()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(text: str = LAN, name: str = "lan.yml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return make


def number(lab: HostLab) -> int | None:
    assert lab.held
    return ownership.number_of(lab.held.base)


def containers_of(lab: HostLab, host: FakeNetlab) -> list[str]:
    assert lab.held
    return sorted(each["name"] for each in host.containers() if each["labels"]["containerlab"] == lab.held.lab_name)


def objects_of(lab: HostLab, host: FakeNetlab) -> list[str]:
    assert lab.held
    return sorted(name for name in host.system_objects() if lab.held.lab_name in name)


# Separate labs


def test_the_end_of_a_lab_leaves_the_same_topology_running_beside_it(
    labs: Labs, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    first, second = labs.at_once(write(), write())
    assert host.violations() == []
    assert len({number(first), number(second)}) == 2
    assert (first.runs(), second.runs()) == (True, True)
    assert (first.netlab_status(), second.netlab_status()) == ("started", "started")
    before = containers_of(second, host), objects_of(second, host)
    assert [len(each) for each in before] == [3, 6]

    assert first.tear_down() == []
    assert (containers_of(second, host), objects_of(second, host)) == before
    assert len(host.containers()) == 3
    assert second.runs()
    assert second.tear_down() == []
    assert host.is_clean()


def test_every_key_that_separates_labs_is_given_to_netlab_create(
    labs: Labs, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    lab = labs.start(write())
    assert lab.held
    [create], [up] = host.invocations("create"), host.invocations("up")
    settings = dict(word.split("=") for word in create if "=" in word)
    assert settings["defaults.multilab.id"] == str(number(lab))
    assert settings["defaults.multilab.change.addressing.mgmt.ipv4"] == f"10.197.{number(lab)}.0/24"
    assert {settings[key] for key in settings if key.endswith("name")} == {lab.held.lab_name}
    assert "defaults.multilab.lock" not in settings
    assert up == ["up", "--snapshot"]


def test_a_prepared_lab_keeps_its_number(labs: Labs, host: FakeNetlab, write: Callable[..., Path]) -> None:
    workspace = labs.check(write())
    prepared = ownership.number_of(workspace.base)
    other = labs.start(write())
    lab = labs.start(workspace)
    assert prepared is not None
    assert (number(lab), number(other)) == (prepared, prepared + 1)
    assert len(host.invocations("create")) == 2


def test_the_number_of_a_removed_lab_is_free_again(labs: Labs, write: Callable[..., Path]) -> None:
    first = labs.start(write())
    taken = number(first)
    first.tear_down()
    assert number(labs.start(write())) == taken


def test_checks_leave_numbers_for_labs_that_start(
    labs: Labs, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    others = [HostLock(settings["lock_dir"], f"number-{each}") for each in range(5, 201)]
    for lock in others:
        lock.acquire()
    workspaces = [labs.upload(write()) for _ in range(5)]
    numbers = labs.host_labs.commands.numbers
    assert [numbers.take(each.base) for each in workspaces[:4]] == [1, 2, 3, 4]
    with pytest.raises(LabInTheWay, match="all 200 lab numbers of this host are in use"):
        numbers.take(workspaces[4].base)
    remove_workspace(workspaces[1].base)
    assert numbers.take(workspaces[4].base) == 2
    with pytest.raises(LabInTheWay):
        numbers.take(labs.upload(write()).base, spare=197)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("links: [{r1: , r2: , r3: , bridge: shared0}]", "links.bridge: the bridge shared0"),
        ("links: [{r1: , clab.uplink: eth0}]", "links.clab.uplink: eth0 of macvlan"),
        ("nodes: {r1: {clab.ports: ['8080:80']}, r2: , r3: }", "nodes.r1.clab.ports"),
        ("nodes: {r1: {clab.network-mode: host}, r2: , r3: }", "nodes.r1.clab.network-mode: host"),
        ("defaults.addressing.mgmt.ipv6: 'fd00:77::/64'", "defaults.addressing.mgmt.ipv6"),
        ("tools: {edgeshark: }", "tools.edgeshark"),
    ],
)
def test_a_topology_that_would_share_something_runs_only_alone(
    new_labs: Callable[..., Labs], host: FakeNetlab, write: Callable[..., Path], change: str, key: str
) -> None:
    text = f"provider: clab\ndefaults.device: frr\n{change}\n"
    text += "" if "nodes" in change else "nodes: [r1, r2, r3]\n"
    labs = new_labs()
    with pytest.raises(SharesHost, match=key):
        labs.check(write(text))
    with pytest.raises(SharesHost, match=key):
        labs.start(write(text))
    assert host.invocations("up") == []
    assert labs.labs[0].held is None
    alone = new_labs(slots=1).start(write(text))
    assert len(containers_of(alone, host)) == 3


@pytest.mark.parametrize("change", ["plugin: []", "name: theirs", "defaults.providers.clab.lab_prefix: ''"])
def test_a_topology_cannot_undo_what_separates_labs(
    labs: Labs, host: FakeNetlab, write: Callable[..., Path], change: str
) -> None:
    labs.at_once(write(f"{LAN}{change}\n"), write(f"{LAN}{change}\n"))
    assert host.violations() == []
    assert len(host.containers()) == 6


# Failures beside a running lab


def test_a_failed_start_removes_only_its_own_lab(labs: Labs, host: FakeNetlab, write: Callable[..., Path]) -> None:
    running = labs.start(write())
    before = host.leftovers()
    with pytest.raises(subprocess.CalledProcessError):
        labs.start(write(topology_text(3, fail="start"), "failing.yml"))
    assert host.leftovers() == before
    assert running.runs()


def test_a_start_that_the_last_check_forbids_leaves_nothing(
    labs: Labs, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    lab, workspace = labs.new(), labs.upload(write())
    lab.reserve(workspace)

    def forbid() -> None:
        assert workspace.snapshot.exists(), "the check is not the last step"
        raise PermissionError

    with pytest.raises(PermissionError):
        lab.start(workspace, threading.Event(), forbid)
    assert host.invocations("up") == []
    assert host.is_clean()
    assert not workspace.base.exists()
    assert lab.held is None


@pytest.mark.parametrize(
    "fail", [{"fail": "down"}, {"fail": "down_probe"}, {"leak_containers": 2, "leak_system": True}]
)
def test_a_forced_teardown_removes_only_its_own_lab(
    labs: Labs, host: FakeNetlab, write: Callable[..., Path], fail: dict[str, object]
) -> None:
    running, ending = labs.start(write()), labs.start(write())
    before = containers_of(running, host), objects_of(running, host)
    host.control(**fail)
    assert ending.tear_down() == []
    assert (containers_of(running, host), objects_of(running, host)) == before
    assert len(host.containers()) == 3
    assert running.runs()


def test_a_lab_without_one_of_its_nodes_counts_as_not_running(
    labs: Labs, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    lab, other = labs.start(write()), labs.start(write())
    subprocess.run(["docker", "rm", "--force", containers_of(lab, host)[0]], check=True, stdout=subprocess.DEVNULL)
    assert (lab.runs(), other.runs()) == (False, True)


def test_containers_of_another_lab_with_the_same_name_are_reported_and_kept(
    labs: Labs, host: FakeNetlab, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = labs.check(write())
    foreign = {"id": "0" * 12, "full_id": "0" * 64, "name": "theirs", "image": "frr", "created": 1.0, "network": "none"}
    labels = {"containerlab": workspace.lab_name, "clab-topo-file": "/srv/theirs/clab.yml", "clab-node-name": "r1"}
    up = labs.host_labs.commands.up

    def up_beside_another(*arguments: Any) -> Any:
        devices = up(*arguments)
        path = host.state / "containers" / "theirs.json"
        path.write_text(json.dumps({**foreign, "ipv4": "", "state": "running", "labels": labels}))
        return devices

    monkeypatch.setattr(labs.host_labs.commands, "up", up_beside_another)
    with pytest.raises(LabInTheWay, match=r"somebody else's lab .* \(containers theirs\) has the name of this lab"):
        labs.start(workspace)
    assert [each["name"] for each in host.containers()] == ["theirs"]


# Other processes


def test_the_labs_of_a_killed_server_are_adopted_with_their_numbers(
    labs: Labs, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    workspaces = killed_server(settings, write(), write())
    before = host.leftovers()
    adopting = [labs.new() for _ in workspaces]
    for lab, workspace in zip(adopting, workspaces, strict=True):
        lab.adopt(workspace)
    assert [number(lab) for lab in adopting] == [1, 2]
    assert [lab.runs() for lab in adopting] == [True, True]
    third = labs.start(write())
    assert number(third) == 3
    assert third.sweep(labs.host_labs.directories()) == []
    third.tear_down()
    assert host.leftovers() == before
    assert [lab.tear_down() for lab in adopting] == [[], []]
    assert host.is_clean()


def test_a_sweep_removes_the_abandoned_lab_and_no_other(
    labs: Labs, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    _, recorded = killed_server(settings, write(), write())
    running, waiting = labs.start(write()), labs.new()
    lock = HostLock(settings["lock_dir"], "number-2")
    lock.acquire()
    with pytest.raises(LabInTheWay, match="number 2"):
        waiting.adopt(recorded)  # the caller tries again later
    assert running.sweep(labs.host_labs.directories()) == []
    assert labs_in(settings["work_dir"]) == sorted([recorded.lab_id, running.held.lab_id if running.held else ""])
    lock.release()
    waiting.adopt(recorded)
    assert (waiting.runs(), running.runs()) == (True, True)


def test_a_number_is_not_given_out_while_the_lab_of_a_killed_server_exists(
    new_labs: Callable[..., Labs], host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    killed_server(settings, write())
    assert number(new_labs().start(write())) == 2


def test_a_server_with_one_slot_removes_the_labs_of_one_with_several(
    new_labs: Callable[..., Labs], host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    adopted, abandoned = killed_server(settings, write(), write())
    labs = new_labs(slots=1)
    lab = labs.new()
    lab.adopt(adopted)
    assert lab.runs()
    with pytest.raises(LabInTheWay, match="another lab of this server is still running"):
        labs.start(write())
    assert lab.sweep([abandoned.base]) == []
    assert len(host.containers()) == 3
    assert lab.tear_down() == []
    assert host.is_clean()


def test_a_lab_that_runs_alone_is_adopted_by_a_server_with_several(
    labs: Labs, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    host.change_containerlab("0.75.0")
    host.control(deploy_race=True, node_seconds=0.1)
    [alone] = killed_server(settings, write(), slots=1)
    adopting = labs.new()
    adopting.adopt(alone)
    beside = labs.start(write())
    assert (adopting.runs(), beside.runs()) == (True, True)
    assert (number(adopting), number(beside)) == (None, 1)
    with ThreadPoolExecutor() as pool:
        starting = pool.submit(labs.start, write())
        assert adopting.tear_down() == []
        assert starting.result().runs()
    assert beside.runs()


def test_a_local_manager_waits_until_no_lab_is_left(
    labs: Labs, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    manager = LabManager(NetlabSettings.model_validate({**settings, "slots": 3}))
    first, second = labs.start(write()), labs.start(write())
    first.tear_down()
    assert manager.try_acquire(write()) is None
    second.tear_down()
    assert manager.try_acquire(write()) is not None
    with pytest.raises(LabInTheWay, match="another process of this host holds its lab"):
        labs.start(write())
    manager.cleanup()


@pytest.mark.parametrize(("version", "starts"), [("0.76.1", True), ("0.75.0", False)])
def test_an_old_containerlab_starts_no_lab_beside_one_that_a_user_started(
    labs: Labs, host: FakeNetlab, write: Callable[..., Path], version: str, starts: bool
) -> None:
    host.change_containerlab(version)
    by_hand = host.root / "colleague"
    by_hand.mkdir()
    (by_hand / "topology.yml").write_text(LAN)
    subprocess.run(["netlab", "up"], cwd=by_hand, check=True, capture_output=True)
    before = host.leftovers()
    if starts:
        assert labs.host_labs.new().in_the_way() is None
        lab = labs.start(write())
        assert lab.runs()
        assert host.violations() == []
    else:
        assert "in a directory 'colleague'" in (labs.host_labs.new().in_the_way() or "")
        with pytest.raises(LabInTheWay, match="somebody else's lab runs on this host, in a directory 'colleague'"):
            labs.start(write())
    labs.close()
    assert host.leftovers() == before


# Races


def test_labs_do_not_share_a_list_of_instances(labs: Labs, host: FakeNetlab, write: Callable[..., Path]) -> None:
    host.control(status_race=True)
    for lab in labs.at_once(write(), write(), write()):
        assert lab.tear_down() == []
    assert all(line["status"] == 0 for line in host.log() if line["event"] == "end" and line["argv"][1] == "down")
    assert host.is_clean()


def test_an_old_containerlab_is_locked(
    labs: Labs, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    host.change_containerlab("0.75.0")
    host.control(deploy_race=True, node_seconds=0.05, down_seconds=0.1)
    started = labs.at_once(write(), write(), write())
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(HostLab.tear_down, started)) == [[], [], []]
    assert host.is_clean()
    [lock] = settings["lock_dir"].glob("neops-remote-lab-provider.*.lock")
    assert all(f"defaults.multilab.lock={lock}" in argv for argv in host.invocations("create"))


# Settings that cannot work on a host


def test_a_network_of_the_host_is_not_given_to_labs(new_labs: Callable[..., Labs], write: Callable[..., Path]) -> None:
    labs = new_labs(lab_network="127.0.0.0/16")
    assert "overlaps with 127.0.0.0/8 on the interface lo" in (tools.refusal(labs.settings) or "")
    assert tools.refusal(labs.settings.model_copy(update={"slots": 1})) is None
    with pytest.raises(LabInTheWay, match="all 200 lab numbers"):
        labs.start(write())


def test_an_old_containerlab_without_a_lock_command_is_refused(
    host: FakeNetlab, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    several = NetlabSettings.model_validate({**settings, "slots": 2})
    assert tools.refusal(several) is None
    (host.bin / "containerlab").unlink()
    monkeypatch.setenv("PATH", str(host.bin))
    assert "the command flock (util-linux) is missing" in (tools.refusal(several) or "")
