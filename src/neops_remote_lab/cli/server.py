"""Starts the server: locks, directories, database, uvicorn."""

import asyncio
import errno
import gc
import getpass
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

import psutil
import uvicorn
from filelock import FileLock, Timeout
from starlette.applications import Starlette
from yaml import YAMLError

from neops_remote_lab import __version__
from neops_remote_lab.api import framing, websocket_protocol
from neops_remote_lab.api.app import create_app
from neops_remote_lab.api.responses import NEVER_SNIFFED
from neops_remote_lab.api.settings import ServiceSettings
from neops_remote_lab.cli.command import PROGRAM, refuse
from neops_remote_lab.cli.settings import ServerSettings
from neops_remote_lab.core import file_modes, log_format
from neops_remote_lab.core.file_modes import CONTENT_UMASK
from neops_remote_lab.core.home import NO_HOME
from neops_remote_lab.core.host_locks import HostLock, read_note
from neops_remote_lab.core.text import one_line
from neops_remote_lab.netlab import ownership, tools
from neops_remote_lab.store.protocol import DatabaseError
from neops_remote_lab.store.sql import urls
from neops_remote_lab.store.sql.migrate import migrate

logger = logging.getLogger(__name__)

SERVER_LOCK: Final = "server"
PRIVATE: Final = 0o600
"""Permissions of a lock file that only this user's servers share."""
CONNECTIONS_TIMEOUT: Final = 5
"""Seconds that uvicorn waits for open connections at shutdown; all waiting calls have been answered by then."""


class Server(uvicorn.Server):
    """uvicorn server that drains on the first signal, and exits at once on the second one or after a timeout."""

    def __init__(self, config: uvicorn.Config, exit_timeout: float) -> None:
        """`exit_timeout`: seconds that the shutdown may take after the first signal."""
        super().__init__(config)
        self._exit_timeout = exit_timeout

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Handle a signal. uvicorn waits for open requests before the lifespan ends, so drain waiting calls now."""
        if self.should_exit:
            logger.warning("a second signal: the server ends at once")
            os._exit(128 + sig)
        self.should_exit = True
        # A thread that waits for a hanging netlab would otherwise keep the process alive.
        final = threading.Timer(self._exit_timeout, self._give_up)
        final.daemon = True
        final.start()
        app = self.config.app
        if isinstance(app, Starlette) and hasattr(app.state, "services"):
            # Not in the signal handler, which may interrupt any code.
            asyncio.get_running_loop().call_soon_threadsafe(app.state.services.drain)

    def _give_up(self) -> None:
        seconds = self._exit_timeout
        logger.error("the lab is not down after %g s (--exit-timeout): the next server removes it", seconds)
        os._exit(1)


def run(server: ServerSettings, service: ServiceSettings) -> None:
    """Run the only server of this host until a signal ends it. Exits with a message if that is not possible."""
    require_home()
    lock = hold_host(service.netlab.lock_dir, _identity(server), server.lock_timeout)
    try:
        require_free_port(server.host, server.port)
        work_dir = hold_work_dir(service.netlab.work_dir, _identity(server), server.lock_timeout)
        try:
            if problem := tools.refusal(service.netlab):
                refuse(problem)
            serve(server, service)
        finally:
            work_dir.release()
    finally:
        lock.remove_note()
        lock.release()


def require_home() -> None:
    """Exit with a message if there is no home directory, in which netlab keeps its list of labs."""
    try:
        home = Path.home()
    except RuntimeError:
        refuse(NO_HOME)
    if not home.is_absolute():
        refuse(f"HOME must be an absolute path, not {str(home)!r}")


def require_free_port(host: str, port: int) -> None:
    """Exit with a message if the server could not listen. Called before the database or a lab is touched."""
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        refuse(f"it cannot listen on {host}:{port}: {error.strerror}. Name another address with --host")
    problems = [problem for address in addresses if (problem := _bind_error(*address))]
    # A name may resolve to an address that this host lacks (::1 without IPv6); one usable address is enough.
    serious = [problem for problem in problems if problem.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}]
    if serious or len(problems) == len(addresses):
        problem = (serious or problems)[0]
        who = f" by {_listener(port)}" if problem.errno == errno.EADDRINUSE else ""
        reason = (problem.strerror or str(problem)).lower()
        refuse(f"it cannot listen on {host}:{port}: {reason}{who}. Name another address with --host or --port")


def _bind_error(family: int, kind: int, protocol: int, _: str, address: Any) -> OSError | None:
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn's socket has it
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None


def _listener(port: int) -> str:
    """The process that listens on a TCP port, if this user may see it."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f"pid {connection.pid} ({one_line(psutil.Process(connection.pid).name())})"
    return "another program"


def hold_host(lock_dir: Path, identity: Mapping[str, Any], timeout: float) -> HostLock:
    """Acquire the lock of the host's only server, or exit with a message that names the other server."""
    try:
        lock = HostLock(lock_dir, SERVER_LOCK)
        lock.acquire(timeout)
    except Timeout as busy:
        refuse(f"another server runs on this host: {_holder(busy.lock_file)}. Stop that one first")
    except OSError as error:
        reason = error.strerror or error
        refuse(f"no lock can be taken in {lock_dir}: {reason}. Name another directory with --lock-dir")
    try:
        # In a separate file, which only the holder of the lock writes.
        lock.write_note(json.dumps(identity))
    except OSError as error:
        lock.remove_note()  # an old note would name the wrong server
        sys.stderr.write(
            f"{PROGRAM}: no note can be written in {lock_dir}: {error.strerror or error}. "
            "The lock works without it, but a second server cannot report who runs this one\n"
        )
    return lock


