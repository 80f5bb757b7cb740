"""Runs the netlab and Docker commands. No other module starts them."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final

import psutil

from neops_remote_lab.netlab import preload
from neops_remote_lab.netlab.logs import Bound
from neops_remote_lab.netlab.output import last_lines

if sys.platform == "linux":
    import resource

logger = logging.getLogger(__name__)

LAB_ID_VARIABLE: Final = "NEOPS_REMOTE_LAB_LAB_ID"
"""Environment variable of every process that works on a lab, so that a later server finds processes that outlived an
earlier one."""
PRELOADED: Final = "preloaded"
"""Value of that variable in a preloaded netlab, which starts before its lab is known. Its current directory tells the
lab."""

MAX_OUTPUT_BYTES: Final = 64 << 20
INTERRUPT_POLL: Final = 0.05
"""Seconds between two checks of the interrupt event."""
SCRIPT_BYTES: Final = 4096
"""How many bytes of the netlab command are read to find out whether it is a Python script."""

# Without internet access, containerlab waits 3 s at every deploy for the version check to time out.
_ENVIRONMENT: Final = {"CLAB_VERSION_CHECK": "disable", "COLUMNS": "200", "NO_COLOR": "1"}
_PYTHON = re.compile(r"python[\d.]*$")


class PreloadedNetlab:
    """A netlab process that has finished its imports and waits for a command, so that the next lab starts sooner.

    Only a netlab command that is a Python script can be preloaded; any other is started when it is needed.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._waiting: psutil.Popen | None = None
        self._closed = False

    def load(self) -> None:
        """Start a process, unless one is waiting already. Returns before its imports are done."""
        with self._lock:
            if self._closed or self._is_waiting():
                return
            script = find_command(self._command)
            try:
                if script and (python := _python_of(Path(script))):
                    self._waiting = _start([*python, preload.__file__, script], Path("/"), PRELOADED)
            except OSError as error:  # only an optimisation: a real problem shows when netlab is needed
                logger.info("netlab is not preloaded: %s", error)

    def take(self) -> psutil.Popen | None:
        """Hand the waiting process over to the caller; None if there is none."""
        with self._lock:
            taken = self._waiting if self._is_waiting() else None
            self._waiting = None
        return taken

    def _is_waiting(self) -> bool:
        if self._waiting and self._waiting.poll() is not None:
            self._waiting.communicate()
            self._waiting = None
        return self._waiting is not None

    def close(self) -> None:
        """Kill the waiting process; later calls of `load` do nothing."""
        self._closed = True
        if waiting := self.take():
            waiting.kill()
            waiting.communicate()


def _python_of(script: Path) -> list[str] | None:
    """The interpreter and its options from the first line of networklab's script; None for any other file."""
    with script.open("rb") as file:
        first, _, rest = file.read(SCRIPT_BYTES).decode(errors="replace").partition("\n")
    words = first[2:].split()
    named = any(_PYTHON.search(word) for word in words[:2])  # the second word if the first is `env`
    return words if first.startswith("#!") and named and preload.PACKAGE in rest else None


def run_netlab(
    arguments: Sequence[str],
    *,
    directory: Path,
    timeout: float,
    command: str = "netlab",
    log: Path | None = None,
    answer: str = "",
    kill_grace: float = 5,
    memory: int | None = None,
    niceness: int = 0,
    max_log_bytes: int | None = None,
    lab_id: str = "",
    interrupt: threading.Event | None = None,
    preloaded: PreloadedNetlab | None = None,
    last_check: Callable[[], None] | None = None,
) -> str:
    """Run `netlab ARGUMENTS` in `directory`, in a process group of its own, and return its standard output.

    Args:
        timeout: seconds after which the whole process group is ended.
        log: file to which all output is appended; an empty string is returned then.
        answer: text for standard input, which is closed afterwards.
        kill_grace: seconds between SIGTERM and SIGKILL.
        memory: maximum address space, in bytes (Linux only).
        niceness: added to the niceness of this process, 0 to 19.
        max_log_bytes: maximum size of the log, during the command and afterwards.
        lab_id: the lab that the process is marked with.
        interrupt: once set, ends the command or prevents it.
        preloaded: provides a preloaded process, for a command with a log.
        last_check: called immediately before the command begins; prevents it by an exception, or by the interrupt.

    Raises:
        FileNotFoundError: the command does not exist.
        InterruptedError: `interrupt` was set.
        subprocess.TimeoutExpired: the command took longer than `timeout`.
        subprocess.CalledProcessError: the exit status is not 0; `stderr` has the last lines of the output.
    """
    words = [command, *arguments]
    interrupt = interrupt or threading.Event()
    with ExitStack() as files:
        # Files instead of pipes: large output, or children that keep the output open, cannot block us, and a command
        # that outlives this server can still write.
        output: IO[bytes] = files.enter_context(log.open("a+b") if log else TemporaryFile())  # noqa: SIM115
        errors = output if log else files.enter_context(TemporaryFile())
        start = errors.tell()
        if last_check:
            last_check()
        if interrupt.is_set():
            raise InterruptedError("the command was stopped before its beginning")
        process = preloaded.take() if preloaded and log else None
        if process and log:
            order = {"arguments": arguments, "directory": str(directory), "log": str(log)}
            answer = json.dumps({**order, "environment": _environment_in(directory, lab_id)}) + "\n" + answer
        else:
            process = _start(words, directory, lab_id, output, errors)
        _limit(process, memory, niceness)
        bound = Bound(log, max_log_bytes) if log and max_log_bytes else None
        try:
            status = _watch(process, answer, timeout, kill_grace, interrupt=interrupt, bound=bound)
        finally:
            if bound:
                bound.enforce()
        if status:
            begin = 0 if bound and bound.was_cut else start
            raise subprocess.CalledProcessError(status, words, stderr=last_lines(errors, begin))
        return "" if log else _read(output)


