"""`RemoteLabClient`: waits in the queue, keeps the session alive and acquires labs."""

import getpass
import socket
import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx

from neops_remote_lab.client.access import Credentials
from neops_remote_lab.client.answers import detail_of, parsed, raise_for_error, retry_after
from neops_remote_lab.client.artifacts import unpack_artifacts
from neops_remote_lab.client.connection import CLOSE_TIMEOUT, GONE, ServerConnection
from neops_remote_lab.client.devices import EXEC_TIMEOUT, ExecResult, devices_of, execute, require_device
from neops_remote_lab.client.heartbeats import HEARTBEAT_INTERVAL, Heartbeats
from neops_remote_lab.client.queue_position import QueuePosition
from neops_remote_lab.client.session import Session
from neops_remote_lab.client.start_phases import StartPhases
from neops_remote_lab.client.topology_checks import TopologyChecks
from neops_remote_lab.client.uploads import upload_of
from neops_remote_lab.core.client_settings import (
    ACQUISITION_TIMEOUT,
    REQUEST_TIMEOUT,
    SESSION_TIMEOUT,
    UNREACHABLE_TIMEOUT,
)
from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.core.ports import require_port
from neops_remote_lab.core.topology_files import PathName, TopologyFiles
from neops_remote_lab.models.health import DebugHealthDto
from neops_remote_lab.models.lab import AcquireResponseDto, DeviceInfoDto
from neops_remote_lab.models.queue import QueueDto
from neops_remote_lab.models.session import SessionStatusResponseDto

if TYPE_CHECKING:
    from neops_remote_lab.client.forwards import Forward, Forwards

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids and credentials

CHECK_GRACE = 1.0
"""Seconds to wait for a running topology check when the session ends."""
ARTIFACTS_TIMEOUT = 120.0
"""Seconds to wait for artifacts: twice the server's default limit."""
BUSY_INTERVAL = 1.0
"""Seconds before the retry of an acquire of a busy lab, if the server sends no Retry-After."""


