"""The documentation: each block is run, or states why it is not."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.chaos.shell import ask
from tests.documents import PAGES, ROOT, Block, blocks, file_of
from tests.fakes import topology_text, wait_until
from tests.reader import Reader
from tests.server import LabServer, running_server

RUNNABLE = {"console", "bash", "python", "sql"}
RUN_ELSEWHERE = {
    "README.md": "test_readme.py",
    "docs/operating.md": "test_readme.py",
    "docs/tutorial.md": "test_readme.py",
    "docs/sql.md": "test_sql_cookbook.py, and its commands in test_readme.py",
}
"""The tests that run pages whose blocks need another host than the fake one."""

FILES = {
    "ospf.yml": file_of("README.md", "ospf.yml"),
    "motd.j2": "welcome\n",
    "topologies/ospf.yml": file_of("README.md", "ospf.yml"),
    "topologies/campus.yml": topology_text(2).replace("r1", "sw1"),
    **{f"campus/{name}": "" for name in ("campus.yml", "vlans.py", "templates/vlan.j2", "configs/sw1.cfg")},
}
"""Files that the pages expect."""


def user_of(server: LabServer, directory: Path) -> Reader:
    """A user of this server with the files that the pages expect."""
    for name, text in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    environment = {**server.netlab.environment(), "PYTHONPATH": str(ROOT / "src")}
    return Reader(directory, environment, server.url.removeprefix("http://"))


def is_stream(block: Block) -> bool:
    return "text/event-stream" in block.text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")
def test_the_calls_of_the_http_page(tmp_path: Path) -> None:
    with running_server(tmp_path, max_wait="1") as server:
        user = user_of(server, tmp_path / "user")
        ahead = [server.join(client="ann@laptop"), server.join()]
        for block in blocks(ROOT / "docs" / "http.md"):
            if block.language != "console" or block.not_run or is_stream(block):
                continue
            if "/lab" in block.text:
                while ahead:
                    ask(server, ahead[-1], "DELETE", f"/session/{ahead.pop()}")
            user.run_block(block)
            if "session_id" in user.printed:
                user.environment.setdefault("ID", json.loads(user.printed).get("session_id", ""))
        assert len(user.commands) >= 8


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")
def test_the_stream_of_the_http_page(lab_server: LabServer, tmp_path: Path) -> None:
    user = user_of(lab_server, tmp_path / "user")
    (block,) = [block for block in blocks(ROOT / "docs" / "http.md") if is_stream(block)]
    session = lab_server.join()
    assert lab_server.acquire(session, topology_text(1)).status_code == 200
    ((command, _),) = block.commands()
    user.environment |= {"URL": lab_server.url, "ID": session}
    # Not a pipeline, which would last until curl is written to again.
    assert "data: " in user.run(["bash", "-c", f"grep --max-count=1 data: < <({command} 2>&1)"], command)


def test_the_files_of_the_pytest_page(lab_server: LabServer, tmp_path: Path) -> None:
    user = user_of(lab_server, tmp_path / "user")
    programs = str(Path(sys.executable).parent)
    user.environment["PATH"] = os.pathsep.join([programs, user.environment["PATH"]])
    user.run_page("docs/pytest.md")
    assert [command for command in user.commands if "pytest" in command]
    wait_until(lab_server.is_clean)


def test_the_commands_of_the_command_line_page(lab_server: LabServer, tmp_path: Path) -> None:
    user = user_of(lab_server, tmp_path / "user")
    programs = str(Path(sys.executable).parent)
    user.environment["PATH"] = os.pathsep.join([programs, user.environment["PATH"]])
    user.environment |= {"REMOTE_LAB_URL": lab_server.url, "XDG_STATE_HOME": str(tmp_path / "state")}
    try:
        user.run_page("docs/cli.md")
    finally:
        user.run(["neops-remote-lab", "down"], "down")
    assert [command for command in user.commands if command.startswith("neops-remote-lab exec")]
    wait_until(lab_server.is_clean)


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page)], ids=str)
def test_every_block_is_run_or_states_why_not(block: Block) -> None:
    assert block.language, "the fence names no language"
    if block.language in RUNNABLE and not block.not_run:
        assert block.page in {*RUN_ELSEWHERE, "docs/http.md", "docs/pytest.md", "docs/cli.md"}
        assert block.file or block.language != "bash", "a script begins with a comment that names it"
