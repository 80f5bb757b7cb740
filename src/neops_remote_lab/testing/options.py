"""The plugin's settings, and their flags and ini keys, which pytest must know from the start.

Every pytest run loads this module, so it must be fast: the settings are plain tuples, and
`neops_remote_lab.testing.sources` contains what only runs with labs need.
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
    "request_timeout": ("SECONDS", "30", "seconds to wait for the response to a short call"),
    "session_timeout": ("SECONDS", "600", "seconds to wait in the queue"),
    "acquisition_timeout": ("SECONDS", "600", "seconds until a lab is free and running"),
    "unreachable_timeout": ("SECONDS", "120", "seconds for which calls to an unreachable server are retried"),
    "retries": ("NUMBER", "0", "how often a lab that failed to start is started again"),
    "keep_on_failure": (
        "DURATION",
        "off",
        "how long the lab of the first failed test is kept while no other session waits, such as `90s` or `2h`; "
        "the flag alone: `30m`",
    ),
    "access": (
        "ACCESS",
        None,
        "how tests reach devices: `direct`, or `forward` through the server; overrides the fixtures",
    ),
    "token": ("TEXT", None, "token, sent as `Authorization: Bearer …`; all users of the machine can read a flag"),
    "client_cert": ("FILE", None, "PEM file with a client certificate, and its key unless that is in a separate file"),
    "client_key": ("FILE", None, "PEM file with the private key of the certificate, not encrypted"),
    "ca_file": ("FILE", None, "PEM file with the authorities to trust instead of the default ones"),
    "artifacts": ("WHEN", "retain-on-failure", "which lab tests leave artifacts: `on`, `off` or `retain-on-failure`"),
    "summary": ("FILE", None, "Markdown file for a summary of the lab tests; on GitHub, by default the step summary"),
    "output": (
        "DIRECTORY",
        None,
        "directory for artifacts; by default `remote-lab-artifacts` below the project's root",
    ),
}
"""For each setting: kind of value, default, and description, in the order of help and documentation.

A test compares the timeouts with those in `core.client_settings`, which this module does not import, to stay fast.
"""


ALONE = {"keep_on_failure": "30m"}
"""Flags that may stand alone, and the value that they have then."""


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
        alone: dict[str, str] = {"nargs": "?", "const": ALONE[name]} if name in ALONE else {}
        group.addoption(flag(name), metavar=kind, type=_checked(kind), help=text, **alone)
        parser.addini(key(name), f"see {flag(name)}", default="")


def is_given(config: pytest.Config, name: str) -> bool:
    """Whether a setting has a value from a flag, a variable or an ini key."""
    return bool(config.getoption(key(name)) or os.environ.get(variable(name)) or config.getini(key(name)))


def _checked(kind: str) -> Callable[[str], str]:
    """An argparse type that validates a value but returns the text, which pytest-xdist passes on to workers."""

    def check(text: str) -> str:
        from argparse import ArgumentTypeError  # noqa: PLC0415 - only needed with such a flag

        from neops_remote_lab.testing.sources import READERS  # noqa: PLC0415

        try:
            READERS[kind](text)
        except ValueError as error:
            raise ArgumentTypeError(f"{error}, not {text!r}") from None
        return text

    return check