class RemoteLabClient:
    """One session with a lab host. The constructor joins the queue and waits until the session is active.

    Args:
        base_url: the server's address, for example `http://lab-host:8000`; it may contain a user name and a password.
        request_timeout: seconds to wait for the response to a short call.
        session_timeout: seconds to wait in the queue.
        lab_acquisition_timeout: seconds that one `acquire` may take, including the start of a lab.
        client: label of the session in the queue; default: `user@host`.
        purpose: what the session is for, shown in the queue.
        session_key: processes with the same key share one session.
        topologies: topology files that the session will need, optionally with extra files; the server checks them
            while the session waits.
        wait: whether the constructor waits until the session is active; if not, call `wait_until_active`.
        on_progress: called with the position and what it waits for, whenever the position in the queue changes.
        on_status: called with each response about the position, including the estimated wait.
        on_phase: called, from another thread, at the beginning of each phase of netlab while an `acquire` waits.
        on_lost: called once, from the heartbeat thread, with the reason why the server ended the session.
        transport: httpx transport to use instead of the network.
        heartbeat_interval: seconds between two heartbeats.
        clock: source of time.
        pause: sleeps for a number of seconds.
        token: bearer token for the server or the proxy in front of it; default: `REMOTE_LAB_TOKEN`.
        client_cert: PEM file with a client certificate; default: `REMOTE_LAB_CLIENT_CERT`.
        client_key: PEM file with its private key, if not in the same file; default: `REMOTE_LAB_CLIENT_KEY`.
        ca_file: PEM file with the authorities to trust instead of the default ones; default: `REMOTE_LAB_CA_FILE`.
        unreachable_timeout: seconds for which calls to an unreachable server are retried; default: 120.
        on_trouble: called with a message when the server becomes unreachable, every 30 seconds while it is, and when
            it answers again; by default the messages are logged as warnings.

    Attributes:
        base_url: the server's address, without credentials and without a trailing slash.
        request_timeout: as given.
        session_timeout: as given.
        lab_acquisition_timeout: as given.
        rejected: netlab's message for each of `topologies` that it rejects. If it rejects all of them, a session that
            is not shared leaves the queue, and the constructor returns without an active session.

    Raises:
        TimeoutError: the session was not active in time; it has left the queue.
        SessionEnded: the server ended the session while it waited.
        InvalidSetting: the address, the credentials, or a proxy or certificate of the environment is wrong.
        httpx.HTTPStatusError: the server refused; the message says why.
        httpx.TransportError: the server cannot be reached.
    """

    def __init__(
        self,
        base_url: str,
        request_timeout: float = REQUEST_TIMEOUT,
        session_timeout: float = SESSION_TIMEOUT,
        lab_acquisition_timeout: float = ACQUISITION_TIMEOUT,
        *,
        client: str | None = None,
        purpose: str | None = None,
        session_key: str | None = None,
        topologies: Sequence[Path | TopologyFiles] = (),
        wait: bool = True,
        on_progress: Callable[[int, str | None], None] | None = None,
        on_status: Callable[[SessionStatusResponseDto], None] | None = None,
        on_phase: Callable[[str], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        transport: httpx.BaseTransport | None = None,
        heartbeat_interval: float = HEARTBEAT_INTERVAL,
        clock: Clock | None = None,
        pause: Callable[[float], object] | None = None,
        token: str | None = None,
        client_cert: str | Path | None = None,
        client_key: str | Path | None = None,
        ca_file: str | Path | None = None,
        unreachable_timeout: float | None = None,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        self._server = ServerConnection(
            base_url,
            request_timeout,
            credentials=Credentials(token, client_cert, client_key, ca_file),
            unreachable_timeout=UNREACHABLE_TIMEOUT if unreachable_timeout is None else unreachable_timeout,
            on_trouble=on_trouble,
            transport=transport,
            clock=clock,
            pause=pause,
        )
        self.base_url = self._server.base_url
        self.request_timeout = request_timeout
        self.session_timeout = session_timeout
        self.lab_acquisition_timeout = lab_acquisition_timeout
        self._on_trouble = on_trouble
        self._forwards: Forwards | None = None
        self._references: list[str] = []
        self._session = Session(self._server)
        self._heartbeats = Heartbeats(
            self._server,
            self._session,
            interval=heartbeat_interval,
            timeout=min(request_timeout, max(heartbeat_interval, 1)),
            on_lost=on_lost,
        )
        self._position = QueuePosition(
            self._server,
            self._session,
            timeout=session_timeout,
            request_timeout=request_timeout,
            on_progress=on_progress,
            on_status=on_status,
        )
        self._phases = StartPhases(self._server, self._session, on_phase) if on_phase is not None else None
        self._checks = TopologyChecks(self._session, topologies, self._position.until)
        self.rejected = self._checks.rejected
        self._disconnected = False
        key = session_key or uuid.uuid4().hex
        try:
            labels = {"client": client or default_label()} | ({"purpose": purpose} if purpose else {})
            self._session.session_id = self._server.join(labels, key, self._position.until)
            self._heartbeats.start()
            if topologies and self._position.poll().status is not SessionState.ACTIVE:
                self._checks.start()
                self._position.watch(self._checks.finished)
            if topologies and self.rejected.keys() >= set(topologies) and session_key is None:
                self.close()  # unless shared: for the other processes the session would be lost
            elif wait:
                self._position.wait_for_turn()
        except BaseException as error:
            if not self.session_id and not isinstance(error, Exception):
                # Ctrl-C during the join: the session may already exist
                self._server.end_session_of(key)
            self.close()
            raise

    @property
    def session_id(self) -> str:
        """The id of the session; empty once the session is closed."""
        return self._session.session_id

    @property
    def lost_reason(self) -> str | None:
        """Why the server ended the session; None if it has not."""
        return self._session.lost_reason

    @property
    def closed(self) -> bool:
        """Whether this process has left the session."""
        return self._session.left.is_set()

    @property
    def references(self) -> tuple[str, ...]:
        """The idempotency keys of the acquires that are not yet released, oldest first."""
        return tuple(self._references)

    def wait_until_active(self) -> None:
        """Wait until the session is active, if the constructor was called with `wait=False`.

        Raises:
            TimeoutError: the session was not active in time; it has left the queue.
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused; the message says why.
        """
        self._session.require_open()
        try:
            self._position.wait_for_turn()
        except BaseException:
            self.close()
            raise

    def queue(self) -> QueueDto:
        """The queue as all users see it. The server is asked once.

        Raises:
            httpx.HTTPError: the server refused, or cannot be reached.
        """
        answer = self._server.try_once("GET", "/queue", timeout=self.request_timeout)
        raise_for_error(answer)
        return parsed(answer, QueueDto)

    def server_version(self) -> str | None:
        """The version of the server, requested once; None if the server does not report it."""
        with suppress(httpx.HTTPError):
            answer = self._server.try_once("GET", "/debug/health", timeout=self.request_timeout)
            raise_for_error(answer)
            return parsed(answer, DebugHealthDto).version
        return None

    def acquire(
        self, topology: str | Path, reuse: bool = True, *, extra_files: Sequence[PathName] = ()
    ) -> list[DeviceInfoDto]:
        """Acquire the lab of a topology: start it, or share it if it is running. Waits while another lab is in use.

        Args:
            topology: the topology file.
            reuse: share a running lab that already has references, if its topology and extra files are the same.
            extra_files: files that the topology needs, relative to its directory: paths, directories (which stand for
                all files below them), and patterns as for `pathlib.Path.glob`.

        Returns:
            The lab's devices.

        Raises:
            FileNotFoundError: a file does not exist, or no file matches a pattern.
            ValueError: an extra file is outside the topology's directory, or the lab host refuses its name.
            TimeoutError: no lab within the acquisition timeout.
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused, for example because netlab rejects the topology.
        """
        self._session.require_open()
        wanted, key = TopologyFiles.of(topology, extra_files), uuid.uuid4().hex
        until = self._server.now() + self.lab_acquisition_timeout
        try:
            with self._phases.told() if self._phases else nullcontext():
                response = self._post_lab(wanted, key, until, reuse=reuse)
        except httpx.TransportError as error:
            if self._server.now() < until:
                raise
            raise TimeoutError(f"no lab for {wanted.name} in {self.lab_acquisition_timeout:g} s: {error}") from error
        self._session.raise_if_gone(response)
        raise_for_error(response)
        self._references.append(key)
        return parsed(response, AcquireResponseDto).devices

    def release(self, *, timeout: float | None = None) -> None:
        """Release the reference of the last `acquire`. The last release tears the lab down.

        Args:
            timeout: seconds for which the call is retried; default: the unreachable timeout.

        Raises:
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused, for example because no lab is running.
            httpx.TransportError: the server could not be reached; the call may be repeated.
        """
        self._session.require_open()
        until = None if timeout is None else self._server.now() + timeout
        response = self._server.release(self.session_id, self._references[-1] if self._references else None, until)
        if response.is_success or response.status_code in GONE:
            del self._references[-1:]
        if response.status_code in GONE:  # "no lab runs" and "no such session" have the same status
            self._session.require_live()
        raise_for_error(response)

    def hand_over(self) -> None:
        """Drop the last reference, which another process that shares the session takes over."""
        del self._references[-1:]

    def take_over(self, reference: str) -> None:
        """Take over a reference of another process that shares the session."""
        self._references.append(reference)

    def destroy(self, force: bool = True) -> None:
        """Tear the lab down.

        Args:
            force: tear the lab down even if it has references.

        Raises:
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused, for example because the lab is in use and `force` is false.
        """
        self._session.require_open()
        parameters = {"force": str(force).lower()}
        response = self._session.call("DELETE", "/lab", params=parameters)
        self._session.raise_if_gone(response)
        raise_for_error(response)
        self._references.clear()

    def devices(self) -> list[DeviceInfoDto]:
        """The devices of the running lab.

        Raises:
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused, for example since no lab runs.
            httpx.TransportError: the server could not be reached.
        """
        self._session.require_open()
        return devices_of(self._session)

    def exec(
        self,
        device: str | DeviceInfoDto,
        command: str | Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = EXEC_TIMEOUT,
    ) -> ExecResult:
        """Run a command in a device of the running lab. The request is never sent twice.

        Args:
            device: the device or its name.
            command: a string for the device's shell, or a program with its arguments.
            stdin: standard input of the command.
            timeout: seconds after which the command is ended.

        Raises:
            TimeoutError: the command did not end in time.
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused, for example because the device does not exist.
            httpx.TransportError: the server could not be reached, or the connection broke.
        """
        self._session.require_open()
        until = self._server.now() + timeout + self.request_timeout
        return execute(self._session, device, command, stdin=stdin, timeout=timeout, until=until)

    def forward(self, device: str | DeviceInfoDto, port: int) -> "Forward":
        """Forward a port of this machine to a port of a device, through the server.

        Args:
            device: the device or its name.
            port: TCP port of the device.

        Returns:
            A context manager with `host` and `port` of this machine. Leaving it, or ending the session, closes the port
            and its connections. A failing connection is reset and reported to `on_trouble`.

        Raises:
            ValueError: the port is not a number from 1 to 65535.
            LookupError: the lab has no device of that name.
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused, for example because no lab runs.
            httpx.TransportError: the server could not be reached.
        """
        from neops_remote_lab.client.forwards import Forwards  # noqa: PLC0415 - an event loop, which few need
        from neops_remote_lab.client.web_sockets import WebSockets  # noqa: PLC0415

        self._session.require_open()
        require_port(port)
        if isinstance(device, str):
            require_device(self._session, device)
        if self._forwards is None:
            sockets = WebSockets(self._server.access, self.session_id, self.request_timeout)
            self._forwards = Forwards(sockets, self._on_trouble)
        return self._forwards.open(device if isinstance(device, str) else device.name, port)

    def artifacts(self, directory: str | Path, *, timeout: float = ARTIFACTS_TIMEOUT) -> Path:
        """Fetch logs, configurations and other artifacts of the running lab, or of the latest one if it did not start.

        Args:
            directory: directory to unpack the archive in; created if it does not exist.
            timeout: seconds that the server may take.

        Returns:
            The directory `lab-ID` in it. An existing one is replaced.

        Raises:
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused, for example because there is no lab.
            httpx.TransportError: the server could not be reached.
            ValueError: the response is not such an archive, or is too large.
            OSError: the files cannot be written.
        """
        self._session.require_open()
        response = self._session.ask("GET", "/lab/artifacts", until=self._server.now() + timeout, slow=True)
        return unpack_artifacts(response.content, Path(directory))

    def close(self) -> None:
        """End the session within a few seconds. Network errors are logged, not raised. May be called repeatedly."""
        self._session.left.set()  # first, because a heartbeat after the end would look like a lost session
        until = self._server.now() + CLOSE_TIMEOUT
        if self.session_id and not self._disconnected and self.lost_reason is None:
            self._server.end_session(self.session_id)
        self._disconnect(until)
        self._session.session_id = ""

    def detach(self) -> None:
        """Leave the session without ending it, because other processes share it."""
        self._session.left.set()
        self._disconnect(self._server.now() + CLOSE_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _disconnect(self, until: float) -> None:
        self._disconnected = True
        if self._forwards is not None:
            self._forwards.close()
        are_over = self._heartbeats.join(max(until - self._server.now(), 1))
        self._checks.join(CHECK_GRACE)  # the end of the session ends its checks; closing the connection aborts others
        if are_over:  # otherwise a heartbeat still uses the connection, and ends with the process
            self._server.close()

    def _post_lab(self, topology: TopologyFiles, key: str, until: float, *, reuse: bool) -> httpx.Response:
        with upload_of(topology, reuse=str(reuse).lower()) as upload:
            while True:
                response = self._session.call("POST", "/lab", key=key, until=until, slow=True, **upload)
                if response.status_code != httpx.codes.LOCKED:
                    return response
                left = until - self._server.now()
                if left <= 0:
                    name, limit = topology.name, self.lab_acquisition_timeout
                    raise TimeoutError(f"no lab for {name} in {limit:g} s: {detail_of(response)}")
                self._server.pause(min(retry_after(response, BUSY_INTERVAL), left))


def default_label() -> str:
    """`user@host` of this process; `unknown` if the user has no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # the user has no passwd entry, as in some containers
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