def hold_work_dir(work_dir: Path, identity: Mapping[str, Any], timeout: float) -> FileLock:
    """Acquire the lock of the work directory's only server, or exit with a message."""
    try:
        return ownership.hold_server_lock(work_dir, identity, timeout)
    except BlockingIOError as error:
        refuse(f"{error}. Stop that one first, or name another directory with --work-dir")
    except OSError as error:
        if error.filename is None:  # raised by us, with a complete message
            refuse(str(error.strerror))
        refuse(f"the work directory {work_dir} cannot be created: {error.strerror}. Name another with --work-dir")


def hold_database(file: Path, timeout: float) -> FileLock:
    """Acquire the lock of the only server that may use a SQLite database, or exit with a message."""
    lock = FileLock(f"{file}{file_modes.LOCK_SUFFIX}", mode=PRIVATE)
    try:
        lock.acquire(timeout)
    except Timeout:
        refuse(
            f"another server uses the database {file}. Several servers need PostgreSQL: name it with --database, or "
            "name another file"
        )
    return lock


def _identity(settings: ServerSettings) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "user": user_name(),
        "host": socket.gethostname(),
        "address": f"{settings.host}:{settings.port}",
        "version": __version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def user_name() -> str:
    """The name of this process's user, or the uid if the user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _holder(lock_file: str) -> str:
    try:
        known = json.loads(read_note(lock_file) or "")
        holder = "pid {pid} of user {user} on {host}, at {address}, version {version}, started {started}".format(
            **known
        )
    except (ValueError, KeyError, TypeError):
        return f"its note beside {lock_file} cannot be read"
    return one_line(holder)


def serve(settings: ServerSettings, service: ServiceSettings) -> None:
    """Migrate the database and serve until a signal ends the process."""
    os.umask(CONTENT_UMASK)
    level = "DEBUG" if settings.debug else settings.log_level
    log_format.configure(level, settings.log_format)
    logging.getLogger("uvicorn.access").addFilter(log_format.ShortIds())
    logging.getLogger(websocket_protocol.LOGGER).setLevel(logging.INFO if settings.debug else logging.WARNING)
    try:
        database = urls.parse(service.store.database)
    except ValueError as error:
        refuse(str(error))
    logger.info(
        "neops-remote-lab %s, pid %d: %s:%d, database %s, work directory %s, lock directory %s",
        *(__version__, os.getpid(), settings.host, settings.port),
        *(urls.shown(database), service.netlab.work_dir, service.netlab.lock_dir),
    )
    if service.queue.advertise is None:
        address = {"advertise": f"http://{socket.gethostname()}:{settings.port}"}
        service = service.model_copy(update={"queue": service.queue.model_copy(update=address)})
    umask = int(settings.umask, 8)
    try:
        file_modes.limit_directory(service.netlab.work_dir, umask)
        if file := urls.sqlite_file(database):
            file_modes.make_database(file)
            held = hold_database(file, settings.lock_timeout)
        migrate(service.store.database)
        if file:
            file_modes.limit_database(file, umask)
    except RuntimeError as error:
        refuse(str(error))
    except (DatabaseError, OSError) as error:
        refuse(f"the database {urls.shown(database)} cannot be used: {error}. Mend it, or name another with --database")
    server = Server(_uvicorn_config(settings, service, level), settings.exit_timeout)
    gc.collect()
    gc.freeze()  # exclude long-lived objects from collections, which stall the event loop
    server.run()
    if file:
        held.release()
    if not server.started:
        refuse(f"the server could not start on {settings.host}:{settings.port}; the lines above say why")


def _uvicorn_config(settings: ServerSettings, service: ServiceSettings, level: str) -> uvicorn.Config:
    try:
        http = framing.protocol(service.http.http_parser, service.http.send_timeout)
    except ImportError:
        refuse("httptools is not installed: install neops-remote-lab[fast], or omit --http-parser")
    try:
        return uvicorn.Config(
            create_app(service),
            host=settings.host,
            port=settings.port,
            log_level=level.lower(),
            log_config=str(settings.log_config) if settings.log_config else None,
            access_log=settings.debug,
            http=http,
            ws=websocket_protocol.protocol(service.http.send_timeout),
            ws_max_size=service.devices.max_message_bytes,
            ws_ping_interval=min(service.http.send_timeout, websocket_protocol.PING_INTERVAL),
            ws_ping_timeout=service.http.send_timeout,
            ws_per_message_deflate=False,  # it costs more than it saves, and the memory of a window each connection
            timeout_keep_alive=service.http.keep_alive,
            workers=1,  # otherwise uvicorn uses $WEB_CONCURRENCY, but only one process may run labs
            timeout_graceful_shutdown=CONNECTIONS_TIMEOUT,
            lifespan="on",
            headers=[NEVER_SNIFFED],
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, YAMLError) as error:
        if settings.log_config is None:
            raise
        refuse(
            f"the logging configuration {settings.log_config} cannot be used: {error}. Mend it, or omit --log-config"
        )
