"""Determines which tests use which lab, and the resulting order. Changes no pytest objects. The only files it reads are
topologies that may share a lab.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, get_args

import pytest

from neops_remote_lab.core.client_settings import LOCAL
from neops_remote_lab.core.topology_files import TopologyFiles

Scope = Literal["function", "class", "module", "session"]
"""Scope of a lab fixture."""
Access = Literal["direct", "forward"]
ACCESSES: Final[tuple[str, ...]] = get_args(Access)
SCOPES: Final[tuple[str, ...]] = get_args(Scope)

URL_MARKER: Final = "remote_lab_url"
"""The marker that names the lab host of a test, a class or a module."""
_ATTRIBUTE = "__remote_lab__"
_declared = itertools.count()


@dataclass(frozen=True)
class LabSpec:
    """The declaration of one lab fixture.

    Attributes:
        files: the topology file and its extra files.
        name: the fixture's name.
        reuse_lab: consecutive tests share one lab.
        scope: scope of the fixture.
        access: how tests reach the devices, unless a setting of the run says otherwise.
        number: position in the order of declaration.
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
        """The topology as the client takes it: a path if there are no extra files."""
        return self.files if self.files.extra_files else self.path

    @cached_property
    def key(self) -> str:
        """A key of the lab, for all fixtures and processes of a run.

        Fixtures that share a lab have the same key: their files have the same content when the key is first needed.
        """
        if self.reuse_lab:
            try:
                return "\0".join(filter(None, self.files.identity()))
            except (OSError, ValueError):  # the acquire will report the error
                pass
        return f"{self.name}\0{self.path}"

    def shares_with(self, other: LabSpec) -> bool:
        """Whether two fixtures may use the same lab."""
        return self == other or (self.reuse_lab and other.reuse_lab and self.key == other.key)


def mark_as_lab(function: Callable[..., Any], spec: LabSpec) -> None:
    """Mark a fixture function as a lab fixture."""
    setattr(function, _ATTRIBUTE, spec)


def labs_of(item: pytest.Item) -> tuple[LabSpec, ...]:
    """The labs that a test uses directly or through other fixtures, in the order of their declaration."""
    if _declares not in item.stash:
        definitions = itertools.chain(_definitions(item), _definitions_of(item, _lazy_fixtures(item)))
        item.stash[_declares] = _specs(definitions)
    return item.stash[_declares]


def expected_labs_of(item: pytest.Item) -> tuple[LabSpec, ...]:
    """As `labs_of`; for a test without labs, those that it probably requests at run time.

    Use it only where a wrong guess is harmless: a parameter that equals the name of a lab fixture may mean something
    else.
    """
    if _expects not in item.stash:
        item.stash[_expects] = labs_of(item) or _specs(_definitions_of(item, _names_in_parameters(item)))
    return item.stash[_expects]


def url_of(item: pytest.Item) -> str | None:
    """The address of the lab host that a test's marker names; None if the settings name it."""
    marker = item.get_closest_marker(URL_MARKER)
    url = marker.args[0] if marker is not None and marker.args else None
    return url if isinstance(url, str) else None


def refuse_wrong_markers(items: Iterable[pytest.Item]) -> None:
    """Raise `pytest.UsageError` if a marker does not name one lab host. The error names each such test."""
    lines = []
    for item in items:
        marker = item.get_closest_marker(URL_MARKER)
        if marker is None:
            continue
        if marker.args != (url_of(item),) or marker.kwargs or not marker.args[0]:
            lines.append(f"  {item.nodeid}: it takes one address, such as http://lab-host:8000")
        elif marker.args == (LOCAL,):
            lines.append(f"  {item.nodeid}: {LOCAL!r} is for a whole run: set REMOTE_LAB_URL instead")
    if lines:
        raise pytest.UsageError(f"the marker {URL_MARKER} cannot be used like this:\n" + "\n".join(lines))


