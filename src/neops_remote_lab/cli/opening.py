"""Opens a session and starts a lab, for the commands `up` and `run`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from neops_remote_lab.cli.command import ExitStatus, refuse
from neops_remote_lab.cli.lab_sessions import read_settings
from neops_remote_lab.cli.progress import progress_on_standard_error
from neops_remote_lab.cli.settings import ClientSettings, server_url
from neops_remote_lab.client.exceptions import InvalidSetting
from neops_remote_lab.client.lab_client import RemoteLabClient
from neops_remote_lab.client.progress import Progress
from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.models.lab import DeviceInfoDto


@dataclass(frozen=True)
class LabOrder:
    """The lab that a command needs, and its server.

    Attributes:
        url: the server's address, including credentials.
        topology: the topology file and its extra files.
        settings: timeouts.
    """

    url: str = field(repr=False)
    topology: TopologyFiles
    settings: ClientSettings

    @classmethod
    def read(cls, options: argparse.Namespace) -> Self:
        """Read flags and environment.

        Raises:
            InvalidSetting: a file is missing, or a value is wrong.
        """
        try:
            topology = TopologyFiles.of(options.topology, options.file)
            topology.path.open("rb").close()
            topology.found()
        except OSError as error:  # our own exceptions have a message instead of strerror
            reason = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
            raise InvalidSetting(reason) from None
        except ValueError as error:
            raise InvalidSetting(str(error)) from None
        flags = ("session_timeout", "acquisition_timeout", "access")
        chosen = {name: value for name in flags if (value := getattr(options, name, None)) is not None}
        return cls(options.url or server_url(), topology, read_settings().model_copy(update=chosen))


@dataclass(frozen=True)
class Opening:
    """A session that has become active, and the progress of its command."""

    client: RemoteLabClient
    order: LabOrder
    progress: Progress

    def bring_up(self) -> list[DeviceInfoDto]:
        """Start the lab and return its devices. Raises as `RemoteLabClient.acquire`."""
        topology = self.order.topology
        self.progress.note(f"starting the lab of {topology.name}")
        with self.progress.starting(topology.name):
            return self.client.acquire(topology.path, extra_files=topology.extra_files)


def queue_for(order: LabOrder, purpose: str, on_lost: Callable[[str], None] | None = None) -> Opening:
    """Wait in the queue until the session is active, and show the progress on standard error.

    Exits if netlab rejects the topology, which may be known before the session is active.

    Raises:
        InvalidSetting: the address or the credentials are wrong.
        The other exceptions of `RemoteLabClient`.
    """
    progress, settings = progress_on_standard_error(), order.settings
    try:
        client = RemoteLabClient(
            order.url,
            settings.request_timeout,
            settings.session_timeout,
            settings.acquisition_timeout,
            purpose=purpose,
            topologies=[order.topology],
            on_status=progress.queued,
            on_lost=on_lost,
            on_phase=progress.phase,
            unreachable_timeout=settings.unreachable_timeout,
            on_trouble=progress.note,
        )
    finally:
        progress.idle()
    if client.rejected:
        client.close()
        refuse(f"{order.topology.name}: {next(iter(client.rejected.values()))}", ExitStatus.NO_LAB)
    return Opening(client, order, progress)
