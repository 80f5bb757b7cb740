"""Invalid uploads: each is refused with a message, and leaves no files behind."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.chaos.shell import fake, lab, sql
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server

TOPOLOGY = topology_text(1)
MAX_TOPOLOGY = 50_000
MAX_EXTRA = 200_000
BOUNDARY = "gc0p4Jq0M2Yt08jU534c0p"

Files = list[tuple[str, tuple[str, bytes | str]]]


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    limits = {"max_topology_bytes": str(MAX_TOPOLOGY), "max_extra_bytes": str(MAX_EXTRA), "max_extra_files": "3"}
    with running_server(tmp_path_factory.mktemp("server"), **limits) as server:
        yield server


@pytest.fixture
def server(long_lived: LabServer) -> Iterator[LabServer]:
    """A server with an empty queue and small limits. At the end of the test nothing of a lab is left."""
    (fake(long_lived).state / "log").unlink(missing_ok=True)
    yield long_lived
    for (session_id,) in sql(long_lived.database, "SELECT session_id FROM session WHERE state <> 'ended'"):
        httpx.delete(f"{long_lived.url}/session/{session_id}")
    wait_until(lambda: not sql(long_lived.database, "SELECT 1 FROM lab WHERE state <> 'ended'"), 20)
    wait_until(long_lived.is_clean, 20)


@pytest.fixture
def holder(server: LabServer) -> str:
    return server.join()


@pytest.fixture(autouse=True)
def nothing_is_left_of_what_was_refused(server: LabServer, holder: str) -> Iterator[None]:
    waiter = server.join()
    yield
    assert server.status(holder)["position"] == 0
    assert server.status(waiter)["position"] == 1
    if lab(server, holder)["state"] == "none":
        wait_until(lambda: server.lab_directories() == [], message="files of a refused upload are left")
        assert server.is_clean()


def upload(server: LabServer, session_id: str, files: Files, data: Mapping[str, str] | None = None) -> httpx.Response:
    headers = {"X-Session-ID": session_id}
    return httpx.post(f"{server.url}/lab", headers=headers, files=files, data=data, timeout=60)


def topology(content: str | bytes = TOPOLOGY, name: str = "topology.yml") -> tuple[str, tuple[str, bytes | str]]:
    return ("topology", (name, content))


def extra(name: str, content: str | bytes = "x") -> tuple[str, tuple[str, bytes | str]]:
    return ("extra_files", (name, content))


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    """A multipart body of raw parts, which include their headers."""
    return b"".join(b"--%s\r\n%s\r\n" % (BOUNDARY.encode(), part) for part in parts) + b"--" + BOUNDARY.encode() + end


def part(disposition: str, content: bytes | str = TOPOLOGY) -> bytes:
    text = content.encode() if isinstance(content, str) else content
    return b"Content-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + text


def send(server: LabServer, session_id: str, body: bytes, content_type: str | None = None) -> httpx.Response:
    kind = content_type or f"multipart/form-data; boundary={BOUNDARY}"
    headers = {"X-Session-ID": session_id, "Content-Type": kind}
    return httpx.post(f"{server.url}/lab", headers=headers, content=body, timeout=60)


def assert_refused(server: LabServer, answer: httpx.Response, code: int, sentence: str) -> None:
    assert (answer.status_code, answer.headers["Content-Type"]) == (code, "application/json"), answer.text
    assert answer.json().keys() == {"detail"}
    assert re.search(sentence, answer.json()["detail"]), answer.text
    assert str(server.root) not in answer.text
    assert not fake(server).invocations()


# Accepted uploads


def test_extra_files_lie_beside_the_topology_as_they_were_sent(server: LabServer, holder: str) -> None:
    binary = bytes(range(256)) * 100
    files = [topology(), extra("vars.yml", "a: 1"), extra("templates/frr/ospf.j2", binary), extra("empty", b"")]
    assert upload(server, holder, files).status_code == 200
    (folder,) = [Path(entry["dir"]) for entry in fake(server).instances().values()]
    assert (folder / "remote-lab-topology.yml").read_text() == TOPOLOGY
    assert (folder / "vars.yml").read_text() == "a: 1"
    assert (folder / "templates/frr/ospf.j2").read_bytes() == binary
    assert (folder / "empty").read_bytes() == b""


def test_extra_files_are_part_of_the_topology_identity(server: LabServer, holder: str) -> None:
    files = [topology(), extra("a.yml", "a: 1"), extra("b.yml", "b: 1")]
    assert upload(server, holder, files).json()["reused"] is False
    assert upload(server, holder, [files[0], files[2], files[1]]).json()["reused"] is True
    for other in ([topology()], [topology(), extra("a.yml", "a: 2"), extra("b.yml", "b: 1")]):
        assert upload(server, holder, other).status_code == 423
    assert lab(server, holder)["ref_count"] == 2


def test_the_parts_of_the_form_may_come_in_any_order(server: LabServer, holder: str) -> None:
    parts = [
        part('name="extra_files"; filename="a.yml"', "a: 1"),
        part('name="reuse"', "true"),
        part('name="topology"; filename="topology.yml"'),
    ]
    assert send(server, holder, form(*parts)).status_code == 200


@pytest.mark.parametrize("name", ["topology.yaml", "TOPOLOGY.YAML", "über topo.yml", "a;b.yml", 'quo"te.yml'])
def test_a_topology_may_have_any_ordinary_name(server: LabServer, holder: str, name: str) -> None:
    assert upload(server, holder, [topology(name=name)]).status_code == 200
    shown = lab(server, holder)["topology"]
    assert shown.endswith(".yml")
    assert shown[:-4].lower() == name.rsplit(".", 1)[0].replace('"', "%22").lower()


@pytest.mark.parametrize(("value", "code"), [("false", 423), ("0", 423), ("no", 423), ("true", 200), ("1", 200)])
def test_reuse_is_a_boolean_in_the_usual_spellings(server: LabServer, holder: str, value: str, code: int) -> None:
    upload(server, holder, [topology()])
    assert upload(server, holder, [topology()], {"reuse": value}).status_code == code


# Executable files


def executable(server: LabServer, session_id: str, files: Files, *names: str) -> httpx.Response:
    headers = {"X-Session-ID": session_id}
    data = {"executable": list(names)}
    return httpx.post(f"{server.url}/lab", headers=headers, files=files, data=data, timeout=60)


def test_scripts_keep_their_executable_bit(server: LabServer, holder: str) -> None:
    files = [topology(), extra("start.sh", "#!/bin/sh\n"), extra("tools/check", "x"), extra("notes", "x")]
    assert executable(server, holder, files, "start.sh", "tools/check").status_code == 200
    (folder,) = [Path(entry["dir"]) for entry in fake(server).instances().values()]
    found = {name: os.access(folder / name, os.X_OK) for name in ("start.sh", "tools/check", "notes", "topology.yml")}
    assert found == {"start.sh": True, "tools/check": True, "notes": False, "topology.yml": False}
    modes = [(folder / name).stat().st_mode & 0o777 for name in ("start.sh", "notes")]
    assert modes[0] == modes[1] | (modes[1] & 0o444) >> 2


def test_executable_bits_are_part_of_the_topology_identity(server: LabServer, holder: str) -> None:
    files = [topology(), extra("a.sh"), extra("b.sh")]
    assert executable(server, holder, files, "a.sh").json()["reused"] is False
    assert executable(server, holder, files, "a.sh", "a.sh").json()["reused"] is True
    for names in ([], ["b.sh"], ["a.sh", "b.sh"]):
        assert executable(server, holder, files, *names).status_code == 423


def test_the_field_executable_may_come_before_the_file_that_it_names(server: LabServer, holder: str) -> None:
    parts = [
        part('name="executable"', "a.sh"),
        part('name="topology"; filename="topology.yml"'),
        part('name="extra_files"; filename="a.sh"', "x"),
    ]
    assert send(server, holder, form(*parts)).status_code == 200


@pytest.mark.parametrize("name", ["other.sh", "topology.yml", "../a.sh", "/a.sh", "", "A.sh", "x" * 300])
def test_an_executable_file_that_is_not_in_the_upload_is_refused(server: LabServer, holder: str, name: str) -> None:
    answer = executable(server, holder, [topology(), extra("a.sh")], name)
    assert_refused(server, answer, 422, "'executable' names .*, which is not an extra file")


# Files of desktops and git


def test_files_of_desktops_and_git_are_ignored(server: LabServer, holder: str) -> None:
    files = [topology(), extra("templates/a.j2", "x"), extra(".DS_Store", "y" * 1000)]
    assert upload(server, holder, files).json()["reused"] is False
    (folder,) = [Path(entry["dir"]) for entry in fake(server).instances().values()]
    assert (folder / "templates/a.j2").read_text() == "x"
    assert not (folder / ".DS_Store").exists()
    other = [files[0], extra("templates/.gitkeep", ""), files[1], extra("templates/._a.j2", "z")]
    assert executable(server, holder, other, "templates/._a.j2").json()["reused"] is True


def test_files_that_are_ignored_count_against_the_limits(server: LabServer, holder: str) -> None:
    many = [extra(f"{number}/.gitkeep") for number in range(4)]
    assert_refused(server, upload(server, holder, [topology(), *many]), 413, "more than 3 extra files")
    large = [extra("a", b"a" * (MAX_EXTRA // 2)), extra(".DS_Store", b"b" * (MAX_EXTRA // 2 + 1))]
    assert_refused(server, upload(server, holder, [topology(), *large]), 413, "extra files together")


def test_a_refused_dot_file_has_a_reason(server: LabServer, holder: str) -> None:
    answer = upload(server, holder, [topology(), extra("a/.netrc")])
    assert_refused(server, answer, 400, "'.netrc', which begins with a dot: .* obey such files.*but for .*[.]gitkeep")


def test_reuse_is_the_default(server: LabServer, holder: str) -> None:
    upload(server, holder, [topology()])
    assert upload(server, holder, [topology()]).json()["reused"] is True


# Names


@pytest.mark.parametrize("name", ["topology.txt", "topology", "topology.yml.gz", "folder/topology.yml", "../x.yml"])
def test_a_topology_with_a_wrong_name_is_refused(server: LabServer, holder: str, name: str) -> None:
    assert_refused(server, upload(server, holder, [topology(name=name)]), 400, "file name")


NAMES = {
    "absolute": "/etc/cron.d/x",
    "parent": "../x.yml",
    "parent inside": "a/../../x.yml",
    "parent with backslash": "..\\x.yml",
    "backslash": "a\\b.yml",
    "drive": "C:/x.yml",
    "drive, relative": "C:x.yml",
    "network share": "//host/x.yml",
    "dot file": ".bashrc",
    "dot directory": ".ssh/authorized_keys",
    "directory": "a/",
    "too long": "x" * 300,
    "snapshot": "netlab.snapshot.pickle",
    "snapshot in a directory": "a/netlab.snapshot.pickle",
    "lock": "netlab.lock",
    "ansible": "ansible.cfg",
    "what netlab writes": "clab.yml",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_an_extra_file_with_a_dangerous_name_is_refused(server: LabServer, holder: str, name: str) -> None:
    assert_refused(server, upload(server, holder, [topology(), extra(name)]), 400, "file name")


@pytest.mark.parametrize(
    "disposition",
    [
        'name="extra_files"; filename="a\0b.yml"',
        'name="extra_files"; filename="a.yml\0.txt"',
        "name=\"extra_files\"; filename*=UTF-8''%2e%2e%2fx.yml",
        "name=\"extra_files\"; filename*=UTF-8''%2Fetc%2Fpasswd",
        'name="extra_files"; filename=""',
    ],
    ids=["NUL", "NUL before the suffix", "encoded parent", "encoded absolute", "empty"],
)
def test_a_dangerous_name_is_refused_in_any_spelling(server: LabServer, holder: str, disposition: str) -> None:
    body = form(part('name="topology"; filename="topology.yml"'), part(disposition, "x"))
    answer = send(server, holder, body)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["detail"]
    assert not fake(server).invocations()


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["a.yml", "a.yml"], id="each other"),
        pytest.param(["a.yml", "A.yml"], id="but for the case"),
        pytest.param(["a", "a/b.yml"], id="a file and a directory"),
        pytest.param(["a/b.yml", "a"], id="a directory and a file"),
    ],
)
def test_names_that_collide_are_refused(server: LabServer, holder: str, names: Sequence[str]) -> None:
    files = [topology(name="topology.yaml"), *(extra(name) for name in names)]
    assert_refused(server, upload(server, holder, files), 400, "taken by another file")
    assert_refused(server, upload(server, holder, [*files[1:], files[0]]), 400, "taken by another file")


@pytest.mark.parametrize(
    "name",
    [
        "remote-lab-topology.yml",
        "Remote-Lab-Topology.yml",
        pytest.param("remote-lab-topology.yml/x", id="as a directory"),
        pytest.param("remote-lab-topology.26.10.yml", id="as its version for one netlab"),
    ],
)
def test_an_extra_file_cannot_replace_the_topology(server: LabServer, holder: str, name: str) -> None:
    files = [topology(), extra(name, TOPOLOGY)]
    assert_refused(server, upload(server, holder, files), 400, "is reserved for the topology")
    assert_refused(server, upload(server, holder, files[::-1]), 400, "is reserved for the topology")


@pytest.mark.parametrize(
    "name", ["--cleanup.yml", "-v.yml", "--set=a.yml", "--defaults=x.yml", "-.yml", "--snapshot.yml", "$(id).yml"]
)
def test_a_file_name_never_becomes_an_argument(server: LabServer, holder: str, name: str) -> None:
    before = len(fake(server).log())
    with server.client(holder) as client:
        assert client.post("/topology/check", files=[topology(name=name)]).json() == {"nodes": 1, "links": 0}
    assert upload(server, holder, [topology(name=name)]).status_code == 200
    assert lab(server, holder)["topology"] == name
    with server.client(holder) as client:
        assert client.get("/queue").json()["sessions"][0]["topology"] == name
        assert client.delete("/lab").status_code == 202
    wait_until(server.is_clean, 10, "the lab is not torn down")
    started = [line for line in fake(server).log()[before:] if line["event"] == "start"]
    assert {line["argv"][1] for line in started} >= {"create", "up", "down"}
    words = [word for line in started for word in line["argv"][1:]]
    assert not [word for word in words if name in word]


def test_an_extra_file_may_have_the_name_of_the_uploaded_topology(server: LabServer, holder: str) -> None:
    assert upload(server, holder, [topology(), extra("topology.yml", "a: 1")]).status_code == 200
    (directory,) = [Path(entry["dir"]) for entry in fake(server).instances().values()]
    assert (directory / "topology.yml").read_text() == "a: 1"
    assert lab(server, holder)["topology"] == "topology.yml"


# Sizes


def stream(server: LabServer, session_id: str, head: bytes, size: int) -> tuple[int, bytes]:
    """Send a part of `size` bytes until the server stops reading. Returns the number of sent bytes and the response."""
    chunk = b"# " + b"x" * 65_533 + b"\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        request = (
            f"POST /lab HTTP/1.1\r\nHost: lab\r\nX-Session-ID: {session_id}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {size}\r\n\r\n"
        )
        connection.sendall(request.encode() + head)
        connection.settimeout(5)
        sent = 0
        with suppress(OSError):
            while sent < size:
                sent += connection.send(chunk[: size - sent])
        answer = b""
        with suppress(OSError):
            while piece := connection.recv(65_536):
                answer += piece
    return sent, answer


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(form(end=b"\r\n") + part('name="topology"; filename="topology.yml"', ""), id="topology"),
        pytest.param(form(end=b"\r\n") + part('name="extra_files"; filename="big"', ""), id="extra file"),
    ],
)
def test_an_upload_that_is_too_large_is_not_read_to_its_end(server: LabServer, holder: str, head: bytes) -> None:
    size = 256 << 20
    sent, answer = stream(server, holder, head, size)
    assert sent < size // 4
    if answer:  # the kernel may drop it when the connection is closed with unread bytes
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"larger than" in answer
    assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 204


def test_a_topology_over_the_limit_is_refused(server: LabServer, holder: str) -> None:
    fits = TOPOLOGY + "#" * (MAX_TOPOLOGY - len(TOPOLOGY))
    assert_refused(server, upload(server, holder, [topology(fits + "#")]), 413, "topology is larger than")
    assert upload(server, holder, [topology(fits)]).status_code == 200


def test_extra_files_whose_total_size_exceeds_the_limit_are_refused(server: LabServer, holder: str) -> None:
    halves = [extra("a", b"a" * (MAX_EXTRA // 2)), extra("b", b"b" * (MAX_EXTRA // 2))]
    assert_refused(server, upload(server, holder, [topology(), *halves, extra("c", b"c")]), 413, "extra files together")
    assert upload(server, holder, [topology(), *halves]).status_code == 200


def test_too_many_extra_files_are_refused(server: LabServer, holder: str) -> None:
    files = [extra(f"{number}.yml") for number in range(4)]
    assert_refused(server, upload(server, holder, [topology(), *files]), 413, "more than 3 extra files")


def test_too_many_parts_are_refused(server: LabServer, holder: str) -> None:
    body = form(*[part('name="reuse"', "true")] * 100)
    assert_refused(server, send(server, holder, body), 413, "too many parts")


# Contents


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"name: \xff\xfe\n", "not UTF-8", id="not UTF-8"),
        pytest.param(b"- r1\n", "mapping", id="a list"),
        pytest.param(b"just words\n", "mapping", id="words"),
        pytest.param(b"a: [\n", "not valid YAML", id="no YAML"),
        pytest.param(b"a: &a [*a]\n", "contains itself", id="recursive alias"),
        pytest.param(
            b"a: &a [" + b"x, " * 20 + b"]\n"
            b"b: &b [" + b"*a, " * 20 + b"]\n"
            b"c: &c [" + b"*b, " * 20 + b"]\n"
            b"d: [" + b"*c, " * 20 + b"]\n",
            "aliases are expanded",
            id="alias bomb",
        ),
        pytest.param(b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply", id="deep nesting"),
    ],
)
def test_an_invalid_topology_is_refused_before_netlab_runs(
    server: LabServer, holder: str, content: bytes, sentence: str
) -> None:
    assert_refused(server, upload(server, holder, [topology(content)]), 422, sentence)


def test_a_deeply_nested_topology_does_not_end_the_server(lab_server: LabServer) -> None:
    session_id = lab_server.join()
    answer = upload(lab_server, session_id, [topology(b"a: " + b"[" * 1_000_000)])
    assert_refused(lab_server, answer, 422, "nested|not valid")
    assert lab_server.status(session_id)["position"] == 0


# Forms


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"topology": "nodes: [r1]"}'),
        ("application/x-www-form-urlencoded", b"topology=x"),
        ("text/plain", TOPOLOGY.encode()),
        ("multipart/form-data", b"--x--\r\n"),
        ("multipart/mixed; boundary=x", b"--x--\r\n"),
        ("multipart/form-data; boundary=", b"----\r\n"),
        ("nonsense", b""),
    ],
)
def test_a_body_that_is_not_a_form_is_refused(server: LabServer, holder: str, content_type: str, body: bytes) -> None:
    assert_refused(server, send(server, holder, body, content_type), 422, "form")


TOPOLOGY_PART = part('name="topology"; filename="topology.yml"')


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        pytest.param(b"", "ends before", id="no body"),
        pytest.param(b"garbage" * 100, "cannot be read", id="garbage"),
        pytest.param(form(TOPOLOGY_PART)[:-20], "ends before", id="cut off in the last boundary"),
        pytest.param(form(TOPOLOGY_PART)[:120], "ends before", id="cut off in the topology"),
        pytest.param(form(end=b"\r\n") + b"Content-Disp", "ends before", id="cut off in a header"),
        pytest.param(form(part('name="reuse"', "true")), "lacks the file field 'topology'", id="no topology"),
        pytest.param(form(part('name="topology"')), "must be a file", id="a topology without a file name"),
        pytest.param(
            form(TOPOLOGY_PART, part('name="extra_files"', "x")), "must be a file", id="an extra file without a name"
        ),
        pytest.param(form(TOPOLOGY_PART, TOPOLOGY_PART), "more than one 'topology'", id="two topologies"),
        pytest.param(
            form(TOPOLOGY_PART, part('name="colour"; filename="x.yml"')),
            "unknown file field 'colour'",
            id="a wrong field",
        ),
        pytest.param(form(TOPOLOGY_PART, part('name="reuse"', "maybe")), "must be true or false", id="a wrong boolean"),
        pytest.param(form(TOPOLOGY_PART, part('name="reuse"', "")), "must be true or false", id="an empty boolean"),
        pytest.param(form(TOPOLOGY_PART, part('name="reuse"', "x" * 5000)), "too long", id="a long field"),
        pytest.param(form(TOPOLOGY_PART, part('filename="x"', "x")), "has no name", id="a part without a name"),
        pytest.param(form(TOPOLOGY_PART, b"\r\nx"), "has no name", id="a part without headers"),
        pytest.param(
            form(TOPOLOGY_PART, b"X-Long: " + b"x" * 20_000 + b"\r\n\r\nx"),
            "[Hh]eader",
            id="header",
        ),
        pytest.param(
            form(TOPOLOGY_PART, b'Content-Disposition: form-data; name=extra_files; filename="\xff"\r\n\r\nx'),
            "not UTF-8",
            id="a file name that is not UTF-8",
        ),
        pytest.param(form(b"no colon\r\n\r\nx"), "cannot be read", id="a header without a colon"),
    ],
)
def test_an_invalid_form_is_refused(server: LabServer, holder: str, body: bytes, sentence: str) -> None:
    assert_refused(server, send(server, holder, body), 422, sentence)


def test_an_interrupted_upload_leaves_nothing_behind(server: LabServer, holder: str) -> None:
    head = (
        f"POST /lab HTTP/1.1\r\nHost: lab\r\nX-Session-ID: {holder}\r\nContent-Length: 100000\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    body = form(part('name="extra_files"; filename="a"', b"x" * 40_000))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body[:30_000])
    wait_until(lambda: server.lab_directories() == [])
    assert lab(server, holder)["state"] == "none"


def begin(server: LabServer, session_id: str, size: int) -> socket.socket:
    """A connection with an upload of a large file, of which `size` bytes have been sent."""
    head = (
        f"POST /lab HTTP/1.1\r\nHost: lab\r\nX-Session-ID: {session_id}\r\nContent-Length: 190000\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(head.encode() + form(part('name="extra_files"; filename="a"', b"x" * 180_000))[:size])
    return connection


@pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("size", [100, 150_000])
def test_interrupted_uploads_leave_no_open_descriptors(
    server: LabServer, holder: str, size: int, abruptly: bool
) -> None:
    assert server.process
    process = psutil.Process(server.process.pid)

    def connections() -> list[object]:
        return [one for one in process.net_connections("tcp") if one.status != psutil.CONN_LISTEN]

    wait_until(lambda: not connections())
    clients = [begin(server, holder, size) for _ in range(50)]
    wait_until(lambda: len(connections()) == 50)
    for client in clients:
        if abruptly:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    wait_until(lambda: not connections() and not open_files(server), 30, "descriptors of vanished clients are left")
    wait_until(lambda: server.lab_directories() == [], 30)


def open_files(server: LabServer) -> list[str]:
    """The files of uploads that the server has open."""
    assert server.process
    paths = [file.path for file in psutil.Process(server.process.pid).open_files()]
    return [path for path in paths if path.startswith(str(server.work_dir)) and "/upload/" in path]


def test_no_file_is_open_while_an_upload_waits_for_data(tmp_path: Path) -> None:
    with running_server(tmp_path, max_extra_bytes="900000") as server:
        session_id = server.join()
        size = 600_000
        head = (
            f"POST /lab HTTP/1.1\r\nHost: lab\r\nX-Session-ID: {session_id}\r\nContent-Length: 900000\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        )
        body = form(part('name="extra_files"; filename="a"', b"x" * size))[:size]
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: sum(path.stat().st_size for path in server.work_dir.glob("*/upload/a")) > size // 3)
            wait_until(lambda: not open_files(server))
        wait_until(lambda: server.lab_directories() == [])


def test_a_stalled_upload_is_refused(tmp_path: Path) -> None:
    with running_server(tmp_path, upload_timeout="0.5") as server:
        session_id = server.join()
        with begin(server, session_id, 1000) as connection:
            answer = b""
            while piece := connection.recv(65_536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"no byte of the upload came for 0.5 s" in answer
        assert server.lab_directories() == []
        assert server.status(session_id)["position"] == 0


def test_a_session_that_is_not_active_is_refused_before_its_upload_is_written(server: LabServer, holder: str) -> None:
    answer = upload(server, server.join(), [topology()])
    assert_refused(server, answer, 423, "not active")
    assert server.lab_directories() == []


def test_a_full_disk_is_a_server_error(tmp_path: Path, server: LabServer, holder: str) -> None:
    """A file in place of the work directory has the same effect, and no full disk is needed."""
    server.work_dir.rename(server.root / "away")
    server.work_dir.write_text("in the way")
    try:
        answer = upload(server, holder, [topology()])
        assert answer.status_code == 507
        assert "lab host" in answer.json()["detail"]
        assert str(server.root) not in answer.text
    finally:
        server.work_dir.unlink()
        (server.root / "away").rename(server.work_dir)
    assert upload(server, holder, [topology()]).status_code == 200
