"""The client of a run with `REMOTE_LAB_URL=local`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from neops_remote_lab.client.artifacts import unpack_artifacts
from neops_remote_lab.client.exceptions import SessionClosed
from neops_remote_lab.core.topology_files import PathName, TopologyFiles
from neops_remote_lab.models.lab import DeviceInfoDto
from neops_remote_lab.testing.local_labs import Labs, LocalLabFailed

if TYPE_CHECKING:
    from neops_remote_lab.client.devices import ExecResult


@dataclass(frozen=True)
class LocalPort:
    """A port of a device, in the place of a `Forward`: a context manager whose end closes nothing.

    Attributes:
        host: the device's management address.
        port: the port.
    """

    host: str
    port: int

    def close(self) -> None:
        """Nothing was opened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalLabClient:
    """What a run with `REMOTE_LAB_URL=local` has in the place of a `RemoteLabClient`, with the same methods.

    Attributes:
        base_url: `local`.
        session_id: a name of this client; empty once it is closed.
        rejected: always empty: nothing is waited for that a check could spare.
    """

    base_url = "local"

    def __init__(self, labs: Labs) -> None:
        self._labs = labs
        self._references: list[str] = []
        self._devices: list[DeviceInfoDto] = []
        self.session_id = f"local-{uuid.uuid4().hex[:8]}"
        self.rejected: dict[Path | TopologyFiles, str] = {}

    @property
    def closed(self) -> bool:
        """Whether the labs were left."""
        return not self.session_id

    @property
    def references(self) -> tuple[str, ...]:
        """The names of the references that were not yet released, oldest first."""
        return tuple(self._references)

    def wait_until_active(self) -> None:
        """Nothing to wait for: who uses the lab of this machine is told by `acquire`."""

    def acquire(
        self, topology: str | Path, reuse: bool = True, *, extra_files: Sequence[PathName] = ()
    ) -> list[DeviceInfoDto]:
        """Get the lab of a topology, started where it does not run; waits while another process uses this machine's.

        Args:
            topology: the topology file.
            reuse: share the lab when the same topology, with the same extra files, runs already.
            extra_files: files that the topology needs, as for `RemoteLabClient.acquire`.

        Returns:
            The lab's devices.

        Raises:
            What `LocalLabs.acquire` raises.
        """
        self._require_open()
        reference, self._devices = self._labs.acquire(TopologyFiles.of(topology, extra_files), reuse)
        self._references.append(reference)
        return self._devices

    def release(self, *, timeout: float | None = None) -> None:  # noqa: ARG002 - for servers that cannot be reached
        """Let go of what the last `acquire` gave; the lab is torn down when nobody holds it any more.

        Raises:
            LocalLabFailed: there is nothing to release, or something is left of the lab.
            SessionClosed: the labs were left.
        """
        self._require_open()
        self._labs.release(self._references.pop() if self._references else "")

    def hand_over(self) -> None:
        """Leave the last reference to another process of the run, which takes it over."""
        del self._references[-1:]

    def take_over(self, reference: str) -> None:
        """Have a reference of another process of the run, as if `acquire` had given it."""
        self._references.append(reference)

    def destroy(self, force: bool = True) -> None:
        """Tear the lab down.

        Args:
            force: do so although there are references left.

        Raises:
            LocalLabFailed: the lab is in use and `force` is false, or something is left of it.
            SessionClosed: the labs were left.
        """
        self._require_open()
        if self._references and not force:
            raise LocalLabFailed("the lab is in use: release it first")
        self._references.clear()
        self._labs.destroy()

    def exec(
        self, device: str | DeviceInfoDto, command: str | Sequence[str], *, stdin: bytes = b"", timeout: float = 60
    ) -> ExecResult:
        """Run a command in a device of the lab that runs.

        Args:
            device: the device, or its name.
            command: a string, which the device's shell runs, or a program with its arguments.
            stdin: what the command reads from its standard input.
            timeout: seconds after which the command is ended.

        Raises:
            ValueError: no program can be given such a command.
            SessionClosed: the labs were left.
            And what `LocalLabs.execute` raises.
        """
        from neops_remote_lab.client.devices import ExecResult  # noqa: PLC0415 - slow, with its HTTP client
        from neops_remote_lab.models.device import ExecRequestDto  # noqa: PLC0415

        self._require_open()
        wanted = ExecRequestDto(command=command if isinstance(command, str) else list(command), timeout=timeout)
        name = device if isinstance(device, str) else device.name
        return ExecResult(*self._labs.execute(name, wanted.words, stdin, timeout))

    def forward(self, device: str | DeviceInfoDto, port: int) -> LocalPort:
        """A port of a device. No other port leads to it, since this machine reaches its labs by itself.

        Args:
            device: the device, or its name, if this client has acquired its lab.
            port: its TCP port.

        Raises:
            ValueError: the port is no number from 1 to 65535.
            LookupError: there is no such device, or netlab knows no address of it.
            SessionClosed: the labs were left.
        """
        self._require_open()
        if not 0 < port < 1 << 16:
            raise ValueError(f"a TCP port is a number from 1 to 65535, not {port}")
        if isinstance(device, str):
            known = {other.name: other for other in self._devices}
            if device not in known:
                raise LookupError(f"the lab has no device {device!r}: it has {', '.join(sorted(known)) or 'none'}")
            device = known[device]
        management = device.raw.get("mgmt") or {}
        host = management.get("ipv4") or management.get("ipv6") or device.raw.get("ansible_host")
        if not host:
            raise LookupError(f"netlab knows no address of {device.name}")
        return LocalPort(str(host), port)

    def artifacts(self, directory: str | Path, *, timeout: float | None = None) -> Path:  # noqa: ARG002 - see `release`
        """Collect what would explain a failure of the lab that runs, or of one that did not start, as files.

        Args:
            directory: where to put them; made where it is missing.
            timeout: without meaning: `NEOPS_REMOTE_LAB_ARTIFACT_TIMEOUT` is the limit.

        Returns:
            A new directory `lab-ID` in it, which replaces one of the same name.

        Raises:
            LocalLabFailed: there is no such lab.
            SessionClosed: the labs were left.
            OSError: the files cannot be written.
        """
        self._require_open()
        return unpack_artifacts(self._labs.artifacts(), Path(directory))

    def close(self) -> None:
        """Leave the labs; they are torn down unless others of the run use them. May be called again."""
        self.session_id = ""
        self._labs.close()

    def detach(self) -> None:
        """The same: what other processes of the run use is not in this one."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if self.closed:
            raise SessionClosed
