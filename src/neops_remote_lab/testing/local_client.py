"""The client of a run with `REMOTE_LAB_URL=local`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from neops_remote_lab.client.addresses import address_of
from neops_remote_lab.client.artifacts import unpack_artifacts
from neops_remote_lab.client.exceptions import SessionClosed
from neops_remote_lab.core.ports import require_port
from neops_remote_lab.core.topology_files import PathName, TopologyFiles
from neops_remote_lab.models.lab import DeviceInfoDto, DevicesDto
from neops_remote_lab.testing.local_labs import Labs, LocalLabFailed

if TYPE_CHECKING:
    from neops_remote_lab.client.devices import ExecResult


@dataclass(frozen=True)
class LocalPort:
    """A port of a device, used instead of a `Forward`. Leaving the context closes nothing.

    Attributes:
        host: management address of the device.
        port: the port.
    """

    host: str
    port: int

    def close(self) -> None:
        """Does nothing, because nothing was opened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalLabClient:
    """The client of a run with `REMOTE_LAB_URL=local`, with the methods of `RemoteLabClient`.

    Attributes:
        base_url: `local`.
        session_id: a name for this client; empty after it was closed.
        rejected: always empty. Topologies are not checked ahead, because there is no queue to wait in.
    """

    base_url = "local"

    def __init__(self, labs: Labs) -> None:
        self._labs = labs
        self._references: list[str] = []
        self.session_id = f"local-{uuid.uuid4().hex[:8]}"
        self.rejected: dict[Path | TopologyFiles, str] = {}

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return not self.session_id

    @property
    def references(self) -> tuple[str, ...]:
        """The names of the held references, oldest first."""
        return tuple(self._references)

    def wait_until_active(self) -> None:
        """Does nothing. `acquire` waits while another process uses the lab of this machine."""

    def acquire(
        self, topology: str | Path, reuse: bool = True, *, extra_files: Sequence[PathName] = ()
    ) -> list[DeviceInfoDto]:
        """Acquire a lab, and start it if necessary. Waits while another process uses the lab of this machine.

        Args:
            topology: the topology file.
            reuse: share a running lab of the same topology with the same extra files.
            extra_files: files that the topology needs, as for `RemoteLabClient.acquire`.

        Returns:
            The devices of the lab.

        Raises:
            SessionClosed: the client was closed.
            Exception: as `LocalLabs.acquire`.
        """
        self._require_open()
        reference, devices = self._labs.acquire(TopologyFiles.of(topology, extra_files), reuse)
        self._references.append(reference)
        return devices

    def release(self, *, timeout: float | None = None) -> None:  # noqa: ARG002 - for unreachable servers
        """Release the reference of the last `acquire`. The lab is torn down when no reference is left.

        Raises:
            LocalLabFailed: there is nothing to release, or the lab could not be removed.
            SessionClosed: the client was closed.
        """
        self._require_open()
        self._labs.release(self._references.pop() if self._references else "")

    def hand_over(self) -> None:
        """Drop the last reference without a release, because another process of the run takes it over."""
        del self._references[-1:]

    def take_over(self, reference: str) -> None:
        """Take over a reference of another process of the run, as if this client had acquired it."""
        self._references.append(reference)

    def destroy(self, force: bool = True) -> None:
        """Tear the lab down.

        Args:
            force: tear it down even if this client holds references.

        Raises:
            LocalLabFailed: the lab is in use and `force` is false, or the lab could not be removed.
            SessionClosed: the client was closed.
        """
        self._require_open()
        if self._references and not force:
            raise LocalLabFailed("the lab is in use: release it first")
        self._references.clear()
        self._labs.destroy()

    def devices(self) -> list[DeviceInfoDto]:
        """The devices of the running lab.

        Raises:
            LocalLabFailed: no lab is running.
            SessionClosed: the client was closed.
        """
        self._require_open()
        return self._labs.devices()

    def exec(
        self, device: str | DeviceInfoDto, command: str | Sequence[str], *, stdin: bytes = b"", timeout: float = 60
    ) -> ExecResult:
        """Run a command in a device of the running lab.

        Args:
            device: the device or its name.
            command: a string for the device's shell, or a program with its arguments.
            stdin: standard input of the command.
            timeout: seconds after which the command is terminated.

        Raises:
            ValueError: the command is empty or contains a null character.
            SessionClosed: the client was closed.
            Exception: as `LocalLabs.execute`.
        """
        from neops_remote_lab.client.devices import ExecResult  # noqa: PLC0415 - slow, with its HTTP client
        from neops_remote_lab.models.device import ExecRequestDto  # noqa: PLC0415

        self._require_open()
        wanted = ExecRequestDto(command=command if isinstance(command, str) else list(command), timeout=timeout)
        name = device if isinstance(device, str) else device.name
        return ExecResult(*self._labs.execute(name, wanted.words, stdin, timeout))

    def forward(self, device: str | DeviceInfoDto, port: int) -> LocalPort:
        """The address of a TCP port of a device. Nothing is forwarded, because this machine has routes to its labs.

        Args:
            device: the device or its name.
            port: the port.

        Raises:
            ValueError: the port is not between 1 and 65535.
            LookupError: the lab has no such device, or netlab has no address for it.
            LocalLabFailed: no lab is running.
            SessionClosed: the client was closed.
        """
        self._require_open()
        require_port(port)
        if isinstance(device, str):
            device = DevicesDto(self.devices()).named(device)
        host = address_of(device)
        if not host:
            raise LookupError(f"netlab has no address for {device.name}")
        return LocalPort(host, port)

    def artifacts(self, directory: str | Path, *, timeout: float | None = None) -> Path:  # noqa: ARG002 - see `release`
        """Write the artifacts of the running lab, or of the last lab that failed to start, to a directory.

        Args:
            directory: parent directory; created if missing.
            timeout: ignored; `NEOPS_REMOTE_LAB_ARTIFACT_TIMEOUT` is the limit.

        Returns:
            The new directory `lab-ID` below it. An existing one of that name is replaced.

        Raises:
            LocalLabFailed: there is no such lab.
            SessionClosed: the client was closed.
            OSError: the files cannot be written.
        """
        self._require_open()
        return unpack_artifacts(self._labs.artifacts(), Path(directory))

    def close(self) -> None:
        """Close the client. Its lab is torn down unless other processes share it. May be called repeatedly."""
        self.session_id = ""
        self._labs.close()

    def detach(self) -> None:
        """As `close`, because this process holds nothing that other processes of the run use."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if self.closed:
            raise SessionClosed
