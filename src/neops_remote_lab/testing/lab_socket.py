"""The labs of one process of a pytest-xdist run, for its other processes: a worker that dies takes no lab along."""

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
    """Answers the calls of the workers, each in a thread of its own, until it is closed.

    Args:
        labs: what the workers use.
        address: the path of a socket, in a directory that nobody but this user can enter.
    """

    def __init__(self, labs: LocalLabs, address: str) -> None:
        self._labs = labs
        self._address = address
        self._listener = Listener(address, family="AF_UNIX")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="remote-lab-socket", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more calls. May be called again."""
        if not self._closing.is_set():
            self._closing.set()
            with suppress(OSError):
                Client(self._address).close()  # so that `accept` returns
            self._thread.join()
            self._listener.close()

    def _listen(self) -> None:
        while True:
            with suppress(OSError):  # a worker that has gone again
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
            except Exception as error:  # noqa: BLE001 - it is for the worker to handle
                outcome = error
            try:
                connection.send(outcome)
            except OSError:
                if call == "acquire" and not isinstance(outcome, Exception):
                    self._labs.release(outcome[0])  # the worker has died meanwhile


class LabsOfController:
    """The labs of the controller, for a worker.

    Args:
        address: the path of the controller's socket.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def acquire(self, files: TopologyFiles, reuse: bool) -> tuple[str, list[DeviceInfoDto]]:
        """As `LocalLabs.acquire`."""
        found: tuple[str, list[DeviceInfoDto]] = self._ask("acquire", files, reuse)
        return found

    def release(self, reference: str) -> None:
        """As `LocalLabs.release`."""
        self._ask("release", reference)

    def destroy(self) -> None:
        """As `LocalLabs.destroy`."""
        self._ask("destroy")

    def execute(self, device: str, words: Sequence[str], stdin: bytes, timeout: float) -> Done:
        """As `LocalLabs.execute`."""
        done: Done = self._ask("execute", device, words, stdin, timeout)
        return done

    def artifacts(self) -> bytes:
        """As `LocalLabs.artifacts`."""
        archive: bytes = self._ask("artifacts")
        return archive

    def close(self) -> None:
        """Nothing to do: the controller tears its labs down when all workers have left."""

    def _ask(self, call: str, *arguments: object) -> Any:
        try:
            with Client(self._address) as connection:
                connection.send((call, arguments))
                outcome = connection.recv()
        except (OSError, EOFError):  # the run ends
            raise SessionClosed from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
