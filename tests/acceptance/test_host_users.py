"""Other users of the lab host: what they share with a server, and what they cannot change or read."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from neops_remote_lab.core.file_names import TOPOLOGY_FILE
from neops_remote_lab.core.host_locks import HostLock, read_note
from tests.fakes import topology_text
from tests.server import LabServer, running_server
from tests.users import FIRST_USER, SECOND_USER, as_user, directory_for_all, python_environment, run_as

LOCK_FILE = f"neops-remote-lab-server.{os.geteuid()}.lock"
TAKE = """
import sys
from pathlib import Path
from filelock import Timeout
from neops_remote_lab.core.host_locks import HostLock, read_note
from neops_remote_lab.core.file_names import TOPOLOGY_FILE
try:
    lock = HostLock(Path(sys.argv[1]), "server")
    lock.acquire()
    lock.write_note(sys.argv[2])
except Timeout as busy:
    sys.exit(f"busy: {read_note(busy.lock_file)}")
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user of this machine can enter."""
    with directory_for_all() as made:
        yield made


@pytest.fixture
def locks(shared: Path) -> Path:
    """A directory like /run/lock: it belongs to root, and every user can create files in it."""
    made = shared / "locks"
    made.mkdir()
    made.chmod(0o1777)
    return made


def note_of(directory: Path, user: int = FIRST_USER) -> str | None:
    return read_note(str(directory / f"neops-remote-lab-server.{user}.lock"))


def take(user: int, directory: Path) -> subprocess.CompletedProcess[str]:
    """Try to take the lock as another user."""
    return run_as(user, [sys.executable, "-c", TAKE, directory, f"user {user}"])


# The lock directory


def test_another_user_cannot_remove_the_lock_of_a_running_server(lab_server: LabServer, locks: Path) -> None:
    second = LabServer(lab_server.root / "second", lab_server.fake, {"lock-dir": str(locks)})
    second.root.mkdir()
    second.start()
    try:
        for attempt in (["rm", "-f", locks / LOCK_FILE], ["mv", locks / LOCK_FILE, locks / "away"]):
            assert run_as(FIRST_USER, attempt).returncode != 0
        errors = take(FIRST_USER, locks).stderr
        assert errors.startswith("busy: ")
        assert f'"address": "127.0.0.1:{second.port}"' in errors
    finally:
        second.close()


@pytest.mark.parametrize("holder", [0, FIRST_USER])
def test_users_take_turns_with_one_lock(locks: Path, holder: int) -> None:
    words = as_user(holder, [sys.executable, "-c", TAKE, locks, "the holder"])
    first = subprocess.Popen(
        words, env=python_environment(), cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin
    assert first.stdout
    with first:
        assert first.stdout.readline() == "taken\n"
        for user in (0, FIRST_USER, SECOND_USER):
            assert take(user, locks).stderr.strip() == "busy: the holder"
        first.stdin.close()
    for user in (SECOND_USER, 0, FIRST_USER):
        done = take(user, locks)
        assert done.stdout == "taken\n", done.stderr


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_lock_directory_of_another_user_is_refused(shared: Path, mode: int) -> None:
    theirs = shared / "theirs"
    theirs.mkdir()
    theirs.chmod(mode)
    os.chown(theirs, SECOND_USER, SECOND_USER) if os.geteuid() == 0 else pytest.skip("only root gives files away")
    with pytest.raises(PermissionError, match=f"user with id {SECOND_USER}"):
        HostLock(theirs, "server")
    refused = take(FIRST_USER, theirs)
    assert f"user with id {SECOND_USER}" in refused.stderr


def test_a_symbolic_link_in_place_of_the_lock_directory_is_refused(shared: Path, locks: Path) -> None:
    link = shared / "link"
    link.symlink_to(locks)
    if os.geteuid() == 0:
        HostLock(link, "server")  # a link of the user's own is followed
        os.chown(link, SECOND_USER, SECOND_USER, follow_symlinks=False)
        with pytest.raises(PermissionError, match=f"user with id {SECOND_USER}"):
            HostLock(link, "server")


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_only_a_regular_file_is_accepted_as_a_lock(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / LOCK_FILE
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(PermissionError, match="not a regular file"):
        HostLock(tmp_path, "server").acquire()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_a_directory_of_ours_without_the_sticky_bit_gets_it(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    HostLock(tmp_path, "server")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode | stat.S_ISVTX


def test_a_private_directory_stays_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    HostLock(tmp_path, "server")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.parametrize("umask", ["0077", "0777", "0000"])
def test_other_users_reach_the_locks_whatever_the_umask_was(shared: Path, umask: str) -> None:
    directory = shared / "deep" / "deeper" / "locks"
    script = f"umask {umask}; exec {sys.executable} -c '{TAKE}' {directory} root < /dev/null"
    done = subprocess.run(["sh", "-c", script], env=python_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "taken\n"), done.stderr
    assert stat.S_IMODE(directory.stat().st_mode) == 0o1777
    assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE((directory / LOCK_FILE).stat().st_mode) == 0o644
    assert take(FIRST_USER, directory).stdout == "taken\n"


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "of another user"])
def test_a_foreign_lock_file_does_not_hold_the_lock(tmp_path: Path, kind: str) -> None:
    theirs = tmp_path / f"neops-remote-lab-server.{SECOND_USER}.lock"
    held = tmp_path / "held"
    held.touch()
    if kind == "link":
        theirs.symlink_to(held)
    elif kind == "pipe":
        os.mkfifo(theirs)
    elif kind == "directory":
        theirs.mkdir()
    else:
        held = theirs
    with FileLock(tmp_path / held.name):
        lock = HostLock(tmp_path, "server")
        lock.acquire()
        lock.release()


def test_concurrent_processes_get_the_lock_one_after_the_other(tmp_path: Path) -> None:
    inside = threading.Lock()

    def hold_once(_: int) -> bool:
        lock = HostLock(tmp_path, "server")
        try:
            lock.acquire()
        except Timeout:
            return False
        alone = inside.acquire(blocking=False)
        assert alone
        inside.release()
        lock.release()
        return True

    with ThreadPoolExecutor(8) as threads:
        assert any(threads.map(hold_once, range(64)))


# The file with the identity of the server


def test_a_symbolic_link_in_place_of_the_note_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock = HostLock(tmp_path, "server")
    lock.write_note("first")
    [note] = tmp_path.glob("*.json")
    note.unlink()
    note.symlink_to(victim)
    assert read_note(str(tmp_path / LOCK_FILE)) is None
    lock.write_note("second")
    assert (victim.read_text(), read_note(str(tmp_path / LOCK_FILE))) == ("precious", "second")
    assert list(tmp_path.glob("*.draft")) == []


def test_a_lock_is_waited_for_as_long_as_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, starting = HostLock(tmp_path, "server"), HostLock(tmp_path, "server")
    ended.acquire()
    with pytest.raises(Timeout):
        starting.acquire()
    monkeypatch.setattr("time.sleep", lambda _: ended.release())
    starting.acquire(timeout=60)
    with pytest.raises(Timeout):
        ended.acquire()


@pytest.mark.parametrize("kind", ["pipe", "endless", "directory", "no text"])
def test_only_a_regular_file_is_read_as_a_note(tmp_path: Path, kind: str) -> None:
    note = (tmp_path / LOCK_FILE).with_suffix(".json")
    if kind == "pipe":
        os.mkfifo(note)
    elif kind == "endless":
        note.symlink_to("/dev/zero")
    elif kind == "directory":
        note.mkdir()
    else:
        note.write_bytes(bytes([255, 254]))
    assert read_note(str(tmp_path / LOCK_FILE)) is None


@pytest.mark.parametrize(
    "note", ["{", "[1]", '"text"', json.dumps({"pid": 1}), json.dumps({"pid": "\x1b[2J"} | dict.fromkeys("abc"))]
)
def test_an_invalid_note_is_not_shown(lab_server: LabServer, note: str) -> None:
    HostLock(lab_server.root / "locks", "server").write_note(note)
    second = LabServer(lab_server.root / "second", lab_server.fake, {"lock-dir": str(lab_server.root / "locks")})
    second.root.mkdir()
    second.launch()
    assert second.wait(30) == 1
    output = second.log.read_text()
    assert "another server runs on this host" in output
    assert "\x1b" not in output
    assert "Traceback" not in output


# Permissions


def modes(server: LabServer) -> dict[str, int]:
    """Permissions of the files of the database, of the work directory, and of everything in it."""
    files = [*server.root.glob("remote-lab.sqlite3*"), server.work_dir, *server.work_dir.glob("[!.]*")]
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}


@pytest.mark.parametrize(("umask", "file", "directory"), [("077", 0o600, 0o700), ("027", 0o640, 0o750)])
def test_other_users_can_read_neither_database_nor_labs(tmp_path: Path, umask: str, file: int, directory: int) -> None:
    with running_server(tmp_path, umask=umask) as server:
        session_id = server.join()
        assert server.acquire(session_id, topology_text(1)).status_code == 200
        found = modes(server)
        topology = next(server.work_dir.glob("[!.]*/lab/*.yml"))
        lab = topology.parents[1]
        readable = stat.S_IMODE(topology.stat().st_mode) & 0o444
    databases = {mode for name, mode in found.items() if name.startswith("remote-lab.sqlite3")}
    assert databases == {file}
    assert {name for name in found if name.startswith("remote-lab")} >= {"remote-lab.sqlite3", "remote-lab.sqlite3-wal"}
    assert found["labs"] == directory
    assert found[lab.name] == directory
    assert readable == 0o444  # programs of containers run as other users; the directory above keeps others out


def test_a_readable_database_is_made_private_at_the_next_start(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        server.kill()
        for path in (*server.root.glob("remote-lab.sqlite3*"), server.work_dir):
            path.chmod(0o777)
        server.start()
        found = modes(server)
    assert {found["remote-lab.sqlite3"], found["remote-lab.sqlite3-wal"]} == {0o600}
    assert found["labs"] == 0o700


def test_files_of_a_lab_are_readable_regardless_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with running_server(tmp_path) as server:
            assert server.acquire(server.join(), topology_text(1)).status_code == 200
            [topology] = [path for path in server.work_dir.rglob("*.yml") if path.name == TOPOLOGY_FILE]
            assert stat.S_IMODE(topology.stat().st_mode) & 0o444 == 0o444
    finally:
        os.umask(before)


# Users without a home directory, and full disks


def server_words(root: Path, **flags: object) -> list[str]:
    """The command of a server that ends when it binds its port, because the port is not free."""
    given = {"host": "127.0.0.1", "port": "0", "lock-dir": root / "locks", **flags}
    return [sys.executable, "-m", "neops_remote_lab", *(f"--{name}={value}" for name, value in given.items())]


def test_a_user_without_a_home_directory_is_told_what_to_set(shared: Path) -> None:
    done = run_as(FIRST_USER, server_words(shared))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "set HOME to a directory" in done.stderr


def test_netlab_needs_a_home_directory_even_if_all_other_directories_are_set(shared: Path) -> None:
    flags = {"database": f"sqlite+aiosqlite:///{shared}/db.sqlite3", "work-dir": shared / "labs"}
    done = run_as(FIRST_USER, server_words(shared, **flags))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "set HOME to a directory" in done.stderr


@pytest.mark.parametrize("home", ["home", "locked"])
def test_a_user_without_a_name_needs_a_writable_home_directory(shared: Path, locks: Path, home: str) -> None:
    for name, mode in (("home", 0o777), ("locked", 0o555)):
        (shared / name).mkdir()
        (shared / name).chmod(mode)
    words = as_user(FIRST_USER, server_words(shared))
    with subprocess.Popen(
        words, env=python_environment(HOME=str(shared / home)), cwd="/", stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr
        lines: list[str] = []
        for line in server.stderr:
            lines.append(line)
            if "startup complete" in line:
                assert json.loads(note_of(locks) or "")["user"] == str(FIRST_USER)
                server.terminate()
    output = "".join(lines)
    assert "Traceback" not in output
    if home == "home":
        assert server.returncode == 0, output
    else:
        assert server.returncode == 1, output
        assert (
            "Name another with --work-dir" in output
        )  # the first directory that the server creates below the home directory


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a full disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted: {mounted.stderr.strip()}")
    try:
        (disk / "locks").mkdir()
        with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4096))
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_server_starts_even_if_its_note_cannot_be_written(full_disk: Path, lab_server: LabServer) -> None:
    crowded = LabServer(lab_server.root / "second", lab_server.fake, {"lock-dir": str(full_disk / "locks")})
    crowded.root.mkdir()
    crowded.start()
    try:
        output = crowded.log.read_text()
        assert "no note can be written" in output
        assert "No space left on device" in output
        assert list((full_disk / "locks").glob("*.draft")) == []
        with pytest.raises(Timeout):
            HostLock(full_disk / "locks", "server").acquire()
    finally:
        crowded.close()


def test_a_database_on_a_full_disk_ends_the_start_with_a_message(full_disk: Path, lab_server: LabServer) -> None:
    database = {"database": f"sqlite+aiosqlite:///{full_disk}/db.sqlite3"}
    crowded = LabServer(lab_server.root / "second", lab_server.fake, database)
    crowded.root.mkdir()
    crowded.launch()
    assert crowded.wait(30) == 1
    output = crowded.log.read_text()
    assert "Traceback" not in output
    assert "--database" in output
