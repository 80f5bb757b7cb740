"""The lab without a server: started, shared, locked against other processes, and removed completely."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

import neops_remote_lab
from neops_remote_lab.netlab.lab_manager import LabManager, LocalLab
from neops_remote_lab.netlab.settings import NetlabSettings
from tests.chaos.shell import is_running, wait_for_event
from tests.fakes import FakeNetlab, topology_text, wait_until
from tests.server import labs_in

Manage = Callable[..., LabManager]


@pytest.fixture
def new_manager(host: FakeNetlab, settings: dict[str, Any]) -> Iterator[Manage]:
    made: list[LabManager] = []

    def make(**changes: object) -> LabManager:
        made.append(LabManager(NetlabSettings.model_validate({**settings, **changes})))
        return made[-1]

    yield make
    host.control()
    for manager in made:
        manager.cleanup()


@pytest.fixture
def manager(new_manager: Manage) -> LabManager:
    return new_manager()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a topology file. Returns its path."""

    def make(name: str = "routers.yml", text: str | None = None, **knobs: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text or topology_text(2, **knobs))
        return path

    return make


def directories(settings: dict[str, Any]) -> list[Path]:
    return [settings["work_dir"] / name for name in labs_in(settings["work_dir"])]


def names(devices: list[Any] | None) -> list[str] | None:
    return None if devices is None else [device.name for device in devices]


def lab_name(manager: LabManager) -> str:
    assert manager.current
    return manager.current.workspace.lab_name


