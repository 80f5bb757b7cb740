"""The programs of this host that a lab needs: which there are, and what is missing for the next one."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.connector import find_command, run_docker
from neops_remote_lab.netlab.failures import failure
from neops_remote_lab.settings import Settings

CONTAINERLAB: Final = "containerlab"
TIMEOUT: Final = 10.0
"""Seconds that a program may take to say its version, or Docker to list containers."""
_VERSION = re.compile(r"\bv?(\d+\.\d+[\w.+-]*)")
_MISSING: Final = "{what} cannot be run: install it{flag}{otherwise}"
_NO_CONTAINERS: Final = ", or say with --containers=no that this host runs no labs in containers"


def versions(settings: Settings) -> str:
    """Path and version of netlab, Docker and containerlab, in one line; says which are missing."""
    asked = {"netlab": (settings.netlab, "version"), "Docker": (settings.docker, "--version")}
    asked[CONTAINERLAB] = (CONTAINERLAB, "version")
    return ", ".join(f"{name} {_version(command, argument)}" for name, (command, argument) in asked.items())


def _version(command: str, argument: str) -> str:
    if (path := find_command(command)) is None:
        return f"is missing ({command} is neither on PATH nor beside this Python)"
    try:
        found = _VERSION.search(run_docker([argument], command=command, timeout=TIMEOUT))
    except (subprocess.SubprocessError, OSError) as error:
        return f"at {path} does not say its version ({_first_line(failure(error))})"
    return f"{found[1] if found else 'of an unknown version'} ({path})"


def needs_containers(settings: Settings) -> bool:
    """Whether labs of this host run in containers."""
    if settings.containers != "auto":
        return settings.containers == "yes"
    named = settings.docker != Settings.model_fields["docker"].default
    return named or any(find_command(command) for command in (settings.docker, CONTAINERLAB))


def problems(settings: Settings, netlab: NetlabCommands) -> list[str]:
    """What is missing for a lab to start and to end on this host, each as a sentence."""
    found = [*_work_dir_problems(settings.work_dir)]
    if find_command(settings.netlab) is None:
        found.append(_MISSING.format(what="netlab", flag=", or name it with --netlab", otherwise=""))
    elif not found and (wrong := netlab.wrong_defaults()):
        found.append(f"netlab rejects every topology, because of this host's own defaults: {_first_line(wrong)}")
    if needs_containers(settings):
        found += _container_problems(settings.docker)
    return found


def _container_problems(docker: str) -> list[str]:
    found = []
    if find_command(docker) is None:
        missing = _MISSING.format(what="Docker", flag=", or name it with --docker", otherwise=_NO_CONTAINERS)
        found.append(missing)
    else:
        try:
            run_docker(["ps", "--quiet", "--filter", "label=clab-topo-file"], command=docker, timeout=TIMEOUT)
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
