"""The plugin's settings: one table, from which its flags, environment variables and ini keys are made.

Every pytest run imports this module, so it uses the standard library alone, and no more of it than pytest itself does.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    import pytest


class Setting(NamedTuple):
    """What a user may choose: `session_timeout` is `--remote-lab-session-timeout`, `REMOTE_LAB_SESSION_TIMEOUT` and
    `remote_lab_session_timeout`; the first one that is given counts, and an empty one counts as not given.

    Attributes:
        name: what the rest of the name is made of.
        meaning: what it is, for the help and the documentation.
        default: the text that counts where nothing is given.
        metavar: what the help calls the value.
        read: makes a value of a text; raises ValueError with what it must be.
        is_path: whether it names a file. A relative path in an ini file starts at the directory of that file.
    """

    name: str
    meaning: str
    default: str | None = None
    metavar: str = "TEXT"
    read: Callable[[str], Any] = str
    is_path: bool = False

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return self.key.upper()

    @property
    def key(self) -> str:
        """The key in `pytest.ini` and `pyproject.toml`, and the name of the option in `config.option`."""
        return f"remote_lab_{self.name}"


class Given(NamedTuple):
    """A value that somebody has chosen, and where: the flag, the variable or the ini key."""

    value: Any
    source: str


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise ValueError("must be a number of seconds above 0")
    return value


SETTINGS = (
    Setting(
        "url",
        "address of the server, such as `http://lab-host:8000`; a path is allowed where a proxy adds one",
        metavar="URL",
    ),
    Setting("request_timeout", "seconds for one short call", "30", "SECONDS", seconds),
    Setting("session_timeout", "seconds to wait in the queue", "600", "SECONDS", seconds),
    Setting("acquisition_timeout", "seconds until one lab is free and up", "600", "SECONDS", seconds),
    Setting(
        "unreachable_timeout",
        "seconds for which a server that cannot be reached is tried again",
        "120",
        "SECONDS",
        seconds,
    ),
    Setting("token", "token, sent as `Authorization: Bearer …`; a flag can be read by all users of the machine"),
    Setting(
        "client_cert",
        "PEM file with a client certificate, and with its key unless that is in a file of its own",
        metavar="FILE",
        is_path=True,
    ),
    Setting(
        "client_key", "PEM file with the private key of the certificate, not encrypted", metavar="FILE", is_path=True
    ),
    Setting(
        "ca_file", "PEM file with the authorities to trust in place of the usual ones", metavar="FILE", is_path=True
    ),
)
"""In the order in which the help and the documentation show them."""
BY_NAME = {setting.name: setting for setting in SETTINGS}


def add_options(parser: pytest.Parser) -> None:
    """Add a flag and an ini key for each setting."""
    group = parser.getgroup("remote lab", "labs of neops-remote-lab")
    for setting in SETTINGS:
        group.addoption(
            setting.flag,
            metavar=setting.metavar,
            type=_checked(setting),
            help=f"{setting.meaning.replace('`', '')} (default: {setting.default or 'none'}; {setting.variable})",
        )
        parser.addini(setting.key, f"see {setting.flag}", default="")


class Sources(NamedTuple):
    """Where settings are looked up, each by the name that it has there, in this order."""

    flags: Mapping[str, str | None]
    environment: Mapping[str, str]
    ini: Mapping[str, str]

    @classmethod
    def of(cls, config: pytest.Config) -> Self:
        """The command line, the environment and the ini file of a run."""
        beside = config.inipath.parent if config.inipath else config.invocation_params.dir
        ini = {}
        for setting in SETTINGS:
            text = config.getini(setting.key)
            ini[setting.key] = str(beside / text) if text and setting.is_path else text
        return cls(vars(config.option), os.environ, ini)

    def given(self, name: str) -> Given | None:
        """What was chosen for a setting; None where nothing was.

        Raises:
            ValueError: one sentence that names the source of a text that cannot be read.
        """
        setting = BY_NAME[name]
        for text, source in (
            (self.flags.get(setting.key), setting.flag),
            (self.environment.get(setting.variable), setting.variable),
            (self.ini.get(setting.key), f"the ini key {setting.key}"),
        ):
            if text:
                try:
                    return Given(setting.read(text), source)
                except ValueError as error:
                    raise ValueError(f"{source} {error}, not {text!r}") from None
        return None

    def value(self, name: str) -> Any:
        """What was chosen for a setting, else its default. Raises as `given`."""
        if (found := self.given(name)) is not None:
            return found.value
        setting = BY_NAME[name]
        return None if setting.default is None else setting.read(setting.default)

    def apart(self) -> Iterator[Self]:
        """Each source without the others, for settings that have to come from the same one."""
        nothing: dict[str, str] = {}
        yield self._replace(environment=nothing, ini=nothing)
        yield self._replace(flags=nothing, ini=nothing)
        yield self._replace(flags=nothing, environment=nothing)


def _checked(setting: Setting) -> Callable[[str], str]:
    """A type for argparse that refuses what cannot be read, and changes nothing: workers get the text as it is."""

    def check(text: str) -> str:
        try:
            setting.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None
        return text

    return check
