"""Shares the labs of the controller with the workers of a pytest-xdist run. A lab outlives a worker that crashes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any

from neops_remote_lab.client.exceptions import SessionClosed
from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.testing.local_labs import Done, LocalLabs

if TYPE_CHECKING:
    from neops_remote_lab.models.lab import DeviceInfoDto


class LabSocket:
    """Handles the calls of the workers, each in its own thread, until it is closed.

    Args:
        labs: handles the calls.
        address: path of the Unix socket, in a directory that is accessible only to this user.
    """

    def __init__(self, labs: LocalLabs, address: str) -> None:
        self._labs = labs
        self._address = address
        self._listener = Listener(address, family="AF_UNIX")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="remote-lab-socket", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept no more calls. May be called repeatedly."""
        if not self._closing.is_set():
            self._closing.set()
            with suppress(OSError):
                Client(self._address).close()  # so that `accept` returns
            self._thread.join()
            self._listener.close()

    def _listen(self) -> None:
        while True:
            with suppress(OSError):  # the worker has disconnected
                connection = self._listener.accept()
                if self._closing.is_set():
                    connection.close()
                    return
                threading.Thread(target=self._answer, args=(connection,), name="remote-lab-call", daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with connection, suppress(EOFError, OSError):
            call, arguments = connection.recv()
            outcome: Any
            try:
                outcome = getattr(self._labs, call)(*arguments)
            except Exception as error:  # noqa: BLE001 - raised in the worker
                outcome = error
            try:
                connection.send(outcome)
            except OSError:
                if call == "acquire" and not isinstance(outcome, Exception):
                    self._labs.release(outcome[0])  # the worker has died


class LabsOfController:
    """The labs of the controller, as used by a worker.

    Args:
        address: path of the controller's socket.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def acquire(self, files: TopologyFiles, reuse: bool) -> tuple[str, list[DeviceInfoDto]]:
        """As `LocalLabs.acquire`."""
        found: tuple[str, list[DeviceInfoDto]] = self._call("acquire", files, reuse)
        return found

    def release(self, reference: str) -> None:
        """As `LocalLabs.release`."""
        self._call("release", reference)

    def destroy(self) -> None:
        """As `LocalLabs.destroy`."""
        self._call("destroy")

    def devices(self) -> list[DeviceInfoDto]:
        """As `LocalLabs.devices`."""
        found: list[DeviceInfoDto] = self._call("devices")
        return found

    def execute(self, device: str, words: Sequence[str], stdin: bytes, timeout: float) -> Done:
        """As `LocalLabs.execute`."""
        done: Done = self._call("execute", device, words, stdin, timeout)
        return done

    def artifacts(self) -> bytes:
        """As `LocalLabs.artifacts`."""
        archive: bytes = self._call("artifacts")
        return archive

    def close(self) -> None:
        """Does nothing, because the controller tears the labs down after the last worker has ended."""

    def _call(self, call: str, *arguments: object) -> Any:
        try:
            with Client(self._address) as connection:
                connection.send((call, arguments))
                outcome = connection.recv()
        except (OSError, EOFError):  # the run is ending
            raise SessionClosed from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
