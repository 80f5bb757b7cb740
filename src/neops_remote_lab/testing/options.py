"""The table of the plugin's settings, and the flags and ini keys that pytest has to know of from the start.

Every pytest run loads this module: hence the tuples. `neops_remote_lab.testing.sources` has what runs with labs need.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SETTINGS: dict[str, tuple[str, str | None, str]] = {
    "url": (
        "URL",
        None,
        "address of the server, such as `http://lab-host:8000/path`, or `local`: this machine's own netlab",
    ),
    "request_timeout": ("SECONDS", "30", "seconds for one short call"),
    "session_timeout": ("SECONDS", "600", "seconds to wait in the queue"),
    "acquisition_timeout": ("SECONDS", "600", "seconds until one lab is free and up"),
    "unreachable_timeout": ("SECONDS", "120", "seconds for which a server that cannot be reached is tried again"),
    "access": (
        "ACCESS",
        None,
        "how tests reach devices: `direct`, or `forward` through the server; else as the fixture says",
    ),
    "token": ("TEXT", None, "token, sent as `Authorization: Bearer …`; all users of the machine can read a flag"),
    "client_cert": ("FILE", None, "PEM file with a client certificate, and with its key unless that has its own file"),
    "client_key": ("FILE", None, "PEM file with the private key of the certificate, not encrypted"),
    "ca_file": ("FILE", None, "PEM file with the authorities to trust in place of the usual ones"),
    "artifacts": ("WHEN", "retain-on-failure", "which lab tests leave artifacts: `on`, `off` or `retain-on-failure`"),
    "summary": ("FILE", None, "Markdown file for a summary of the lab tests, else the one of GitHub's step, if any"),
    "output": ("DIRECTORY", None, "directory of the artifacts, else `remote-lab-artifacts` below the project's root"),
}
"""By name: what kind of value it is, its default, and what it means; in the order of the help and the documentation."""


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return f"--remote-lab-{name.replace('_', '-')}"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"REMOTE_LAB_{name.upper()}"


def key(name: str) -> str:
    """The ini key of a setting, and its name in `config.option`."""
    return f"remote_lab_{name}"


def add_options(parser: pytest.Parser) -> None:
    """Add a flag and an ini key for each setting."""
    group = parser.getgroup("remote lab", "labs of neops-remote-lab")
    for name, (kind, default, meaning) in SETTINGS.items():
        text = f"{meaning.replace('`', '')} (default: {default or 'none'}; {variable(name)})"
        group.addoption(flag(name), metavar=kind, type=_checked(kind), help=text)
        parser.addini(key(name), f"see {flag(name)}", default="")


def is_given(config: pytest.Config, name: str) -> bool:
    """Whether anybody has chosen a value for a setting."""
    return bool(config.getoption(key(name)) or os.environ.get(variable(name)) or config.getini(key(name)))


def _checked(kind: str) -> Callable[[str], str]:
    """A type for argparse that refuses what cannot be read, and changes nothing: workers get the text as it is."""

    def check(text: str) -> str:
        from argparse import ArgumentTypeError  # noqa: PLC0415 - of no use to runs without such a flag

        from neops_remote_lab.testing.sources import READERS  # noqa: PLC0415

        try:
            READERS[kind](text)
        except ValueError as error:
            raise ArgumentTypeError(f"{error}, not {text!r}") from None
        return text

    return check
