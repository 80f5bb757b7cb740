"""Every setting of the server, read once from flags and environment."""

import argparse
import difflib
import os
import shlex
import socket
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_state_path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from neops_remote_lab.core import up_arguments
from neops_remote_lab.core.text import one_line

ENVIRONMENT_PREFIX = "NEOPS_REMOTE_LAB_"
OWN = frozenset({"NEOPS_REMOTE_LAB_LAB_ID"})
"""Variables that the server itself sets, for the commands that it starts."""
RUN_LOCK = Path("/run/lock")
NO_HOME = (
    "this user has no home directory: set HOME to a directory that the user can write, "
    "for netlab keeps its list of labs there"
)


def state_dir() -> Path:
    """Where the user's programs keep what they have to remember.

    Raises:
        ValueError: the user has no home directory, and no variable names one.
    """
    try:
        return user_state_path("neops-remote-lab")
    except RuntimeError:
        raise ValueError(NO_HOME) from None


def shared_lock_dir() -> Path:
    """A directory in which every user can create files, and which no user owns who could remove those of others.

    /run/lock, which no clean-up sweeps, or the temporary one.
    """
    shared = RUN_LOCK.is_dir() and RUN_LOCK.stat().st_mode & stat.S_IWOTH
    return RUN_LOCK if shared else Path(tempfile.gettempdir())


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _known_to_netlab_up(arguments: tuple[str, ...]) -> tuple[str, ...]:
    up_arguments.split(arguments)
    return arguments


Arguments = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: shlex.split(value) if isinstance(value, str) else value),
    AfterValidator(_known_to_netlab_up),
]


