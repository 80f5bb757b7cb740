"""`RemoteLabClient`: queues for the lab host, keeps the session alive and acquires labs."""

import getpass
import logging
import math
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import httpx

from neops_remote_lab.client.access import Credentials
from neops_remote_lab.client.answers import detail_of, parsed, raise_for_error, retry_after
from neops_remote_lab.client.connection import (
    CLOSE_TIMEOUT,
    GONE,
    RESTARTING,
    UNREACHABLE_TIMEOUT,
    ServerConnection,
    headers_of,
)
from neops_remote_lab.client.exceptions import SessionClosed, SessionEnded
from neops_remote_lab.client.uploads import upload_of
from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.topology_files import PathName, TopologyFiles
from neops_remote_lab.models.lab import AcquireResponseDto, DeviceInfoDto
from neops_remote_lab.models.session import SessionStatusResponseDto

__tracebackhide__ = True  # pytest shows the arguments of a frame, and here they hold session ids and credentials

HEARTBEAT_INTERVAL = 5.0
"""Seconds between two signs of life."""
LONGEST_POLL = 25.0
"""Seconds for which the server is asked to hold its answer; many proxies cut a connection that is silent for 30."""
POLL_INTERVAL = 1.0
"""Least seconds from one poll to the next, for servers that do not hold their answer."""
CHECK_POLL = 1
"""Seconds for which the server is asked to hold its answer while it checks topologies: so late is their end noticed."""
CHECK_GRACE = 1.0
"""Seconds for which the end of the session waits for a check that still runs."""
BUSY_INTERVAL = 1.0
"""Seconds until a busy lab is asked for again, where the server names none."""

_NO_MORE_CHECKS = frozenset(
    {
        httpx.codes.NOT_FOUND,
        httpx.codes.METHOD_NOT_ALLOWED,
        httpx.codes.NOT_IMPLEMENTED,
        httpx.codes.CONFLICT,
        httpx.codes.GONE,
    }
)
"""What an older server answers to a check, or any server once the session is active or over."""

_log = logging.getLogger(__name__)


