"""Settings of the lab host: netlab, its provider and its files."""

import shlex
import socket
import stat
import tempfile
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from neops_remote_lab.core.home import state_dir
from neops_remote_lab.core.settings import ComputedDefault, PositiveSeconds, Seconds, SettingsGroup
from neops_remote_lab.netlab import up_arguments

RUN_LOCK: Final = Path("/run/lock")
MAX_SLOTS: Final = 100
"""netlab's multilab plugin has 200 lab numbers. Prepared labs of waiting sessions need numbers too."""
LAB_NETWORK_BITS: Final = 16


def shared_lock_dir() -> Path:
    """The default directory for lock files, in which every user may create files.

    /run/lock, because no job cleans it up, or the temporary directory if users cannot write there.
    """
    shared = RUN_LOCK.is_dir() and RUN_LOCK.stat().st_mode & stat.S_IWOTH
    return RUN_LOCK if shared else Path(tempfile.gettempdir())


def _known_to_netlab_up(arguments: tuple[str, ...]) -> tuple[str, ...]:
    up_arguments.split(arguments)
    return arguments


Arguments = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: shlex.split(value) if isinstance(value, str) else value),
    AfterValidator(_known_to_netlab_up),
]


def _with_room_for_labs(network: IPv4Network) -> IPv4Network:
    if network.prefixlen != LAB_NETWORK_BITS:
        raise ValueError(f"it must be a /{LAB_NETWORK_BITS}: the lab with number n gets the n-th /24 of it")
    return network


LabNetwork = Annotated[IPv4Network, AfterValidator(_with_room_for_labs)]
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]


class NetlabSettings(SettingsGroup, title="Lab host"):
    """Commands, directories and limits of this host."""

    lab_host: Annotated[str, ComputedDefault("the machine's host name")] = Field(
        default_factory=socket.gethostname, description="this host's name in the database"
    )
    slots: int = Field(default=1, ge=1, le=MAX_SLOTS, description="maximum number of labs that run at the same time")
    lab_network: LabNetwork = Field(
        default=IPv4Network("10.199.0.0/16"),
        description="network of the labs' management addresses, used only with more than one slot: "
        "a /16 that nothing else on the host uses",
    )
    prestart: bool = Field(
        default=False,
        description="start the lab of the next session while it waits, if it has sent a topology for checking and the "
        "memory is free",
    )
    work_dir: Annotated[AbsolutePath, ComputedDefault("`labs` in the state directory")] = Field(
        default_factory=lambda: state_dir() / "labs",
        description="directory in which each lab gets a work directory",
    )
    lock_dir: Annotated[
        AbsolutePath,
        ComputedDefault("`/run/lock`, or the temporary directory where not all users can write there"),
    ] = Field(
        default_factory=shared_lock_dir,
        description="directory of the host's lock files: the same for every user of the host",
    )
    netlab: str = Field(default="netlab", description="the netlab command")
    netlab_up_args: Arguments = Field(
        default=(),
        description="more arguments for `netlab up`, in one string; those that change the topology apply to checks too",
    )
    preload: bool = Field(default=True, description="keep one netlab loaded, so that the next lab starts sooner")
    docker: str = Field(
        default="docker", description="the Docker command, used to find and remove the containers of a lab"
    )
    host_root: Path = Field(
        default=Path("/"),
        description="directory that contains the lab host's etc, run and sys, for a server in a container",
    )
    containers: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="whether labs run in containers, so that GET /readyz requires Docker and containerlab; "
        "auto: if one of them is installed, or --docker is given",
    )
    up_timeout: PositiveSeconds = Field(default=1800, description="seconds that `netlab up` may take")
    down_timeout: PositiveSeconds = Field(default=600, description="seconds that `netlab down` may take")
    command_timeout: PositiveSeconds = Field(default=60, description="seconds that any other command may take")
    kill_grace: Seconds = Field(default=5, description="seconds between SIGTERM and SIGKILL to a command")
    teardown_retries: int = Field(
        default=2, ge=0, description="further attempts at a teardown that leaves something behind"
    )
    create_timeout: PositiveSeconds = Field(default=120, description="seconds that checking a topology may take")
    create_niceness: int = Field(
        default=10,
        ge=0,
        le=19,
        description="niceness of topology checks, and of reading the devices of a starting lab",
    )
    max_create_bytes: int = Field(
        default=2 << 30, ge=1 << 20, description="maximum memory for checking a topology, in bytes"
    )
    max_log_bytes: int = Field(
        default=32 << 20,
        ge=4,
        description="maximum size of the log of a lab, in bytes; its beginning and its end are kept",
    )
    failed_log_days: Seconds = Field(
        default=7, description="days for which the log of a lab that did not start is kept"
    )
    max_failed_logs: int = Field(default=50, ge=1, description="maximum number of kept logs of labs that did not start")
    artifact_timeout: PositiveSeconds = Field(
        default=60, description="seconds that the artifacts of a lab may take; what is missing then is left out"
    )
    max_artifact_bytes: int = Field(
        default=64 << 20, ge=1, description="most that an archive of artifacts holds, in bytes before compression"
    )
    max_artifact_log_bytes: int = Field(
        default=2 << 20, ge=4, description="most of each log and of each configuration in it, in bytes"
    )
    acquire_poll: PositiveSeconds = Field(
        default=1, description="seconds between two attempts of a blocking local acquire"
    )

    @property
    def several_labs(self) -> bool:
        """Whether several labs can run on this host at the same time, so that they must be isolated."""
        return self.slots > 1 or self.prestart