def _start(
    words: Sequence[str],
    directory: Path,
    lab_id: str,
    output: IO[bytes] | int = subprocess.DEVNULL,
    errors: IO[bytes] | int = subprocess.DEVNULL,
    *,
    standard_input: int = subprocess.PIPE,
    buffer: int = -1,
) -> psutil.Popen:
    command = find_command(words[0]) or words[0]
    return psutil.Popen(
        [command, *words[1:]],
        cwd=directory,
        env={**os.environ, **_ENVIRONMENT, "PATH": _search_path(command), **_environment_in(directory, lab_id)},
        stdin=standard_input,
        stdout=output,
        stderr=errors,
        bufsize=buffer,
        start_new_session=True,
    )


def _environment_in(directory: Path, lab_id: str) -> dict[str, str]:
    """The variables that differ from lab to lab. netlab's playbooks use `PWD` as the current directory."""
    return {"PWD": str(directory), LAB_ID_VARIABLE: lab_id}


def find_command(command: str) -> str | None:
    """The path of a command: on PATH, or beside this Python, where `pip` installs the commands of our dependencies."""
    return shutil.which(command) or shutil.which(command, path=str(Path(sys.executable).parent))


def _search_path(command: str) -> str:
    """PATH for a command, with its own directory: netlab starts Ansible, which is installed beside it."""
    path, directory = os.environ.get("PATH", os.defpath), str(Path(command).parent)
    if not Path(command).is_absolute() or directory in path.split(os.pathsep):
        return path
    return os.pathsep.join([directory, path])


def run_docker(
    arguments: Sequence[str],
    *,
    command: str = "docker",
    timeout: float,
    niceness: int = 0,
    interrupt: threading.Event | None = None,
    log: Path | None = None,
    max_log_bytes: int | None = None,
) -> str:
    """Run `docker ARGUMENTS` and return its standard output. Arguments and exceptions as for `run_netlab`."""
    return run_netlab(
        arguments,
        directory=Path("/"),
        command=command,
        timeout=timeout,
        niceness=niceness,
        interrupt=interrupt,
        log=log,
        max_log_bytes=max_log_bytes,
    )


def start_docker(
    arguments: Sequence[str], *, command: str = "docker", lab_id: str, terminal: int | None = None
) -> psutil.Popen:
    """Start `docker ARGUMENTS` for a lab; the caller serves its streams, which are not buffered, and waits for its end.

    Args:
        terminal: a file descriptor of a terminal, which takes the place of all three pipes.
    """
    stream = subprocess.PIPE if terminal is None else terminal
    return _start([command, *arguments], Path("/"), lab_id, stream, stream, standard_input=stream, buffer=0)


def _watch(
    process: psutil.Popen,
    answer: str,
    timeout: float,
    kill_grace: float,
    *,
    interrupt: threading.Event,
    bound: Bound | None,
) -> int:
    """Write the answer, wait for the end of a process or enforce it, and return the exit status.

    This uses no thread, because labs are also torn down at interpreter exit, when threads cannot be started.
    """
    ended = False
    try:
        with suppress(BrokenPipeError), process.stdin as standard_input:
            standard_input.write(answer.encode())
        ended = _ends(process, timeout, interrupt, bound)
    finally:
        if not ended:
            _stop(process, kill_grace)
        elif process.returncode or interrupt.is_set():
            _signal_group(process, signal.SIGKILL)  # children of the failed command
    if interrupt.is_set():
        raise InterruptedError("the command was stopped before its end")
    if not ended:
        raise subprocess.TimeoutExpired(process.args, timeout)
    return int(process.returncode)


def _ends(process: psutil.Popen, seconds: float, interrupt: threading.Event, bound: Bound | None) -> bool:
    """Whether a process ends within `seconds`, before an interrupt. Returns as soon as it ends."""
    until = time.monotonic() + seconds
    while not interrupt.is_set() and (left := until - time.monotonic()) > 0:
        with suppress(psutil.TimeoutExpired):
            process.wait(min(left, INTERRUPT_POLL))
            return True
        if bound:
            bound.enforce()
    return False


def _stop(process: psutil.Popen, grace: float) -> None:
    """Send SIGTERM to a process group, and SIGKILL after `grace` seconds or when the wait is interrupted."""
    _signal_group(process, signal.SIGTERM)
    try:
        with suppress(psutil.TimeoutExpired):
            process.wait(grace)
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: psutil.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _limit(process: psutil.Popen, memory: int | None, niceness: int) -> None:
    with suppress(ProcessLookupError):
        if memory is not None and sys.platform == "linux":
            resource.prlimit(process.pid, resource.RLIMIT_AS, (memory, memory))
        if niceness:
            with suppress(PermissionError):  # the command works without it
                os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + niceness)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(MAX_OUTPUT_BYTES).decode(errors="replace")
