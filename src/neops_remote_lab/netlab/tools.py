"""Checks the programs that a lab needs on this host: their versions, and what is missing."""

import re
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Final

from neops_remote_lab.netlab import lab_network
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.failures import failure
from neops_remote_lab.netlab.process import find_command, run_docker
from neops_remote_lab.netlab.provider_lock import CONTAINERLAB, ProviderLock
from neops_remote_lab.netlab.settings import NetlabSettings

TIMEOUT: Final = 10.0
"""Seconds that Docker may take to list containers."""
VERSION_NICENESS: Final = 19
"""Niceness of version commands: nothing waits for them, and a lab may be starting."""
_VERSION = re.compile(r"\bv?(\d+\.\d+[\w.+-]*)")
_MISSING: Final = "{what} cannot be run: install it{flag}{otherwise}"
_NO_CONTAINERS: Final = ", or set --containers=no if this host runs no labs in containers"


def refusal(settings: NetlabSettings) -> str | None:
    """Why a server with these settings must not start on this host; None if it may. May block."""
    return lab_network.problem(settings) or ProviderLock(settings).problem()


def versions(settings: NetlabSettings, interrupt: threading.Event) -> str:
    """Version and path of netlab, Docker and containerlab, in one line, and which of them are missing.

    Args:
        interrupt: once set, aborts a running command.
    """
    asked = {"netlab": (settings.netlab, "version"), "Docker": (settings.docker, "--version")}
    asked[CONTAINERLAB] = (CONTAINERLAB, "version")
    limit = settings.command_timeout
    return ", ".join(f"{name} {_version(*asked[name], limit, interrupt)}" for name in asked)


def _version(command: str, argument: str, timeout: float, interrupt: threading.Event) -> str:
    if (path := find_command(command)) is None:
        return f"is missing ({command} is neither on PATH nor beside this Python)"
    try:
        printed = run_docker(
            [argument], command=command, timeout=timeout, niceness=VERSION_NICENESS, interrupt=interrupt
        )
    except (subprocess.SubprocessError, OSError) as error:
        return f"at {path} does not report its version ({_first_line(failure(error))})"
    found = _VERSION.search(printed)
    return f"{found[1] if found else 'of an unknown version'} ({path})"


def needs_containers(settings: NetlabSettings) -> bool:
    """Whether labs of this host run in containers."""
    if settings.containers != "auto":
        return settings.containers == "yes"
    named = settings.docker != NetlabSettings.model_fields["docker"].default
    return named or any(find_command(command) for command in (settings.docker, CONTAINERLAB))


def problems(settings: NetlabSettings, netlab: NetlabCommands, interrupt: threading.Event) -> list[str]:
    """What prevents labs on this host from starting or ending, one sentence each.

    Args:
        interrupt: once set, aborts a running command.
    """
    found = missing(settings, interrupt)
    if not _work_dir_problems(settings.work_dir) and find_command(settings.netlab):
        found += _netlab_problems(netlab, interrupt)
    return found


def missing(settings: NetlabSettings, interrupt: threading.Event) -> list[str]:
    """As `problems`, but without running netlab, which takes long."""
    found = [*_work_dir_problems(settings.work_dir)]
    if find_command(settings.netlab) is None:
        found.append(_MISSING.format(what="netlab", flag=", or name it with --netlab", otherwise=""))
    if needs_containers(settings):
        found += _container_problems(settings.docker, interrupt)
    return found


def _netlab_problems(netlab: NetlabCommands, interrupt: threading.Event) -> list[str]:
    try:
        wrong = netlab.wrong_defaults(interrupt)
    except (subprocess.SubprocessError, OSError) as error:
        return [f"cannot determine whether netlab accepts a topology: {_first_line(failure(error))}"]
    if wrong is None:
        return []
    return [f"netlab rejects every topology, because of this host's own defaults: {_first_line(wrong)}"]


def _container_problems(docker: str, interrupt: threading.Event) -> list[str]:
    found = []
    if find_command(docker) is None:
        found.append(_MISSING.format(what="Docker", flag=", or name it with --docker", otherwise=_NO_CONTAINERS))
    else:
        try:
            listing = ["ps", "--quiet", "--filter", "label=clab-topo-file"]
            run_docker(listing, command=docker, timeout=TIMEOUT, interrupt=interrupt)
        except (subprocess.SubprocessError, OSError) as error:
            found.append(f"Docker does not answer: {_first_line(failure(error))}")
    if find_command(CONTAINERLAB) is None:
        found.append(_MISSING.format(what=CONTAINERLAB, flag="", otherwise=_NO_CONTAINERS))
    return found


def _work_dir_problems(work_dir: Path) -> list[str]:
    try:
        with tempfile.TemporaryFile(dir=work_dir) as probe:
            probe.write(b"\0")
    except OSError as error:
        return [f"the work directory cannot be written: {error.strerror} (--work-dir)"]
    return []


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