class Settings(BaseModel):
    """The server's configuration. A field is a flag `--like-this` and a variable `NEOPS_REMOTE_LAB_LIKE_THIS`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("0.0.0.0", description="address to listen on")  # noqa: S104 - other machines are the users
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one and logs it")
    http_parser: Literal["auto", "h11", "httptools"] = Field(
        "auto", description="which parser reads requests; auto: httptools where it is installed"
    )
    send_timeout: PositiveSeconds = Field(
        60, description="seconds after which a client that does not read its answers is disconnected"
    )
    debug: bool = Field(False, description="log everything")
    log_level: Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"] = Field("INFO", description="log level")
    log_config: Path | None = Field(
        None, description="logging configuration: .ini, .json or .yaml, as uvicorn takes it"
    )

    log_format: Literal["text", "json"] = Field("text", description="text, or one JSON object a line")
    umask: str = Field(
        "077",
        pattern="^0?0[0-7]{2}$",
        description="permissions that other users do not get on the database and the work directory, in octal: "
        "027 lets the group read them",
    )

    database: str = Field(
        default_factory=lambda: f"sqlite+aiosqlite:///{state_dir() / 'remote-lab.sqlite3'}",
        description="SQLAlchemy URL of the SQLite database (default: remote-lab.sqlite3 in the state directory)",
    )
    synchronous: Literal["FULL", "NORMAL", "EXTRA"] = Field(
        "FULL", description="SQLite's level: FULL survives a power loss too, NORMAL the end of the process alone"
    )
    busy_timeout: Seconds = Field(5, description="seconds to wait for a database that another program has locked")
    sql_poll: PositiveSeconds = Field(0.5, description="seconds between two looks for changes made with plain SQL")
    wal_limit: int = Field(
        8 << 20, ge=1 << 20, description="largest write-ahead log of the database, in bytes, without a warning"
    )
    history_days: Seconds = Field(30, description="days for which ended sessions and labs are kept")

    lab_host: str = Field(
        default_factory=socket.gethostname, description="this host's name in the database (default: its host name)"
    )
    work_dir: Annotated[Path, AfterValidator(Path.absolute)] = Field(
        default_factory=lambda: state_dir() / "labs",
        description="directory in which each lab gets a work directory (default: labs in the state directory)",
    )
    lock_dir: Annotated[Path, AfterValidator(Path.absolute)] = Field(
        default_factory=shared_lock_dir,
        description="directory of the host's lock files: the same for every user of the host",
    )
    on_exit: Literal["teardown", "keep"] = Field("teardown", description="what becomes of the lab when the server ends")
    exit_timeout: PositiveSeconds = Field(120, description="seconds that a graceful exit may take, teardown included")

    waiting_timeout: PositiveSeconds = Field(
        120, description="seconds without a call of its client until a waiting session is stale, and ends"
    )
    active_timeout: PositiveSeconds = Field(
        120, description="seconds without a call of its client until the active session is stale, and ends"
    )
    max_hold: Seconds = Field(0, description="seconds for which a session may be active; 0: without limit")
    max_wait: PositiveSeconds = Field(60, description="longest seconds that ?wait= holds an answer")
    last_seen_write: PositiveSeconds = Field(
        10, description="seconds between two writes of when sessions were last seen"
    )
    retry_after: int = Field(2, ge=1, description="seconds in Retry-After")

    netlab: str = Field("netlab", description="the netlab command")
    netlab_up_args: Arguments = Field(
        (), description="more arguments for `netlab up`, in one string; what changes topologies counts for checks too"
    )
    preload: bool = Field(True, description="keep one netlab loaded, so that the next lab starts sooner")
    docker: str = Field("docker", description="the Docker command, asked what is left of a lab")
    host_root: Path = Field(
        Path("/"), description="directory in which the lab host's etc, run and sys lie, for a server in a container"
    )
    containers: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="whether labs run in containers, so that GET /readyz asks for Docker and containerlab; "
        "auto: where one of them is installed, or --docker names one",
    )
    ready_cache: Seconds = Field(5, description="seconds for which GET /readyz repeats what it has found on the host")
    up_timeout: PositiveSeconds = Field(1800, description="seconds that `netlab up` may take")
    down_timeout: PositiveSeconds = Field(600, description="seconds that `netlab down` may take")
    command_timeout: PositiveSeconds = Field(60, description="seconds that any other command may take")
    kill_grace: Seconds = Field(5, description="seconds between the polite and the final signal to a command")
    teardown_retries: int = Field(2, ge=0, description="further attempts at a teardown that leaves something behind")
    quarantine_retry: PositiveSeconds = Field(60, description="seconds between two sweeps of a quarantined host")
    lab_threads: int = Field(8, ge=2, description="threads for netlab, files and locks")

    upload_timeout: PositiveSeconds = Field(60, description="seconds without a byte after which an upload is given up")
    max_topology_bytes: int = Field(1 << 20, ge=1, description="largest topology file, in bytes")
    max_extra_bytes: int = Field(64 << 20, ge=0, description="largest sum of the extra files, in bytes")
    max_extra_files: int = Field(200, ge=0, description="most extra files")
    max_yaml_nodes: int = Field(50_000, ge=1, description="most YAML nodes of a topology, aliases expanded")
    max_log_bytes: int = Field(
        32 << 20,
        ge=4,
        description="most of netlab's output that is kept of a lab, in bytes: its begin and its end",
    )
    failed_log_days: Seconds = Field(7, description="days for which the log of a lab that did not start is kept")
    max_failed_logs: int = Field(50, ge=1, description="most logs of labs that did not start that are kept")
    max_create_bytes: int = Field(2 << 30, ge=1 << 20, description="most memory for checking a topology, in bytes")
    create_timeout: PositiveSeconds = Field(120, description="seconds that checking a topology may take")
    create_niceness: int = Field(
        10,
        ge=0,
        le=19,
        description="how much checks, and the look at a starting lab's devices, yield to others",
    )
    max_prepared: int = Field(8, ge=0, description="checked topologies that are kept prepared for each waiting session")
    max_log_readers: int = Field(64, ge=1, description="most readers of logs at the same time")
    max_session_log_readers: int = Field(16, ge=1, description="most of them for one session")
    log_backlog_bytes: int = Field(
        8 << 20,
        ge=1,
        description="how much of a log's end is shown, and how far a reader of its stream may fall behind, in bytes",
    )
    acquire_poll: PositiveSeconds = Field(1, description="seconds between two attempts of a blocking local acquire")


def server_url(environment: Mapping[str, str] = os.environ) -> str:
    """The server that sub-commands talk to: that of the clients, else the one of this host."""
    port = environment.get(variable("port")) or Settings.model_fields["port"].default
    return environment.get("REMOTE_LAB_URL") or f"http://127.0.0.1:{port}"


def flag(field: str) -> str:
    """The command-line flag of a field."""
    return "--" + field.replace("_", "-")


def variable(field: str) -> str:
    """The environment variable of a field."""
    return ENVIRONMENT_PREFIX + field.upper()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser one flag for each setting. Absent flags leave no attribute behind."""
    group = parser.add_argument_group("settings")
    for name, field in Settings.model_fields.items():
        shown = "" if field.is_required() or field.default_factory or field.default in (None, ()) else field.default
        text = f"{field.description}{f' (default: {shown})' if str(shown) else ''}".replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(flag(name), metavar=name.upper(), default=argparse.SUPPRESS, help=text)


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from flags, then from the environment, then from the defaults.

    Raises:
        ValueError: a value is wrong, or a variable names no setting; the message names the flag or the variable.
    """
    environment = os.environ if environment is None else environment
    _refuse_unknown(environment)
    given = {name: environment[variable(name)] for name in Settings.model_fields if environment.get(variable(name))}
    chosen = {name: value for name, value in flags.items() if name in Settings.model_fields}
    try:
        return Settings.model_validate({**given, **chosen})
    except ValidationError as error:
        raise ValueError(_explain(error, chosen)) from None


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    """A mistyped variable would otherwise count as not set, for example on a port that nobody asked for."""
    known = [variable(name) for name in Settings.model_fields]
    unknown = [name for name in environment if name.startswith(ENVIRONMENT_PREFIX) and name not in {*known, *OWN}]
    problems = []
    for name in sorted(unknown):
        nearest = difflib.get_close_matches(name, known, 1)
        meant = f": {nearest[0]} may be meant" if nearest else ""
        problems.append(f"the environment variable {one_line(name)} is no setting{meant}")
    if problems:
        raise ValueError("; ".join(problems))


def _explain(error: ValidationError, flags: Mapping[str, Any]) -> str:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0])
        source = flag(name) if name in flags else variable(name)
        lines.append(f"{source}: {problem['msg']}, not {problem['input']!r}")
    return "; ".join(lines)
