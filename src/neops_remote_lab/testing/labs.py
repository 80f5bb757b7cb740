"""Which tests use which lab, and the order that follows. Nothing of pytest is changed here, and of files only the
contents of topologies that may share a lab are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, get_args

import pytest

from neops_remote_lab.core.topology_files import TopologyFiles

Scope = Literal["function", "class", "module", "session"]
"""How long one fixture lives, and so what is opened with its lab."""
Access = Literal["direct", "forward"]
ACCESSES: Final[tuple[str, ...]] = get_args(Access)
SCOPES: Final[tuple[str, ...]] = get_args(Scope)

_ATTRIBUTE = "__remote_lab__"
_declared = itertools.count()


@dataclass(frozen=True)
class LabSpec:
    """What one lab fixture stands for.

    Attributes:
        files: the topology file and its extra files.
        name: the fixture's name.
        reuse_lab: tests in a row share one lab.
        scope: how long the fixture lives.
        access: how tests reach the devices, where no setting says so.
        number: grows in the order in which the fixtures are declared.
    """

    files: TopologyFiles
    name: str
    reuse_lab: bool
    scope: Scope = "function"
    access: Access = "direct"
    number: int = field(default_factory=lambda: next(_declared))

    @property
    def path(self) -> Path:
        """The topology file."""
        return self.files.path

    @property
    def topology(self) -> Path | TopologyFiles:
        """What the client calls the topology: its path where that is all of it."""
        return self.files if self.files.extra_files else self.path

    @cached_property
    def key(self) -> str:
        """What the lab is called among the fixtures and the processes of a run.

        It is the same for fixtures that share a lab, whose files have the same contents when the first one is needed.
        """
        if self.reuse_lab:
            try:
                return "\0".join(filter(None, self.files.identity()))
            except (OSError, ValueError):  # the acquire is going to say what is wrong
                pass
        return f"{self.name}\0{self.path}"

    def shares_with(self, other: LabSpec) -> bool:
        """Whether a lab that one fixture has got may be given to another one."""
        return self == other or (self.reuse_lab and other.reuse_lab and self.key == other.key)


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
    """The tests of one lab next to each other, and of these the tests of one instance of its fixture; those without a
    lab last. Within a group nothing moves.
    """
    items = list(items)
    specs = sorted({spec for item in items for spec in expected_labs_of(item)}, key=lambda spec: spec.number)
    labs: dict[str, int] = {}
    for spec in specs:
        labs.setdefault(spec.key, spec.number)
    instances: dict[tuple[int, str], int] = {}

    def rank(item: pytest.Item) -> tuple[bool, int, int, int]:
        expected = expected_labs_of(item)
        if not expected:
            return (True, 0, 0, 0)
        spec = expected[0]
        instance = spec.number, _scope_node(item, spec.scope).nodeid
        return (False, labs[spec.key], spec.number, instances.setdefault(instance, len(instances)))

    return sorted(items, key=rank)


def refuse_several_labs(items: Iterable[pytest.Item]) -> None:
    """Raise `pytest.UsageError`, naming every test that asks for more than one lab."""
    wrong = [(item.nodeid, labs) for item in items if len(labs := labs_of(item)) > 1]
    if wrong:
        lines = [f"  {test}: {', '.join(spec.name for spec in labs)}" for test, labs in wrong]
        raise pytest.UsageError("a test can use one remote lab, for the host runs one at a time:\n" + "\n".join(lines))


def topologies_of(items: Iterable[pytest.Item]) -> list[Path | TopologyFiles]:
    """The topologies that the tests need, each once, in the order of their use."""
    return list(dict.fromkeys(spec.topology for item in items for spec in expected_labs_of(item)))


def definition_of(item: pytest.Item, fixture: str) -> pytest.FixtureDef[Any] | None:
    """The definition of a fixture that counts for a test; None where the test does not use it."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = info.name2fixturedefs.get(fixture, ()) if info is not None else ()
    return definitions[-1] if definitions else None


def item_of(request: pytest.FixtureRequest) -> pytest.Item:
    """The test for which a fixture is set up; `request.node` is a module or the session for one of a wider scope."""
    item: pytest.Item = request._pyfuncitem
    return item


def definition_behind(request: pytest.FixtureRequest) -> pytest.FixtureDef[Any]:
    """The definition of the very fixture that is set up, which may be one that others override."""
    definition: pytest.FixtureDef[Any] = request._fixturedef  # type: ignore[attr-defined]
    return definition


def is_set_up_for(definition: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> bool:
    """Whether the test of a request has asked for a fixture already, or for one that overrides it.

    A fixture of a wider scope may live without this test.
    """
    return definition.argname in request._fixture_defs


_declares = pytest.StashKey[tuple[LabSpec, ...]]()
_expects = pytest.StashKey[tuple[LabSpec, ...]]()


def _scope_node(item: pytest.Item, scope: Scope) -> pytest.Item | pytest.Collector:
    """What a fixture of a scope lives as long as; the session for a function, whose instances
    need no order."""
    match scope:
        case "class":
            return item.getparent(pytest.Class) or item
        case "module":
            return item.getparent(pytest.Module) or item
        case _:
            return item.session


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
