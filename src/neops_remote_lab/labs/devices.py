"""Access to the devices of a session's running lab: commands, TCP connections and consoles."""

import asyncio
import functools
import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from neops_remote_lab.core.codes import LiveLabState
from neops_remote_lab.core.threads import RunBlocking, in_threads
from neops_remote_lab.labs.accesses import Cut, LabAccess, LabAccesses
from neops_remote_lab.labs.channels import TcpChannel, TerminalChannel
from neops_remote_lab.labs.refusals import Reason, Refused, refusal_of
from neops_remote_lab.labs.settings import DeviceSettings
from neops_remote_lab.labs.slots import Slots
from neops_remote_lab.netlab import leftovers
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.node_commands import Completed, NodeCommands, NoShell
from neops_remote_lab.netlab.nodes import Node, find_nodes, open_socket
from neops_remote_lab.netlab.terminals import Size, Terminals, console_program
from neops_remote_lab.store.rows import Lab

TERMINAL_THREADS: Final = 4
"""Number of threads that start and end programs on terminals; a running program needs no thread."""
_CUT: Final = {
    Cut.LAB_ENDED: (Reason.NO_LAB, "the lab has ended meanwhile"),
    Cut.SERVER_ENDS: (Reason.SERVER_ENDS, "the server is shutting down: try again when it is back"),
}


