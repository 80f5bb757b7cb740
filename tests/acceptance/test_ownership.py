"""Foreign directories, labs, networks and processes are never touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest
import yaml

import neops_remote_lab
from neops_remote_lab.netlab.logs import FailedLogs
from neops_remote_lab.netlab.ownership import MARKER_DIR, RECORD, claim, directories, new_directory, proof, remove, tidy
from tests.chaos.shell import ask, fake, lab, queue, sql
from tests.fakes import FakeNetlab, install_fake_netlab, topology_text, wait_until
from tests.server import LabServer, abandoned_directory, labs_in, running_server

TOPOLOGY = topology_text(nodes=2)
LAN = "provider: clab\ndefaults.device: frr\nnodes: [r1, r2, r3]\nlinks: [r1-r2-r3]\n"


def refused(server: LabServer) -> str:
    """Start a server that refuses to start. Returns its message."""
    server.launch()
    assert server.wait(30) == 1
    return server.log.read_text()


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# The work directory


def home(path: Path) -> None:
    (path / ".ssh").mkdir()
    (path / ".ssh" / "id_ed25519").write_text("key")


def checkout(path: Path) -> None:
    (path / ".git").mkdir()
    (path / "src").mkdir()
    (path / "src" / "main.py").write_text("pass")


def forged(path: Path) -> None:
    (path / MARKER_DIR).mkdir()
    (path / MARKER_DIR / "work-dir.json").write_text("{}")
    checkout(path)


@pytest.mark.parametrize("fill", [home, checkout, forged])
def test_a_directory_with_content_and_no_marker_is_no_work_directory(
    tmp_path: Path, fill: Callable[[Path], None]
) -> None:
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"))
    server.work_dir.mkdir()
    fill(server.work_dir)
    before = tree(server.work_dir)
    assert f"the work directory {server.work_dir} has content" in refused(server)
    assert "--work-dir" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    assert tree(server.work_dir) == before


def test_the_root_of_the_file_system_is_no_work_directory(tmp_path: Path) -> None:
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"), {"work-dir": "/"})
    assert "the work directory / " in refused(server)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
@pytest.mark.parametrize("linked", [False, True])
def test_a_directory_of_another_user_is_no_work_directory(tmp_path: Path, linked: bool) -> None:
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"))
    if linked:
        (tmp_path / "real").mkdir()
        server.work_dir.symlink_to(tmp_path / "real")
        os.lchown(server.work_dir, 12345, 12345)
    else:
        server.work_dir.mkdir()
        os.chown(server.work_dir, 12345, 12345)
    assert "belongs to another user" in refused(server)


def test_a_directory_without_a_record_stays_in_the_work_directory(lab_server: LabServer, tmp_path: Path) -> None:
    lab_server.kill()
    work_dir, elsewhere = lab_server.work_dir, tmp_path / "elsewhere"
    checkout_dir = work_dir / "0123456789abcdef"
    checkout_dir.mkdir()
    checkout(checkout_dir)
    elsewhere.mkdir()
    checkout(elsewhere)
    (work_dir / "link").symlink_to(elsewhere)
    (work_dir / "a-file").write_text("mine")
    renamed = abandoned_directory(work_dir, "another-name").rename(work_dir / "renamed")
    of_another = abandoned_directory(work_dir, "of-another-host", host="another-host")
    stranger = abandoned_directory(work_dir, "of-another-server")
    record = json.loads((stranger / RECORD).read_text())
    (stranger / RECORD).write_text(json.dumps({**record, "work_dir": "another"}))
    (work_dir / "linked").symlink_to(abandoned_directory(elsewhere / "work", "linked"))
    left = abandoned_directory(work_dir, "left")
    (left / "files").mkdir()
    (left / "outside").symlink_to(elsewhere)
    before = tree(elsewhere)

    lab_server.start()
    wait_until(lambda: not left.exists(), 20)
    assert lab_server.acquire(lab_server.join(), TOPOLOGY).status_code == 200
    lab_server.stop()
    names = {"0123456789abcdef", "link", "linked", "a-file", renamed.name, of_another.name, stranger.name}
    assert set(lab_server.lab_directories()) == names
    assert (checkout_dir / "src" / "main.py").exists()
    assert tree(elsewhere) == before


def test_the_logs_of_failed_labs_are_not_reported_as_foreign(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    claim(tmp_path / "labs")
    FailedLogs(tmp_path / "labs", days=1, number=1).keep("0123456789abcdef", tmp_path / "netlab.log")
    (tmp_path / "labs" / "of-another").mkdir()
    assert directories(tmp_path / "labs") == []
    assert caplog.messages == [f"{tmp_path / 'labs' / 'of-another'} has no record of a lab: it is kept"]


def test_a_directory_that_is_being_made_is_not_removed_as_unfinished(tmp_path: Path) -> None:
    claim(tmp_path / "labs")
    over = threading.Event()

    def tidy_until_the_end() -> None:
        while not over.is_set():
            tidy(tmp_path / "labs")

    other = threading.Thread(target=tidy_until_the_end)
    other.start()
    try:
        made = [new_directory(tmp_path / "labs", f"{number:016x}", "test-host") for number in range(100)]
    finally:
        over.set()
        other.join()
    assert all(proof(path) for path in made)


def test_a_removal_that_was_interrupted_leaves_nothing_that_blocks_the_host(tmp_path: Path) -> None:
    root = tmp_path / "labs"
    claim(root)
    base = new_directory(root, f"{1:016x}", "test-host")
    with patch.object(Path, "rmdir", side_effect=InterruptedError), pytest.raises(InterruptedError):
        remove(base)
    assert not base.exists()
    tidy(root)
    assert labs_in(root) == []


def test_a_lab_directory_that_is_no_longer_ours_is_kept(lab_server: LabServer) -> None:
    session = lab_server.join()
    assert lab_server.acquire(session, TOPOLOGY).status_code == 200
    lab_server.kill()
    [base] = [lab_server.work_dir / name for name in lab_server.lab_directories()]
    (base / RECORD).unlink()
    sql(lab_server.database, "UPDATE session SET state = 'ended'")
    lab_server.start()
    wait_until(lambda: "no record" in str(queue(lab_server)["quarantined"]), 20)
    assert base.is_dir()
    assert len(fake(lab_server).containers()) == 2


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_second_server_does_not_share_the_work_directory(
    lab_server: LabServer, tmp_path: Path, through_a_link: bool
) -> None:
    session = lab_server.join()
    assert lab_server.acquire(session, TOPOLOGY).status_code == 200
    work_dir = lab_server.work_dir
    if through_a_link:
        work_dir = tmp_path / "link"
        work_dir.symlink_to(lab_server.work_dir)
    second = LabServer(tmp_path / "second", lab_server.netlab, {"work-dir": str(work_dir)})
    second.root.mkdir()
    said = refused(second)
    assert lab_server.process
    assert f"another server uses the work directory {work_dir}: pid {lab_server.process.pid}" in said
    assert f"127.0.0.1:{lab_server.port}" in said
    assert lab(lab_server, session)["running"]
    lab_server.kill()
    second.start()
    second.close()


def test_no_command_inherits_a_lock(lab_server: LabServer) -> None:
    session = lab_server.join()
    fake(lab_server).control(hang="start", hang_child=True)
    with lab_server.client(session) as client:
        client.post("/lab", files={"topology": ("t.yml", TOPOLOGY)}, headers={"Prefer": "respond-async"})
        wait_until(lambda: any(line["event"] == "hang" for line in fake(lab_server).log()), 20)
        [pid, *_] = [line["pid"] for line in fake(lab_server).log() if line["event"] == "hang"]
        opened = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
        fake(lab_server).control()
        client.delete("/lab")
    assert not [path for path in opened if MARKER_DIR in path or path.startswith(str(lab_server.root / "locks"))]


# Other processes of the same user


LOCAL = """
import sys; from pathlib import Path
from neops_remote_lab.netlab.lab_manager import LabManager
from neops_remote_lab.netlab.settings import NetlabSettings
manager = LabManager(NetlabSettings.model_validate({"work_dir": sys.argv[1], "lock_dir": sys.argv[2],
    "host_root": sys.argv[3], "lab_host": "test-host"}))
