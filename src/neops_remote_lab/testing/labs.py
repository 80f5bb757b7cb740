"""Which tests use which lab, and the order that follows. No I/O, and nothing of pytest is changed here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_ATTRIBUTE = "__remote_lab__"
_declared = itertools.count()


@dataclass(frozen=True)
class LabSpec:
    """What one lab fixture stands for.

    Attributes:
        path: the topology file.
        name: the fixture's name.
        reuse_lab: tests in a row share one lab.
        number: grows in the order in which the fixtures are declared.
    """

    path: Path
    name: str
    reuse_lab: bool
    number: int = field(default_factory=lambda: next(_declared))

    @property
    def key(self) -> str:
        """What the lab is called among the processes of a run."""
        return f"{self.name}\0{self.path}"


def mark_as_lab(function: Callable[..., Any], spec: LabSpec) -> None:
    """Make a fixture function recognisable, under whatever name it is used."""
    setattr(function, _ATTRIBUTE, spec)


def labs_of(item: pytest.Item) -> tuple[LabSpec, ...]:
    """The labs that a test declares to use, be it through other fixtures, in the order of their declaration."""
    if _declares not in item.stash:
        definitions = itertools.chain(_definitions(item), _definitions_of(item, _lazy_fixtures(item)))
        item.stash[_declares] = _specs(definitions)
    return item.stash[_declares]


def expected_labs_of(item: pytest.Item) -> tuple[LabSpec, ...]:
    """The same, or the labs that a test is likely to ask for at run time.

    Only for decisions that may be wrong: a parameter that is the name of a lab fixture need not be meant as one.
    """
    if _expects not in item.stash:
        item.stash[_expects] = labs_of(item) or _specs(_definitions_of(item, _names_in_parameters(item)))
    return item.stash[_expects]


def in_order_of_labs(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The tests of one lab next to each other, those without a lab last; within a group nothing moves."""
    return sorted(items, key=_rank)


def refuse_several_labs(items: Iterable[pytest.Item]) -> None:
    """Raise `pytest.UsageError`, naming every test that asks for more than one lab."""
    wrong = [(item.nodeid, labs) for item in items if len(labs := labs_of(item)) > 1]
    if wrong:
        lines = [f"  {test}: {', '.join(spec.name for spec in labs)}" for test, labs in wrong]
        raise pytest.UsageError("a test can use one remote lab, for the host runs one at a time:\n" + "\n".join(lines))


def topologies_of(items: Iterable[pytest.Item]) -> list[Path]:
    """The topology files that the tests need, each once, in the order of their use."""
    return list(dict.fromkeys(spec.path for item in items for spec in expected_labs_of(item)))


def definition_of(item: pytest.Item, fixture: str) -> pytest.FixtureDef[Any] | None:
    """The definition of a fixture that counts for a test; None where the test does not use it."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = info.name2fixturedefs.get(fixture, ()) if info is not None else ()
    return definitions[-1] if definitions else None


_declares = pytest.StashKey[tuple[LabSpec, ...]]()
_expects = pytest.StashKey[tuple[LabSpec, ...]]()


def _rank(item: pytest.Item) -> tuple[bool, int]:
    labs = expected_labs_of(item)
    return (not labs, labs[0].number if labs else 0)


def _specs(definitions: Iterable[pytest.FixtureDef[Any]]) -> tuple[LabSpec, ...]:
    found = {spec for definition in definitions if (spec := getattr(definition.func, _ATTRIBUTE, None))}
    return tuple(sorted(found, key=lambda spec: spec.number))


def _definitions(item: pytest.Item) -> Iterator[pytest.FixtureDef[Any]]:
    info = getattr(item, "_fixtureinfo", None)  # items of other kinds than functions and doctests have none
    if info is not None:
        for name in info.names_closure:
            yield from _reached(info.name2fixturedefs.get(name, ()))


def _reached(definitions: Sequence[pytest.FixtureDef[Any]]) -> Iterator[pytest.FixtureDef[Any]]:
    """The definition that counts, and those that it overrides as long as each asks for the next one."""
    for definition in reversed(definitions):
        yield definition
        if definition.argname not in definition.argnames:
            return


# Fixtures that a test does not name as arguments


def _definitions_of(item: pytest.Item, names: Iterable[str]) -> Iterator[pytest.FixtureDef[Any]]:
    """The definitions of fixtures for a test, and of all that these depend on."""
    manager = item.session._fixturemanager  # pytest has no public way to look up a fixture that is not an argument
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for definition in _reached(manager.getfixturedefs(name, item) or ()):
            yield definition
            waiting += definition.argnames


def _lazy_fixtures(item: pytest.Item) -> Iterator[str]:
    """The fixtures that `lf("name")` of pytest-lazy-fixtures stands for in a test's parameters."""
    for value in _parameters(item):
        name = getattr(value, "fixture_name", None)
        if type(value).__name__ == "LazyFixtureWrapper" and isinstance(name, str):
            yield name


def _names_in_parameters(item: pytest.Item) -> Iterator[str]:
    if "request" in getattr(item, "fixturenames", ()):  # else the test cannot look a fixture up by its name
        yield from (value for value in _parameters(item) if isinstance(value, str))


def _parameters(item: pytest.Item) -> Iterator[object]:
    callspec = getattr(item, "callspec", None)
    if callspec is not None:
        yield from _flat(callspec.params)


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _flat(part)
    else:
        yield value