def python(script: str, host: FakeNetlab, settings: dict[str, Any], *arguments: object) -> subprocess.Popen[str]:
    """Start a script in another process, which has a lab manager `manager` on the same host."""
    flags = {name: str(value) for name, value in settings.items()}
    head = (
        "import sys, logging; from pathlib import Path\n"
        "from neops_remote_lab.netlab.lab_manager import LabManager\n"
        "from neops_remote_lab.netlab.settings import NetlabSettings\n"
        f"manager = LabManager(NetlabSettings.model_validate({flags!r}))\n"
    )
    environment = host.environment() | {"PYTHONPATH": str(Path(neops_remote_lab.__path__[0]).parent)}
    return subprocess.Popen(
        [sys.executable, "-c", head + script, *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Acquire and release


def test_a_lab_runs_from_its_first_acquire_to_its_last_release(
    manager: LabManager, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    topology = write()
    assert names(manager.acquire(topology)) == ["r1", "r2"]
    assert names(manager.try_acquire(topology)) == ["r1", "r2"]
    assert (manager.status().ref_count, manager.status().state) == (2, "running")
    manager.release(topology)
    assert (manager.status().ref_count, len(host.containers())) == (1, 2)
    manager.release(topology)
    assert (manager.status().running, manager.status().state) == (False, "none")
    assert host.is_clean()
    assert directories(settings) == []
    assert [argv[0] for argv in host.invocations()] == ["up", "inspect", "down"]


def test_the_same_bytes_under_another_name_are_the_same_lab(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    manager.acquire(write("one.yml"))
    manager.acquire(write("elsewhere/two.yml"))
    assert (manager.status().topology, manager.status().ref_count) == ("one.yml", 2)
    manager.release(write("elsewhere/two.yml"))
    manager.release(write("one.yml"))
    assert host.is_clean()
    assert len(host.invocations("up")) == 1


def test_a_busy_host_is_reported_at_once(
    manager: LabManager, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    topology = write()
    manager.acquire(topology)
    assert manager.try_acquire(topology, reuse=False) is None
    assert manager.try_acquire(write("other.yml", topology_text(1))) is None
    assert manager.status().ref_count == 1
    assert len(directories(settings)) == 1


def test_an_acquire_waits_until_the_host_is_free(manager: LabManager, write: Callable[..., Path]) -> None:
    first, second = write("one.yml", down_seconds=0.2), write("two.yml", topology_text(1))
    manager.acquire(first)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(manager.acquire, second)
        assert manager.try_acquire(second) is None
        manager.release(first)
        assert names(waiting.result(20)) == ["r1"]
    manager.release(second)


def test_a_wait_reports_who_uses_the_host_and_may_be_ended(manager: LabManager, write: Callable[..., Path]) -> None:
    def give_up(holder: str) -> None:
        reports.append(holder)
        if len(reports) == 3:
            raise TimeoutError

    reports: list[str] = []
    manager.acquire(write("one.yml"))
    with pytest.raises(TimeoutError):
        manager.acquire(write("two.yml", topology_text(1)), on_wait=give_up)
    assert reports == ["this process uses the host's lab, for one.yml"] * 3


def test_a_release_without_a_topology_releases_the_running_lab(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    manager.acquire(write())
    write(text="changed")
    manager.release()
    assert host.is_clean()
    with pytest.raises(RuntimeError, match="nothing to release"):
        manager.release()


def test_threads_that_acquire_the_same_lab_start_it_once(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    topology = write(start_seconds=0.3)
    with ThreadPoolExecutor(5) as pool:
        found = [pool.submit(manager.acquire, topology) for _ in range(5)]
        assert [names(one.result(20)) for one in found] == [["r1", "r2"]] * 5
    assert (manager.status().ref_count, len(host.invocations("up"))) == (5, 1)
    for _ in range(5):
        manager.release(topology)
    assert host.is_clean()


def test_threads_that_acquire_different_labs_get_them_one_after_the_other(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    def use(number: int) -> list[str] | None:
        topology = write(f"t{number}.yml", topology_text(number))
        found = names(manager.acquire(topology))
        manager.release(topology)
        return found

    with ThreadPoolExecutor(3) as pool:
        assert [len(found or []) for found in pool.map(use, (1, 2, 3))] == [1, 2, 3]
    assert host.violations() == []
    assert host.is_clean()


def test_cleanup_tears_the_lab_down_despite_references(
    manager: LabManager, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    topology = write()
    for _ in range(3):
        manager.acquire(topology)
    manager.cleanup()
    assert host.is_clean()
    assert directories(settings) == []
    manager.cleanup()
    with pytest.raises(RuntimeError, match="nothing to release"):
        manager.release(topology)


def test_only_the_topology_that_runs_can_be_released(manager: LabManager, write: Callable[..., Path]) -> None:
    topology, other = write(), write("other.yml", topology_text(1))
    manager.acquire(topology)
    with pytest.raises(ValueError, match=r"other\.yml is not the topology that runs"):
        manager.release(other)
    assert manager.status().ref_count == 1


@pytest.mark.parametrize("name", ["routers.yaml", "routers.txt", "routers"])
def test_only_yml_files_are_accepted(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path], name: str
) -> None:
    with pytest.raises(ValueError, match=r"must end in \.yml"):
        manager.acquire(write(name))
    assert host.invocations() == []


def test_a_missing_topology_is_reported(manager: LabManager, settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        manager.acquire(tmp_path / "missing.yml")
    assert directories(settings) == []


def test_the_topology_may_change_while_its_lab_runs(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    manager.acquire(write())
    assert manager.try_acquire(write(text=topology_text(3))) is None
    manager.release(write())
    assert names(manager.acquire(write(text=topology_text(3)))) == ["r1", "r2", "r3"]


# Extra files


def test_extra_files_are_copied_with_their_modes(
    manager: LabManager, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    topology = write()
    for name in ("templates/bgp/frr.j2", "start.sh", "clab.yml"):
        (topology.parent / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (topology.parent / "files" / name).write_text(name)
    topology = topology.rename(topology.parent / "files" / topology.name)
    topology.with_name("start.sh").chmod(0o755)
    manager.acquire(topology, extra_files=["."])
    [directory] = directories(settings)
    assert (directory / "lab/templates/bgp/frr.j2").read_text() == "templates/bgp/frr.j2"
    assert os.access(directory / "lab/start.sh", os.X_OK)
    assert not os.access(directory / "lab/templates/bgp/frr.j2", os.X_OK)
    assert (directory / "lab/clab.yml").read_text() != "clab.yml"
    assert manager.try_acquire(topology) is None
    assert names(manager.try_acquire(topology, extra_files=["start.sh", "templates"])) == ["r1", "r2"]
    assert manager.status().ref_count == 2


@pytest.mark.parametrize(("name", "error"), [("missing", FileNotFoundError), ("../other", ValueError)])
def test_an_invalid_file_leaves_nothing_behind(
    manager: LabManager, settings: dict[str, Any], write: Callable[..., Path], name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        manager.acquire(write(), extra_files=[name])
    assert directories(settings) == []


# Devices


def test_devices_are_read_by_one_process_regardless_of_their_number(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    for nodes in (1, 4, 16):
        topology = write(f"t{nodes}.yml", topology_text(nodes))
        before = len(host.invocations())
        assert len(manager.acquire(topology)) == nodes
        manager.release(topology)
        assert [argv[0] for argv in host.invocations()[before:]] == ["up", "inspect", "down"]


def test_devices_are_read_one_by_one_if_netlab_cannot_list_them_together(
    new_manager: Manage, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    together = new_manager()
    topology = write()
    expected = together.acquire(topology)
    name = lab_name(together)
    together.release(topology)
    host.control(fail="expression")
    one_by_one = new_manager()
    found = one_by_one.acquire(topology)
    assert [device.model_dump_json().replace(lab_name(one_by_one), name) for device in found] == [
        device.model_dump_json() for device in expected
    ]
    one_by_one.release(topology)


def test_the_external_provider_gets_its_confirmation(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    topology = write(text=topology_text(2, provider="external"))
    assert names(manager.acquire(topology)) == ["r1", "r2"]
    manager.release(topology)
    assert host.is_clean()


def test_configured_arguments_are_passed_to_netlab_up(
    new_manager: Manage, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    new_manager(netlab_up_args=("--no-config", "-v")).acquire(write())
    (arguments,) = host.invocations("up")
    assert arguments[:2] == ["up", "remote-lab-topology.yml"]
    assert {"--no-config", "-v"} <= set(arguments)


def test_each_lab_has_a_unique_name_regardless_of_its_topology(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    topology, named = write(), set()
    topology.write_text(topology_text(2, name="theirs"))
    for _ in range(2):
        manager.acquire(topology)
        named.add(lab_name(manager))
        assert {container["labels"]["containerlab"] for container in host.containers()} == {lab_name(manager)}
        manager.release(topology)
    assert len(named) == 2
    assert all(re.fullmatch("rl[0-9a-f]{8}", name) for name in named)


# Failure


@pytest.mark.parametrize("phase", ["probe", "start", "config"])
def test_a_failed_start_leaves_nothing_behind_and_the_next_one_works(
    manager: LabManager, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path], phase: str
) -> None:
    host.control(fail=phase)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        manager.acquire(write())
    assert failed.value.stderr
    assert host.is_clean()
    assert directories(settings) == []
    assert manager.status().state == "none"
    host.control()
    assert names(manager.acquire(write())) == ["r1", "r2"]


def test_a_rejected_topology_is_reported_with_netlabs_message(
    manager: LabManager, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match="Invalid topology attribute 'colour'"):
        manager.acquire(write(text=topology_text(1) + "colour: red\n"))
    assert host.is_clean()
    assert directories(settings) == []


def test_a_start_that_takes_too_long_leaves_nothing_behind(
    new_manager: Manage, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    host.control(hang="start", stubborn=True, hang_child=True)
    with pytest.raises(subprocess.TimeoutExpired):
        new_manager(up_timeout=1).acquire(write())
    assert host.is_clean()
    assert directories(settings) == []


def test_without_netlab_the_lock_is_released(
    new_manager: Manage, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    with pytest.raises(FileNotFoundError):
        new_manager(netlab="no-such-netlab").acquire(write())
    assert directories(settings) == []
    assert names(new_manager().try_acquire(write())) == ["r1", "r2"]


def test_an_interrupt_ends_a_start(manager: LabManager, host: FakeNetlab, write: Callable[..., Path]) -> None:
    host.control(hang="start")
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(manager.acquire, write())
        wait_until(lambda: any(line["event"] == "hang" for line in host.log()), 20)
        host.control()
        manager.interrupt()
        with pytest.raises(InterruptedError):
            starting.result(20)
    assert host.is_clean()
    assert manager.status().state == "none"


def test_a_cleanup_interrupts_a_start_first(
    manager: LabManager, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    host.control(hang="start")
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(manager.acquire, write())
        wait_until(lambda: any(line["event"] == "hang" for line in host.log()), 20)
        host.control()
        manager.cleanup()
        with pytest.raises(InterruptedError):
            starting.result(20)
    assert host.is_clean()
    assert directories(settings) == []
    assert len(host.invocations("down")) == 1


def test_two_concurrent_teardowns_are_one(manager: LabManager, host: FakeNetlab, write: Callable[..., Path]) -> None:
    manager.acquire(write(down_seconds=0.5))
    with ThreadPoolExecutor(2) as pool:
        assert [one.result(20) for one in [pool.submit(manager.tear_down) for _ in range(2)]] == [[], []]
    assert len(host.invocations("down")) == 1


@pytest.mark.parametrize(
    "knobs",
    [
        {"leak_containers": 1},
        {"fail": "down"},
        {"fail": "down_probe"},
        {"fail": "down", "fail_times": 1},
        {"hang": "down"},
    ],
    ids=["containers are left", "refused", "nothing done", "refused once", "never ends"],
)
def test_a_teardown_is_repeated_until_nothing_is_left(
    new_manager: Manage, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path], knobs: dict[str, Any]
) -> None:
    manager, topology = new_manager(down_timeout=1), write()
    manager.acquire(topology)
    host.control(**knobs)
    manager.release(topology)
    assert host.is_clean()
    assert directories(settings) == []


def test_leftovers_are_reported_and_the_host_stays_locked(
    manager: LabManager, new_manager: Manage, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    topology = write()
    manager.acquire(topology)
    host.control(leak_containers=1, docker_rm_fails=True)
    with pytest.raises(RuntimeError, match=r"container clab-rl[0-9a-f]{8}-r\d is left"):
        manager.release(topology)
    assert manager.status().state == "stopping"
    assert new_manager().try_acquire(topology) is None
    host.control()
    assert manager.tear_down() == []
    assert host.is_clean()
    assert names(new_manager().try_acquire(topology)) == ["r1", "r2"]


def test_a_host_that_cannot_be_checked_counts_as_not_clean(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    topology = write()
    manager.acquire(topology)
    host.control(docker_unreachable=True)
    with pytest.raises(RuntimeError, match="cannot be queried"):
        manager.release(topology)
    host.control()
    assert manager.tear_down() == []


# Other processes


def test_other_processes_cannot_use_the_host_while_a_lab_runs(
    manager: LabManager, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    topology = write()
    script = "print([d.name for d in manager.try_acquire(Path(sys.argv[1])) or []])\nmanager.cleanup()"

    def other() -> str:
        return python(script, host, settings, topology).communicate(timeout=60)[0]

    manager.acquire(topology)
    assert other() == "[]\n"
    assert manager.status().running
    manager.release(topology)
    assert other() == "['r1', 'r2']\n"
    assert host.is_clean()
    assert host.violations() == []


def test_another_process_waits_until_the_host_is_free(
    manager: LabManager, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    topology = write()
    manager.acquire(topology)
    script = (
        "print('waits', flush=True)\nprint([d.name for d in manager.acquire(Path(sys.argv[1]))])\nmanager.cleanup()"
    )
    with python(script, host, settings, topology) as other:
        assert other.stdout
        assert other.stdout.readline() == "waits\n"
        assert other.poll() is None
        manager.release(topology)
        assert other.communicate(timeout=60)[0] == "['r1', 'r2']\n"
    assert host.violations() == []


def test_a_killed_process_releases_the_host(
    manager: LabManager, host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    topology = write()
    script = "manager.acquire(Path(sys.argv[1]))\nprint('up', flush=True)\nsys.stdin.read()"
    with python(script, host, settings, topology) as other:
        assert other.stdout
        assert other.stdout.readline() == "up\n"
        assert manager.try_acquire(topology) is None
        other.kill()
    assert manager.sweep(directories(settings)) == []
    assert host.is_clean()
    assert names(manager.try_acquire(topology)) == ["r1", "r2"]


# From version 3.12, Python itself refuses new threads at exit.
NO_THREAD_AT_EXIT = """
import atexit, threading
def refuse(_): raise RuntimeError("can't create new thread at interpreter shutdown")
atexit.register(setattr, threading.Thread, "start", refuse)
"""


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("", id="end"),
        pytest.param("sys.exit(3)", id="exit"),
        pytest.param("raise SystemExit", id="SystemExit"),
        pytest.param("import threading; threading.Thread(target=lambda: None).start()", id="threads"),
        pytest.param(NO_THREAD_AT_EXIT, id="no thread at exit"),
    ],
)
def test_a_process_that_ends_without_a_release_leaves_nothing_and_prints_nothing(
    host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path], end: str
) -> None:
    script = "logging.basicConfig(level='DEBUG', stream=sys.stdout); logging.disable(); logging.disable(0)\n"
    script += f"manager.acquire(Path(sys.argv[1]))\nlogging.getLogger().handlers[0].flush(); print('---')\n{end}"
    out, err = python(script, host, settings, write()).communicate(timeout=60)
    assert out.endswith("---\n")
    assert err == ""
    assert host.is_clean()
    assert directories(settings) == []
    assert len(host.invocations("down")) == 1


def test_a_process_that_fails_shows_its_error_and_leaves_nothing_behind(
    host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    script = "manager.acquire(Path(sys.argv[1]))\nraise ValueError('mine')"
    out, err = python(script, host, settings, write()).communicate(timeout=60)
    assert out == ""
    assert err.rstrip().endswith("ValueError: mine")
    assert host.is_clean()


def test_ctrl_c_while_a_lab_starts_leaves_no_netlab_behind(
    host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path]
) -> None:
    host.control(hang="start")
    with python("manager.acquire(Path(sys.argv[1]))", host, settings, write()) as process:
        [hanging] = wait_for_event(host, "hang")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].rstrip().endswith("KeyboardInterrupt")
    assert not is_running(hanging["pid"])
    assert host.is_clean()


# Status, reference counts and settings


def test_the_status_never_waits_for_netlab(manager: LabManager, host: FakeNetlab, write: Callable[..., Path]) -> None:
    topology = write(start_seconds=1)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(manager.acquire, topology)
        wait_until(lambda: host.invocations("up"), 20)
        assert (manager.status().state, manager.status().running) == ("starting", False)
        assert not starting.done()
        assert starting.result(20)
    assert manager.netlab_status() == "started"
    manager.release(topology)


BARRIER_TIMEOUT = 2.0
"""Seconds that a thread waits for another one to read the count. No other one does while a lock is held."""


class RacingLab(LocalLab):
    """A lab whose reference count two threads read before either changes it, unless a lock prevents that."""

    barrier: ClassVar[threading.Barrier]

    @property
    def references(self) -> int:
        count = int(vars(self)["references"])
        with suppress(threading.BrokenBarrierError):
            self.barrier.wait(BARRIER_TIMEOUT)
        return count

    @references.setter
    def references(self, count: int) -> None:
        vars(self)["references"] = count


def test_two_releases_at_the_same_time_are_both_counted(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    topology = write()
    manager.acquire(topology)
    manager.acquire(topology)
    RacingLab.barrier = threading.Barrier(2)
    held = manager.current
    assert held
    held.__class__ = RacingLab
    with ThreadPoolExecutor(2) as threads:
        for release in [threads.submit(manager.release, topology) for _ in range(2)]:
            release.result(30)
    assert manager.current is None
    assert host.is_clean()


def test_no_more_is_released_than_was_acquired(
    manager: LabManager, host: FakeNetlab, write: Callable[..., Path]
) -> None:
    topology = write()
    manager.acquire(topology)
    host.control(hang="down")
    with ThreadPoolExecutor(1) as threads:
        last = threads.submit(manager.release, topology)
        hanging = wait_for_event(host, "hang")
        host.control()
        try:
            with pytest.raises(RuntimeError, match="nothing to release"):
                manager.release(topology)
            assert manager.try_acquire(topology) is None
        finally:
            for line in hanging:
                os.kill(line["pid"], signal.SIGKILL)
        last.result(30)
    assert manager.current is None


def test_no_thread_or_process_is_left_of_a_lab(manager: LabManager, write: Callable[..., Path]) -> None:
    before = threading.active_count()
    topology = write()
    manager.acquire(topology)
    manager.release(topology)
    wait_until(lambda: threading.active_count() <= before)


def test_without_settings_those_of_the_environment_are_used(
    host: FakeNetlab, settings: dict[str, Any], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work_dir", "lock_dir"):
        monkeypatch.setenv(f"NEOPS_REMOTE_LAB_{name.upper()}", str(settings[name]))
    monkeypatch.setenv("NEOPS_REMOTE_LAB_NETLAB_UP_ARGS", "--no-config")
    manager, topology = LabManager(), write()
    manager.acquire(topology)
    assert len(directories(settings)) == 1
    manager.release(topology)
    assert "--no-config" in host.invocations("up")[0]