print(len(manager.acquire(Path(sys.argv[4]))), flush=True)
sys.stdin.read()
manager.cleanup()
"""


@pytest.fixture
def local_lab(tmp_path: Path) -> Iterator[tuple[LabServer, subprocess.Popen[str]]]:
    """The lab of a local `LabManager`, and a server that is not started yet."""
    host = install_fake_netlab(tmp_path / "fake")
    server = LabServer(tmp_path, host, {"retry-after": "1"})
    (tmp_path / "local.yml").write_text(topology_text(3))
    paths = [server.work_dir, server.root / "locks", host.system, tmp_path / "local.yml"]
    environment = host.environment() | {"PYTHONPATH": str(Path(neops_remote_lab.__path__[0]).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", LOCAL, *map(str, paths)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "3\n"
    try:
        yield server, process
    finally:
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()
        process.stdout.close()
        host.control()
        server.close()


def test_a_server_does_not_touch_the_lab_of_a_local_lab_manager(
    local_lab: tuple[LabServer, subprocess.Popen[str]],
) -> None:
    server, process = local_lab
    before, directories = fake(server).containers(), server.lab_directories()
    server.start()
    session = server.join()
    answer = server.acquire(session, TOPOLOGY)
    assert answer.status_code == 423
    assert f"pid {process.pid}" in answer.json()["detail"]
    assert "Retry-After" in answer.headers
    assert fake(server).containers() == before
    assert server.lab_directories() == directories
    assert fake(server).invocations("down") == []

    assert process.stdin
    process.stdin.close()
    assert process.wait(60) == 0
    assert server.acquire(session, TOPOLOGY).status_code == 200
    assert fake(server).violations() == []


def test_the_lab_of_a_local_lab_manager_that_was_killed_is_swept(
    local_lab: tuple[LabServer, subprocess.Popen[str]],
) -> None:
    server, process = local_lab
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.start()
    wait_until(server.is_clean, 20)
    assert server.acquire(server.join(), TOPOLOGY).status_code == 200


# Labs that were started by hand


def start_by_hand(host: FakeNetlab, directory: Path, topology: str, *, home_dir: Path | None = None) -> None:
    """Run `netlab up` without a server, in another directory."""
    directory.mkdir(parents=True)
    (directory / "lab.yml").write_text(topology)
    environment = host.environment() | ({"HOME": str(home_dir)} if home_dir else {})
    subprocess.run(["netlab", "up", "lab.yml"], cwd=directory, env=environment, check=True, capture_output=True)


def unchanged(host: FakeNetlab) -> tuple[object, ...]:
    return host.containers(), host.networks(), host.instances(), host.system_objects()


@pytest.mark.parametrize("when", ["before the server", "while it runs"])
@pytest.mark.parametrize("user", ["the server's", "another"])
def test_a_lab_started_by_hand_is_never_touched(tmp_path: Path, when: str, user: str) -> None:
    with running_server(tmp_path) as server:
        host = fake(server)
        if when == "before the server":
            server.stop()
        home_dir = tmp_path / "another-home" if user == "another" else None
        start_by_hand(host, tmp_path / "colleague", topology_text(2, name="topology"), home_dir=home_dir)
        before = unchanged(host)
        if when == "before the server":
            server.start()
        session = server.join()
        answer = server.acquire(session, TOPOLOGY)
        assert answer.status_code == 423, answer.text
        assert "somebody else's lab" in answer.json()["detail"]
        assert str(tmp_path) not in answer.text
        assert unchanged(host) == before
        assert lab(server, session)["state"] == "none"
        assert server.lab_directories() == []
        assert queue(server)["quarantined"] is None


def test_a_stale_entry_in_netlabs_list_is_reported_before_and_at_the_start(
    lab_server: LabServer, tmp_path: Path
) -> None:
    host = fake(lab_server)
    readiness = f"{lab_server.url}/readyz"
    assert httpx.get(readiness).status_code == 200
    (host.home / ".netlab").mkdir(exist_ok=True)
    entry = {"default": {"dir": str(tmp_path / "gone"), "status": "started", "providers": ["clab"]}}
    (host.home / ".netlab" / "status.yaml").write_text(yaml.safe_dump(entry))
    session = lab_server.join()
    for answer in (httpx.get(readiness), lab_server.acquire(session, TOPOLOGY)):
        assert answer.status_code in {503, 423}
        assert "a directory 'gone' that no longer exists" in answer.json()["detail"]
        assert str(tmp_path) not in answer.text
    assert host.instances() == entry
    (host.home / ".netlab" / "status.yaml").unlink()
    assert httpx.get(readiness).status_code == 200
    assert lab_server.acquire(session, TOPOLOGY).status_code == 200


def test_an_existing_network_stays(lab_server: LabServer) -> None:
    host = fake(lab_server)
    network = {"name": "theirs", "id": "b" * 64, "created": 1.0, "driver": "bridge"}
    (host.state / "networks" / "theirs").write_text(json.dumps(network))
    session = lab_server.join()
    topology = TOPOLOGY + "addressing: {mgmt: {_network: theirs}}\n"
    assert lab_server.acquire(session, topology).status_code == 200
    host.control(fail="down")  # the server removes what netlab does not remove
    assert ask(lab_server, session, "POST", "/lab/release").status_code == 204
    wait_until(lambda: lab(lab_server, session)["state"] == "none", 20)
    assert [found["name"] for found in host.networks()] == ["theirs"]
    assert host.containers() == []
    assert queue(lab_server)["quarantined"] is None


def test_an_existing_bridge_stays(lab_server: LabServer) -> None:
    host = fake(lab_server)
    (host.system / "sys/class/net/br-theirs/bridge").mkdir(parents=True)
    topology = yaml.safe_load(LAN) | {"links": [{"r1": {}, "r2": {}, "r3": {}, "bridge": "br-theirs"}]}
    session = lab_server.join()
    answer = lab_server.acquire(session, yaml.safe_dump(topology))
    assert answer.status_code == 200, answer.text
    assert ask(lab_server, session, "POST", "/lab/release").status_code == 204
    wait_until(lambda: lab(lab_server, session)["state"] == "none", 20)
    assert host.system_objects() == ["br-theirs"]
    assert host.instances() == {}


# Verification of a teardown


@pytest.mark.parametrize(
    "knobs",
    [{"leak_system": True}, {"hang": "down"}, {"fail": "down"}],
    ids=["netlab leaves it", "netlab takes too long", "netlab fails"],
)
def test_a_teardown_leaves_no_bridge_namespace_hosts_block_or_ssh_file(
    tmp_path: Path, knobs: dict[str, object]
) -> None:
    with running_server(tmp_path, down_timeout="1", kill_grace="0.2", teardown_retries="1") as server:
        host = fake(server)
        (host.system / "etc").mkdir(parents=True)
        theirs = "127.0.0.1\tlocalhost\n###### CLAB-theirs-START ######\n###### CLAB-theirs-END ######\n"
        (host.system / "etc" / "hosts").write_text(theirs)
        session = server.join()
        assert server.acquire(session, LAN).status_code == 200
        assert len(host.system_objects()) == 7  # two blocks, three namespaces, a file, a bridge
        host.control(**knobs)
        assert ask(server, session, "POST", "/lab/release").status_code == 204
        wait_until(lambda: lab(server, session)["state"] == "none", 30)
        assert host.system_objects() == ["###### CLAB-theirs-START ######"]
        assert (host.system / "etc" / "hosts").read_text() == theirs
        assert host.containers() == host.networks() == []
        assert queue(server)["quarantined"] is None


def test_leftovers_that_cannot_be_removed_are_named(tmp_path: Path) -> None:
    with running_server(tmp_path, teardown_retries="0", quarantine_retry="0.5") as server:
        host = fake(server)
        session = server.join()
        assert server.acquire(session, LAN).status_code == 200
        host.control(leak_system=True)
        (host.bin / "ip").rename(host.bin / "ip.away")
        (host.bin / "ip").write_text("#!/bin/sh\nexit 2\n")
        (host.bin / "ip").chmod(0o755)
        assert ask(server, session, "POST", "/lab/release").status_code == 204
        wait_until(lambda: "network namespace clab-" in str(queue(server)["quarantined"]), 20)
        assert "bridge" in queue(server)["quarantined"]
        (host.bin / "ip.away").rename(host.bin / "ip")
        wait_until(lambda: queue(server)["quarantined"] is None, 20)
        assert server.is_clean()


# Output of Docker and netlab


def test_a_lab_with_unmanaged_nodes_is_adopted(lab_server: LabServer) -> None:
    topology = yaml.safe_load(TOPOLOGY) | {"nodes": {"r1": {}, "r2": {}, "firewall": {"unmanaged": True}}}
    session = lab_server.join()
    assert lab_server.acquire(session, yaml.safe_dump(topology)).status_code == 200
    before = fake(lab_server).containers()
    assert len(before) == 2
    lab_server.restart()
    wait_until(lambda: lab(lab_server, session)["running"], 20)
    assert fake(lab_server).containers() == before
    assert fake(lab_server).invocations("down") == []


def test_the_path_of_the_list_of_instances_comes_from_netlab(tmp_path: Path) -> None:
    host = install_fake_netlab(tmp_path / "fake")
    (host.home / ".netlab.yml").write_text(f"lab_status_file: {tmp_path}/instances/list.yaml\n")
    server = LabServer(tmp_path, host)
    try:
        server.start()
        session = server.join()
        assert server.acquire(session, TOPOLOGY).status_code == 200
        assert (tmp_path / "instances" / "list.yaml").exists()
        assert not (host.home / ".netlab" / "status.yaml").exists()
        server.restart()
        wait_until(lambda: lab(server, session)["running"], 20)
        assert lab(server, session)["netlab_status"] == "started"
        host.control(fail="down")
        assert ask(server, session, "POST", "/lab/release").status_code == 204
        wait_until(lambda: lab(server, session)["state"] == "none", 20)
        assert yaml.safe_load((tmp_path / "instances" / "list.yaml").read_text()) == {}
        assert labs_in(server.work_dir) == []
    finally:
        server.close()


def test_another_program_in_place_of_docker_is_reported(lab_server: LabServer) -> None:
    fake(lab_server).control(podman=True)
    session = lab_server.join()
    answer = lab_server.acquire(session, TOPOLOGY)
    assert answer.status_code == 500
    assert "podman" in answer.json()["detail"]
    assert fake(lab_server).invocations("up") == []
    assert lab_server.is_clean()


def test_a_teardown_is_not_repeated_forever_if_docker_is_replaced(tmp_path: Path) -> None:
    with running_server(tmp_path, teardown_retries="0", quarantine_retry="0.5") as server:
        session = server.join()
        assert server.acquire(session, TOPOLOGY).status_code == 200
        fake(server).control(podman=True, leak_containers=2)
        assert ask(server, session, "POST", "/lab/release").status_code == 204
        wait_until(lambda: "podman" in str(queue(server)["quarantined"]), 20)
        assert "KeyError" not in server.log.read_text()
        fake(server).control()
        wait_until(lambda: queue(server)["quarantined"] is None, 20)
        assert server.is_clean()
