"""Which tests use which lab, and the order that follows. No I/O, and nothing of pytest is changed here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def mark_as_lab(function: Callable[..., Any], spec: LabSpec) -> None:
    """Make a fixture function recognisable, under whatever name it is used."""
    setattr(function, _ATTRIBUTE, spec)


def labs_of(item: pytest.Item) -> tuple[LabSpec, ...]:
    """The labs that a test uses, be it through other fixtures, in the order of their declaration."""
    found = {spec for definition in _definitions(item) if (spec := getattr(definition.func, _ATTRIBUTE, None))}
    return tuple(sorted(found, key=lambda spec: spec.number))


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
    return list(dict.fromkeys(spec.path for item in items for spec in labs_of(item)))


def definition_of(item: pytest.Item, fixture: str) -> pytest.FixtureDef[Any] | None:
    """The definition of a fixture that counts for a test; None where the test does not use it."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = info.name2fixturedefs.get(fixture, ()) if info is not None else ()
    return definitions[-1] if definitions else None


def _rank(item: pytest.Item) -> tuple[bool, int]:
    labs = labs_of(item)
    return (not labs, labs[0].number if labs else 0)


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
