"""Reads the plugin's settings from flags, environment variables and ini keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import pytest

from neops_remote_lab.core.client_settings import LOCAL
from neops_remote_lab.testing.labs import ACCESSES, URL_MARKER
from neops_remote_lab.testing.options import SETTINGS, flag, key, variable

MOST_DIGITS: Final = 6
UNITS: Final = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """Parse a number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise ValueError("must be a number of seconds above 0")
    return value


def period(text: str) -> float:
    """Parse a number with a unit, in seconds; 0 for `off`."""
    if text == OFF:
        return 0
    count, unit = text[:-1], text[-1:]
    if unit not in UNITS or not (count.isascii() and count.isdecimal()):
        raise ValueError("must be a duration such as 90s, 30m or 2h, or off; write it as =30m if an argument follows")
    return int(count[:MOST_DIGITS]) * UNITS[unit]


def number(text: str) -> int:
    """Parse a whole number of at least 0."""
    if not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS):
        raise ValueError(f"must be a whole number of up to {MOST_DIGITS} digits")
    return int(text)


ON, OFF, RETAIN_ON_FAILURE = "on", "off", "retain-on-failure"


def when(text: str) -> str:
    """Parse a choice of when artifacts are kept."""
    if text not in {ON, OFF, RETAIN_ON_FAILURE}:
        raise ValueError(f"must be {ON}, {OFF} or {RETAIN_ON_FAILURE}")
    return text


def access(text: str) -> str:
    """Parse a choice of how tests reach devices."""
    if text not in ACCESSES:
        raise ValueError(f"must be {' or '.join(ACCESSES)}")
    return text


READERS: dict[str, Callable[[str], Any]] = {
    "URL": str,
    "TEXT": str,
    "FILE": str,
    "DIRECTORY": str,
    "SECONDS": seconds,
    "NUMBER": number,
    "DURATION": period,
    "WHEN": when,
    "ACCESS": access,
}
"""Parsers by kind of value. They raise ValueError with a message such as "must be …"."""


PATHS = frozenset({"FILE", "DIRECTORY"})


@dataclass(frozen=True)
class Sources:
    """The unparsed values of settings, by the names that they have in each source.

    Flags take precedence over variables, and variables over ini keys. An empty value counts as not set. A relative path
    in an ini file is relative to the directory of that file.
    """

    flags: Mapping[str, str | None]
    environment: Mapping[str, str]
    ini: Mapping[str, str]
    marked_url: str | None = None
    """The address from a test's marker, which precedes all others."""

    @classmethod
    def of(cls, config: pytest.Config) -> Self:
        """The sources of a pytest run."""
        beside = config.inipath.parent if config.inipath else config.invocation_params.dir
        ini = {}
        for name, (kind, *_) in SETTINGS.items():
            text = config.getini(key(name))
            ini[key(name)] = str(beside / text) if text and kind in PATHS else text
        return cls(vars(config.option), os.environ, ini)

    def given(self, name: str) -> tuple[Any, str] | None:
        """The value of a setting and the name of its source; None if the setting has no value.

        Raises:
            ValueError: the value is invalid; the message names the source.
        """
        for text, source in (
            (self.marked_url if name == "url" else None, f"the marker {URL_MARKER}"),
            (self.flags.get(key(name)), flag(name)),
            (self.environment.get(variable(name)), variable(name)),
            (self.ini.get(key(name)), f"the ini key {key(name)}"),
        ):
            if text:
                try:
                    return READERS[SETTINGS[name][0]](text), source
                except ValueError as error:
                    raise ValueError(f"{source} {error}, not {text!r}") from None
        return None

    def value(self, name: str) -> Any:
        """The value of a setting or its default. Raises as `given`."""
        if (found := self.given(name)) is not None:
            return found[0]
        kind, default, _ = SETTINGS[name]
        return None if default is None else READERS[kind](default)

    def is_local(self) -> bool:
        """Whether the labs are those of this machine, without a server."""
        given = self.given("url")
        return given is not None and given[0] == LOCAL

    def check(self) -> None:
        """Raise ValueError if a value is invalid; the message names the source."""
        for name in SETTINGS:
            self.given(name)

    def apart(self) -> Iterator[Sources]:
        """Each source alone, for settings that must come from the same source."""
        yield Sources(self.flags, {}, {})
        yield Sources({}, self.environment, {})
        yield Sources({}, {}, self.ini)