def in_order_of_labs(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Sort tests so that those of one lab, and within them those of one fixture instance, are adjacent.

    Those of one lab host stay together, too. Tests without a lab come last. The order within a group does not change.
    """
    items = list(items)
    specs = sorted({spec for item in items for spec in expected_labs_of(item)}, key=lambda spec: spec.number)
    labs: dict[str, int] = {}
    for spec in specs:
        labs.setdefault(spec.key, spec.number)
    instances: dict[tuple[int, str], int] = {}
    hosts: dict[str | None, int] = {None: 0}

    def rank(item: pytest.Item) -> tuple[bool, int, int, int, int]:
        expected = expected_labs_of(item)
        if not expected:
            return (True, 0, 0, 0, 0)
        spec = expected[0]
        host = hosts.setdefault(url_of(item), len(hosts))
        instance = spec.number, _scope_node(item, spec.scope).nodeid
        return (False, host, labs[spec.key], spec.number, instances.setdefault(instance, len(instances)))

    return sorted(items, key=rank)


def refuse_several_labs(items: Iterable[pytest.Item]) -> None:
    """Raise `pytest.UsageError` with the names of all tests that use more than one lab."""
    wrong = [(item.nodeid, labs) for item in items if len(labs := labs_of(item)) > 1]
    if wrong:
        lines = [f"  {test}: {', '.join(spec.name for spec in labs)}" for test, labs in wrong]
        raise pytest.UsageError("a test can use only one remote lab, because the host runs one:\n" + "\n".join(lines))


def topologies_of(items: Iterable[pytest.Item]) -> list[Path | TopologyFiles]:
    """The topologies that the tests need, without duplicates, in the order of their use."""
    return list(dict.fromkeys(spec.topology for item in items for spec in expected_labs_of(item)))


def definition_of(item: pytest.Item, fixture: str) -> pytest.FixtureDef[Any] | None:
    """The fixture definition that a test uses for a name; None if the test does not use it."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = info.name2fixturedefs.get(fixture, ()) if info is not None else ()
    return definitions[-1] if definitions else None


def item_of(request: pytest.FixtureRequest) -> pytest.Item:
    """The test that causes a fixture's setup. For wider scopes, `request.node` is a module or the session instead."""
    item: pytest.Item = request._pyfuncitem
    return item


def definition_behind(request: pytest.FixtureRequest) -> pytest.FixtureDef[Any]:
    """The definition of the fixture that is being set up, which may be an overridden one."""
    definition: pytest.FixtureDef[Any] = request._fixturedef  # type: ignore[attr-defined]
    return definition


def is_set_up_for(definition: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> bool:
    """Whether the test of a request has already requested a fixture, or one that overrides it.

    A fixture of a wider scope may be set up although this test has not requested it.
    """
    return definition.argname in request._fixture_defs


_declares = pytest.StashKey[tuple[LabSpec, ...]]()
_expects = pytest.StashKey[tuple[LabSpec, ...]]()


def _scope_node(item: pytest.Item, scope: Scope) -> pytest.Item | pytest.Collector:
    """The node that determines the lifetime of a fixture. For function scope, whose instances need no order, the
    session."""
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
    info = getattr(item, "_fixtureinfo", None)  # only functions and doctests have one
    if info is not None:
        for name in info.names_closure:
            yield from _reached(info.name2fixturedefs.get(name, ()))


def _reached(definitions: Sequence[pytest.FixtureDef[Any]]) -> Iterator[pytest.FixtureDef[Any]]:
    """The effective definition, and those that it overrides, as long as each requests the next one."""
    for definition in reversed(definitions):
        yield definition
        if definition.argname not in definition.argnames:
            return


# Fixtures that are not arguments of a test


def _definitions_of(item: pytest.Item, names: Iterable[str]) -> Iterator[pytest.FixtureDef[Any]]:
    """The definitions of fixtures for a test, and of all fixtures that these depend on."""
    manager = item.session._fixturemanager  # there is no public API to look up a fixture that is not an argument
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
    """The names of fixtures that a test's parameters reference with `lf("name")` of pytest-lazy-fixtures."""
    for value in _parameters(item):
        name = getattr(value, "fixture_name", None)
        if type(value).__name__ == "LazyFixtureWrapper" and isinstance(name, str):
            yield name


def _names_in_parameters(item: pytest.Item) -> Iterator[str]:
    if "request" in getattr(item, "fixturenames", ()):  # without it, the test cannot request a fixture by name
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
