"""Version 1.4.0 from the package index, installed in a separate virtual environment."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

VERSION: Final = "1.4.0"
OLDEST: Final = (3, 12)
REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")
INSTALL_TIMEOUT: Final = 600


class NoPeerError(Exception):
    """Version 1.4.0 is not available; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A virtual environment with version 1.4.0."""

    directory: Path

    def without_ours(self, environment: dict[str, str]) -> dict[str, str]:
        """The variables without those that would let its Python import this project."""
        return {name: value for name, value in environment.items() if not name.startswith("PYTHON")}

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")

    def command(self, port: int) -> list[str]:
        return [str(self.directory / "bin" / "neops-remote-lab"), "--host", "127.0.0.1", "--port", str(port)]


def find_peer(given: Path | None = None) -> Peer:
    """The virtual environment of the peer, which is installed if it does not exist.

    Raises:
        NoPeerError: no Python is new enough, or the registry cannot be reached.
    """
    directory = given or user_cache_path("neops-remote-lab") / f"bench-peer-{VERSION}"
    peer = Peer(directory)
    if not _is_complete(peer):
        if given:
            raise NoPeerError(f"{given} is not a virtual environment with neops-remote-lab {VERSION} and pytest")
        _install(directory)
    return peer


def _is_complete(peer: Peer) -> bool:
    code = "import importlib.metadata as m; print(m.version('neops-remote-lab'), m.version('pytest'))"
    return _output([peer.python, "-c", code]).startswith(f"{VERSION} ")


def _install(directory: Path) -> None:
    python = next(_new_pythons(), None)
    if python is None:
        raise NoPeerError(f"version {VERSION} needs Python {OLDEST[0]}.{OLDEST[1]} or newer, and none is on PATH")
    print(f"installing version {VERSION} into {directory} (once)")
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    install = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([python, "-m", "venv", str(directory)], [*install, "-r", str(REQUIREMENTS)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            raise NoPeerError(f"version {VERSION} could not be installed in {INSTALL_TIMEOUT} s") from None
        if done.returncode:
            shutil.rmtree(directory, ignore_errors=True)
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise NoPeerError(f"version {VERSION} could not be installed: {last}")


def _new_pythons() -> Iterator[str]:
    """Interpreters that are new enough. They are started, because a name on PATH may be a shim without a Python."""
    names = ["python3", *(f"python3.{minor}" for minor in range(OLDEST[1], OLDEST[1] + 6))]
    found = [shutil.which(name) for name in names]
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found += sorted(str(path) for path in versions.glob("3.*/bin/python"))
    for python in filter(None, found):
        shown = _output([python, "-c", "import sys, venv; print(*sys.version_info[:2])"]).split()
        if len(shown) == 2 and tuple(map(int, shown)) >= OLDEST:
            yield python


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    except OSError:
        return ""
