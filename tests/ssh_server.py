"""An SSH server for a node: `python ssh_server.py PORT [COMMAND ...]`.

A session runs its command line in the shell that COMMAND starts, such as `docker exec -i NODE`. A session without a
command line has a prompt, and runs each line that it reads. The program prints `ready` when it listens.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncssh

USER: Final = "root"
PASSWORD: Final = "admin"  # noqa: S105 - the default of many devices
PROMPT: Final = "node$ "


class _Users(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:  # noqa: ARG002 - asyncssh's signature
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)


class _Shell:
    def __init__(self, prefix: list[str]) -> None:
        self._prefix = prefix

    async def serve(self, process: asyncssh.SSHServerProcess[str]) -> None:
        if process.command is not None:
            process.exit(await self._run(process.command, process))
            return
        process.stdout.write(PROMPT)
        async for line in process.stdin:
            if line.strip() == "exit":
                break
            if line.strip():
                await self._run(line.strip(), process)
            process.stdout.write(PROMPT)
        process.exit(0)

    async def _run(self, line: str, process: asyncssh.SSHServerProcess[str]) -> int:
        child = await asyncio.create_subprocess_exec(
            *self._prefix, "sh", "-c", line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await child.communicate()
        process.stdout.write(output.decode().replace("\n", "\r\n") if process.term_type else output.decode())
        return child.returncode or 0


async def main(port: int, prefix: list[str]) -> None:
    """Serve until the process is killed."""
    await asyncssh.listen(
        "",
        port,
        server_factory=_Users,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        process_factory=_Shell(prefix).serve,
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


@contextmanager
def ssh_server(namespace: list[str], prefix: list[str], port: int = 22) -> Iterator[None]:
    """An SSH server in a network namespace.

    Args:
        namespace: the command that starts a program there.
        prefix: the command that runs the shell of the node.
        port: its TCP port.
    """
    command = [*namespace, sys.executable, __file__, str(port), *prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