class Devices:
    """Runs commands in devices and opens connections to them, after proving that they belong to the caller's lab."""

    def __init__(
        self,
        *,
        slots: Slots,
        accesses: LabAccesses,
        netlab: NetlabCommands,
        settings: DeviceSettings,
        docker: str,
        kill_grace: float,
        run_blocking: RunBlocking,
    ) -> None:
        self._slots = slots
        self._accesses = accesses
        self._netlab = netlab
        self._settings = settings
        self._docker = docker
        self._commands = NodeCommands(netlab, kill_grace)
        self._run_blocking = run_blocking
        self._run_command = in_threads(
            settings.exec_threads
        )  # separate threads, so that operations on the lab never wait for commands
        self._terminals = Terminals(netlab, self._commands, kill_grace)
        self._run_terminal = in_threads(TERMINAL_THREADS)
        self._threads = asyncio.Semaphore(settings.exec_threads)
        self._proving = asyncio.Lock()
        self._proven: dict[str, dict[str, Node]] = {}

    @contextmanager
    def access(self, session_id: str) -> Iterator[LabAccess]:
        """A context for one access to the session's running lab. Raises Refused if the lab has ended meanwhile."""
        lab = self._slots.of(session_id).lab
        if lab is None or lab.session_id != session_id or lab.state is not LiveLabState.RUNNING:
            raise Refused(*_CUT[Cut.LAB_ENDED])
        with self._accesses.open(session_id, lab.lab_id) as access:
            yield access

    async def execute(
        self, session_id: str, name: str, words: Sequence[str], *, stdin: bytes, seconds: float
    ) -> Completed:
        """Run a command in a node. Cancelling the call ends the command.

        Args:
            words: the command and its arguments.
            seconds: timeout, including the wait for other commands.

        Raises:
            Refused: the node does not exist or provably belongs to no container of this lab, or the command timed out.
        """
        node = await self.node(session_id, name)
        until = asyncio.get_running_loop().time() + seconds
        with self.access(session_id) as access:
            async with self._turn(access, seconds):
                left = until - asyncio.get_running_loop().time()
                try:
                    return await self._run(access, node, words, stdin=stdin, seconds=left)
                except InterruptedError:
                    raise Refused(*_CUT[access.cut.result()]) from None
                except subprocess.TimeoutExpired:
                    raise _timed_out(seconds) from None
                except NoShell:
                    detail = f"{name} has no shell (sh), which is needed to run commands"
                    raise Refused(Reason.UNSUPPORTED, detail) from None
                except (subprocess.SubprocessError, OSError) as error:
                    raise refusal_of(error, f"the command could not be run in {name}") from error

    @asynccontextmanager
    async def _turn(self, access: LabAccess, seconds: float) -> AsyncIterator[None]:
        """Reserve one of the threads for commands."""
        turn: asyncio.Future[Any] = asyncio.ensure_future(self._threads.acquire())
        try:
            await asyncio.wait({turn, access.cut}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if access.cut.done():
                raise Refused(*_CUT[access.cut.result()])
            if not turn.done():
                raise _timed_out(seconds)
            yield
        finally:
            if turn.done():
                self._threads.release()
            else:
                turn.cancel()

    async def _run(
        self, access: LabAccess, node: Node, words: Sequence[str], *, stdin: bytes, seconds: float
    ) -> Completed:
        """Run a command to its end. It is interrupted if the access is cut or the call is cancelled."""
        interrupt = threading.Event()
        command = functools.partial(
            self._commands.execute,
            node,
            words,
            lab_id=access.lab_id,
            stdin=stdin,
            timeout=seconds,
            most=self._settings.max_exec_output_bytes,
            interrupt=interrupt,
        )
        running: asyncio.Future[Any] = asyncio.ensure_future(self._run_command(command))
        try:
            await asyncio.wait({running, access.cut}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            interrupt.set()
            await asyncio.wait([running])
            running.exception()  # mark it as retrieved, because a cancelled call does not await it
        completed: Completed = running.result()
        return completed

    async def connect(self, node: Node, name: str, port: int) -> TcpChannel:
        """Open a TCP connection to a port of a node's management address.

        Raises:
            Refused: the node has no address that is provably its own, or the connection fails.
        """
        if not node.endpoints:
            detail = (
                f"{name} has no address in a network created by Docker, so there is no proof that a connection would "
                "reach it and nothing else"
            )
            raise Refused(Reason.UNSUPPORTED, detail)
        endpoint, limit = node.endpoints[0], self._settings.connect_timeout
        try:
            connection = open_socket(endpoint)
        except OSError as error:
            detail = f"the management network of {name} cannot be reached from this host: {_said(error)}"
            raise Refused(Reason.UNSUPPORTED, detail) from None
        try:
            async with asyncio.timeout(limit):
                await asyncio.get_running_loop().sock_connect(connection, (endpoint.address, port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                detail = f"{name} did not answer on TCP port {port} within {limit:g} s"
                raise Refused(Reason.CONNECT_TIMED_OUT, detail) from None
            if isinstance(error, OSError):
                raise Refused(Reason.UNREACHABLE, f"{name}, TCP port {port}: {_said(error)}") from None
            raise
        return TcpChannel(connection, self._settings.connection_piece_bytes)

    async def open_console(
        self, access: LabAccess, node: Node, name: str, *, words: Sequence[str] | None, size: Size
    ) -> TerminalChannel:
        """Start a program on a terminal in a node: `words`, or by default the program of `netlab connect`.

        Raises:
            Refused: `netlab connect` runs no program in this node, or Docker fails.
        """
        words = words or console_program(await self._raw(access.session_id, name))
        if words is None or words[0].startswith("-"):
            detail = f"{name} has no console in its container: connect to its TCP port 22, or give a command"
            raise Refused(Reason.UNSUPPORTED, detail)
        opening = asyncio.ensure_future(self._run_terminal(self._terminals.open, node, words, size, access.lab_id))
        try:
            terminal = await asyncio.shield(opening)
        except OSError as error:
            raise refusal_of(error, f"no console could be opened in {name}") from error
        except asyncio.CancelledError:
            await TerminalChannel(await opening, self._terminals, self._run_terminal).close()
            raise
        return TerminalChannel(terminal, self._terminals, self._run_terminal)

    async def _raw(self, session_id: str, name: str) -> dict[str, Any]:
        return next(
            device.raw for device in await self._slots.of(session_id).devices(session_id) if device.name == name
        )

    @contextmanager
    def connection(self, session_id: str) -> Iterator[None]:
        """A context that counts as one connection to a device. Raises TooMany if a limit is reached."""
        settings = self._settings
        limits = {"most": settings.max_connections, "most_of_session": settings.max_session_connections}
        with self._accesses.connection(session_id, **limits):
            yield

    async def node(self, session_id: str, name: str) -> Node:
        """The container of a node that provably belongs to the session's running lab.

        Raises:
            Refused: there is no lab or no such node, or the node is not a container.
        """
        devices = await self._slots.of(session_id).devices(session_id)
        if name not in {device.name for device in devices}:
            raise Refused(Reason.NO_DEVICE, "the lab has no such node: GET /lab/devices names them")
        nodes = await self._prove(session_id, name)
        if name not in nodes:
            detail = f"{name} is not a Docker container, so there is no proof that it belongs to this lab"
            raise Refused(Reason.UNSUPPORTED, detail)
        return nodes[name]

    async def _prove(self, session_id: str, name: str) -> dict[str, Node]:
        """The nodes that Docker knows, cached for the life of the lab. Docker is asked again for an unknown node."""
        async with self._proving:
            lab = self._slots.of(session_id).lab
            if lab is None or lab.session_id != session_id:
                raise Refused(*_CUT[Cut.LAB_ENDED])
            nodes = self._proven.get(lab.lab_id)
            if nodes is None or name not in nodes:
                try:
                    nodes = await self._run_blocking(self._ask_docker, Path(lab.work_dir))
                except (subprocess.SubprocessError, OSError, ValueError) as error:
                    self._require_running(session_id, lab)
                    raise refusal_of(error, "Docker could not list the nodes of the lab") from error
                self._require_running(session_id, lab)
                live = {lab.lab_id for lab in self._slots.labs}
                self._proven = {lab_id: known for lab_id, known in self._proven.items() if lab_id in live}
                self._proven[lab.lab_id] = nodes
            return nodes

    def _require_running(self, session_id: str, lab: Lab) -> None:
        """Raise Refused if a lab has ended, or is about to, while Docker was asked for its nodes."""
        now = self._slots.of(session_id).lab
        if now is None or now.lab_id != lab.lab_id or now.state is not LiveLabState.RUNNING:
            raise Refused(*_CUT[Cut.LAB_ENDED])

    def _ask_docker(self, base: Path) -> dict[str, Node]:
        if not leftovers.docker_is_installed(self._docker):
            return {}
        return find_nodes(base, self._netlab.docker)


def _timed_out(seconds: float) -> Refused:
    return Refused(Reason.TIMED_OUT, f"the command did not end within {seconds:g} s, and was ended")


def _said(error: OSError) -> str:
    """The system's error message, without the address that asyncio adds."""
    return os.strerror(error.errno).lower() if error.errno else str(error)