class RemoteLabClient:
    """One session with a lab host. The constructor queues and waits until the session is active.

    Args:
        base_url: the server's address, for example `http://lab-host:8000`; it may hold a user name and a password.
        request_timeout: seconds for which one short call may wait for its answer.
        session_timeout: seconds to wait in the queue.
        lab_acquisition_timeout: seconds for which one `acquire` may wait and start a lab.
        client: who asks, as the queue shows it; `user@host` where none is given.
        purpose: what for, as the queue shows it.
        session_key: processes that give the same key share one session.
        topologies: topology files that the session is going to need, with their extra files where they have some: they
            are checked while it waits.
        wait: whether the constructor waits for the turn; otherwise `wait_until_active` does.
        on_progress: called with the position and what it waits for whenever the position in the queue changes.
        on_status: called with each answer about the place in the queue, the expected wait included.
        on_lost: called once, from the heartbeat thread, with the reason why the server ended the session.
        transport: httpx transport to use in place of the network.
        heartbeat_interval: seconds between two signs of life.
        clock: where the time comes from.
        pause: waits for as many seconds as it is given.
        token: bearer token for the server or the proxy in front of it; `REMOTE_LAB_TOKEN` where none is given.
        client_cert: PEM file with a client certificate; else `REMOTE_LAB_CLIENT_CERT`.
        client_key: PEM file with its private key, where that is in another file; else `REMOTE_LAB_CLIENT_KEY`.
        ca_file: PEM file with the authorities to trust in place of the usual ones; else `REMOTE_LAB_CA_FILE`.
        unreachable_timeout: seconds for which a server that cannot be reached is tried again; 120 where none is given.
        on_trouble: called with a sentence when the server cannot be reached, every half a minute while that lasts, and
            when it is over; where none is given the sentences are logged as warnings.

    Attributes:
        base_url: the server's address without user name and password, and without a slash at the end.
        request_timeout: as given.
        session_timeout: as given.
        lab_acquisition_timeout: as given.
        session_id: what the server knows the session by; empty once the session is closed.
        lost_reason: why the server ended the session; None as long as it has not.
        rejected: netlab's message for each of `topologies` that it does not accept. When it accepts none of them, a
            session that is not shared leaves the queue, and the constructor returns without an active session.

    Raises:
        TimeoutError: the session was not active in time; it has left the queue.
        SessionEnded: the server ended the session while it waited.
        InvalidSetting: the address, the credentials, or a proxy or certificate of the environment cannot work.
        httpx.HTTPStatusError: the server refused; the message says why.
        httpx.TransportError: the server cannot be reached.
    """

    def __init__(
        self,
        base_url: str,
        request_timeout: float = 30,
        session_timeout: float = 600,
        lab_acquisition_timeout: float = 600,
        *,
        client: str | None = None,
        purpose: str | None = None,
        session_key: str | None = None,
        topologies: Sequence[Path | TopologyFiles] = (),
        wait: bool = True,
        on_progress: Callable[[int, str | None], None] | None = None,
        on_status: Callable[[SessionStatusResponseDto], None] | None = None,
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
        self._on_progress = on_progress
        self._on_status = on_status
        self._on_lost = on_lost
        self._heartbeat_interval = heartbeat_interval
        self._position = 0
        self._references: list[str] = []
        self._leaving = threading.Event()
        self._ended = False
        self._checks: threading.Thread | None = None
        self._heartbeats = threading.Thread(target=self._keep_alive, name="remote-lab-heartbeat", daemon=True)
        self.lost_reason: str | None = None
        self.rejected: dict[Path | TopologyFiles, str] = {}
        self.session_id = ""
        key = session_key or uuid.uuid4().hex
        self._patient_until = self._server.now() + session_timeout
        try:
            self.session_id = self._join(client or default_label(), purpose, key)
            self._heartbeats.start()
            self._check_all(topologies)
            if topologies and self.rejected.keys() >= set(topologies) and session_key is None:
                self.close()  # who shares a session leaves it to the others, who would take its end for a loss
            elif wait:
                self._wait_for_turn()
        except BaseException as error:
            if not self.session_id and not isinstance(error, Exception):
                # Ctrl-C in the middle of joining: the server may have the session already
                self._server.end_session_of(key)
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether this process has left the session."""
        return self._leaving.is_set()

    @property
    def references(self) -> tuple[str, ...]:
        """The idempotency keys of the acquires that were not yet released, oldest first."""
        return tuple(self._references)

    def wait_until_active(self) -> None:
        """Wait for the turn, where the constructor did not.

        Raises:
            TimeoutError: the session was not active in time; it has left the queue.
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused; the message says why.
        """
        self._require_session()
        try:
            self._wait_for_turn()
        except BaseException:
            self.close()
            raise

    def acquire(
        self, topology: str | Path, reuse: bool = True, *, extra_files: Sequence[PathName] = ()
    ) -> list[DeviceInfoDto]:
        """Get the lab of a topology, started where it does not run; waits while another lab is in use.

        Args:
            topology: the topology file.
            reuse: share the lab when the same topology, with the same extra files, runs already.
            extra_files: files that the topology needs, relative to its directory: paths, directories that stand for
                all below them, and patterns as `pathlib.Path.glob` has them.

        Returns:
            The lab's devices.

        Raises:
            FileNotFoundError: there is no such topology or extra file, or none that matches a pattern.
            ValueError: an extra file lies outside of the topology's directory, or the lab host refuses its name.
            TimeoutError: no lab within the acquisition timeout.
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused, for example since netlab rejects the topology.
        """
        self._require_session()
        wanted, key = TopologyFiles.of(topology, extra_files), uuid.uuid4().hex
        until = self._server.now() + self.lab_acquisition_timeout
        try:
            response = self._post_lab(wanted, key, until, reuse=reuse)
        except httpx.TransportError as error:
            if self._server.now() < until:
                raise
            raise TimeoutError(f"no lab for {wanted.name} in {self.lab_acquisition_timeout:g} s: {error}") from error
        self._raise_if_gone(response)
        raise_for_error(response)
        self._references.append(key)
        return parsed(response, AcquireResponseDto).devices

    def release(self, *, timeout: float | None = None) -> None:
        """Let go of what the last `acquire` gave; the lab is torn down when nobody holds it any more.

        Args:
            timeout: seconds for which it is tried; the unreachable timeout where none is given.

        Raises:
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused, for example since no lab runs.
            httpx.TransportError: the server could not be reached; the call may be repeated.
        """
        self._require_session()
        until = None if timeout is None else self._server.now() + timeout
        response = self._server.release(self.session_id, self._references[-1] if self._references else None, until)
        if response.is_success or response.status_code in GONE:
            del self._references[-1:]
        if response.status_code in GONE:  # "no lab runs" and "no such session" have the same status
            self._require_live_session()
        raise_for_error(response)

    def hand_over(self) -> None:
        """Leave the last reference to another process that shares the session, which takes it over."""
        del self._references[-1:]

    def take_over(self, reference: str) -> None:
        """Have a reference of another process that shares the session, as if `acquire` had given it."""
        self._references.append(reference)

    def destroy(self, force: bool = True) -> None:
        """Tear the lab down.

        Args:
            force: do so although there are references left.

        Raises:
            SessionEnded: the server ended the session.
            SessionClosed: this client has left the session.
            httpx.HTTPStatusError: the server refused, for example since the lab is in use and `force` is false.
        """
        self._require_session()
        parameters = {"force": str(force).lower()}
        response = self._server.call("DELETE", "/lab", params=parameters, headers=headers_of(self.session_id))
        self._raise_if_gone(response)
        raise_for_error(response)
        self._references.clear()

    def close(self) -> None:
        """End the session, in a few seconds. May be called again; trouble with the network is logged, not raised."""
        self._leaving.set()  # first: a heartbeat after the end would look like a lost session
        until = self._server.now() + CLOSE_TIMEOUT
        if self.session_id and not self._ended and self.lost_reason is None:
            self._server.end_session(self.session_id)
        self._disconnect(until)
        self.session_id = ""

    def detach(self) -> None:
        """Leave the session to the other processes that share it."""
        self._leaving.set()
        self._disconnect(self._server.now() + CLOSE_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _disconnect(self, until: float) -> None:
        self._ended = True
        if self._heartbeats.is_alive() and self._heartbeats is not threading.current_thread():
            self._heartbeats.join(max(until - self._server.now(), 1))
        if self._checks is not None:  # the end of the session ends its checks; any other is cut by the lines below
            self._checks.join(CHECK_GRACE)
        if not self._heartbeats.is_alive():  # else it still uses the connection, and ends with the process
            self._server.close()

    # Joining and waiting

    def _join(self, client: str, purpose: str | None, key: str) -> str:
        labels = {"client": client} | ({"purpose": purpose} if purpose else {})
        return self._server.join(labels, key, self._patient_until)

    def _wait_for_turn(self) -> None:
        held = 0  # the first answer comes at once, to tell the user what there is to wait for
        while True:
            began, known = self._server.now(), self._position
            status = self._poll(held)
            if status.status == "active":
                return
            self._keep_pace(began, status, moved=known != status.position)
            held = self._longest_hold()

    def _poll(self, held: int) -> SessionStatusResponseDto:
        path, headers = f"/session/{self.session_id}", headers_of(self.session_id)
        # a position that changed since the last answer is told at once
        params = {"wait": held, "position": self._position} if held and self._position else {"wait": held}
        try:
            response = self._server.call(
                "GET", path, until=self._patient_until, held=held, params=params, headers=headers
            )
        except httpx.TransportError as error:
            if self._server.now() < self._patient_until:
                raise
            raise TimeoutError(f"not active within {self.session_timeout:g} s: {error}") from error
        if response.status_code in RESTARTING and self._server.now() >= self._patient_until:
            raise TimeoutError(f"not active within {self.session_timeout:g} s: {detail_of(response)}")
        self._raise_if_gone(response)
        raise_for_error(response)
        status = parsed(response, SessionStatusResponseDto)
        self._report(status)
        return status

    def _report(self, status: SessionStatusResponseDto) -> None:
        if self._on_status is not None:
            self._on_status(status)
        if status.position == self._position:
            return
        self._position = status.position
        if self._on_progress is not None:
            self._on_progress(status.position, status.waiting_for)

    def _keep_pace(self, began: float, status: SessionStatusResponseDto, *, moved: bool) -> None:
        now, until = self._server.now(), self._patient_until
        if now >= until:
            behind = f" ({status.waiting_for})" if status.waiting_for else ""
            raise TimeoutError(
                f"not active within {self.session_timeout:g} s: position {status.position} in the queue{behind}"
            )
        if (
            not moved and began + POLL_INTERVAL > now
        ):  # an older server, or one that is about to restart, answers at once
            self._server.pause(min(began + POLL_INTERVAL, until) - now)

    def _longest_hold(self) -> int:
        left = self._patient_until - self._server.now()
        return max(math.floor(min(LONGEST_POLL, 0.8 * self.request_timeout, left)), 0)

    def _check_all(self, topologies: Sequence[Path | TopologyFiles]) -> None:
        """Have the server check topologies until they are all checked or it is the session's turn.

        The checks run in a thread of their own, so that the turn does not wait for a check that takes long.
        """
        if not topologies or self._poll(0).status == "active":
            return
        checked = threading.Event()
        arguments = topologies, checked
        self._checks = threading.Thread(target=self._run_checks, args=arguments, name="remote-lab-checks", daemon=True)
        self._checks.start()
        pace = 0.0
        while not checked.wait(pace):
            began = self._server.now()
            if self._poll(CHECK_POLL).status == "active" or began >= self._patient_until:
                return
            pace = max(began + POLL_INTERVAL - self._server.now(), 0)  # an older server does not hold its answer

    def _run_checks(self, topologies: Sequence[Path | TopologyFiles], checked: threading.Event) -> None:
        try:
            for topology in topologies:
                if self._leaving.is_set() or not self._check(topology):
                    return
        finally:
            checked.set()

    def _check(self, topology: Path | TopologyFiles) -> bool:
        """Ask the server about a topology; whether there is any use in another such question.

        A help, no duty: trouble shows when the lab is acquired.
        """
        try:
            files = topology if isinstance(topology, TopologyFiles) else TopologyFiles(topology)
            headers, until = headers_of(self.session_id), self._patient_until
            with upload_of(files) as upload:
                response = self._server.call(
                    "POST", "/topology/check", until=until, slow=True, quiet=True, headers=headers, **upload
                )
        except (httpx.TransportError, OSError, ValueError):
            return True
        except RuntimeError:  # httpx: the connection was closed meanwhile
            if not self.closed:
                raise
            return False
        if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            self.rejected[topology] = detail_of(response)
        return response.status_code not in _NO_MORE_CHECKS

    # Acquiring

    def _post_lab(self, topology: TopologyFiles, key: str, until: float, *, reuse: bool) -> httpx.Response:
        headers = headers_of(self.session_id, key)
        with upload_of(topology, reuse=str(reuse).lower()) as upload:
            while True:
                response = self._server.call("POST", "/lab", until=until, slow=True, headers=headers, **upload)
                if response.status_code != httpx.codes.LOCKED:
                    return response
                left = until - self._server.now()
                if left <= 0:
                    name, limit = topology.name, self.lab_acquisition_timeout
                    raise TimeoutError(f"no lab for {name} in {limit:g} s: {detail_of(response)}")
                self._server.pause(min(retry_after(response, BUSY_INTERVAL), left))

    # The life of the session

    @property
    def _beat_timeout(self) -> float:
        return min(self.request_timeout, max(self._heartbeat_interval, 1))

    def _keep_alive(self) -> None:
        while not self._leaving.wait(self._heartbeat_interval):
            try:
                headers = headers_of(self.session_id)
                response = self._server.try_once(
                    "POST", "/session/heartbeat", timeout=self._beat_timeout, headers=headers
                )
            except httpx.TransportError as error:
                _log.debug("heartbeat: %s", error)  # the next one tells
                continue
            if response.status_code in GONE and not self._leaving.is_set():
                self.lost_reason = detail_of(response)
                if self._on_lost is not None:
                    self._on_lost(self.lost_reason)
                return

    def _raise_if_gone(self, response: httpx.Response) -> None:
        if response.status_code in GONE:
            self.lost_reason = self.lost_reason or detail_of(response)
            self._require_session()

    def _require_live_session(self) -> None:
        path, headers = f"/session/{self.session_id}", headers_of(self.session_id)
        self._raise_if_gone(self._server.call("GET", path, headers=headers))

    def _require_session(self) -> None:
        if self.lost_reason is not None:
            raise SessionEnded(self.lost_reason)
        if self._leaving.is_set():
            raise SessionClosed


def default_label() -> str:
    """`user@host`, as far as this process knows them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without an entry in the password file
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
