"""The OpenAPI description contains every status that the source of the handlers can return."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette import status
from starlette.routing import Route

import neops_remote_lab
from neops_remote_lab.api.app import create_app
from neops_remote_lab.api.errors import STATUS
from neops_remote_lab.api.openapi import OPERATIONS, Operation, describe
from neops_remote_lab.api.settings import ServiceSettings
from neops_remote_lab.core.settings import read_settings
from neops_remote_lab.labs.refusals import Reason

PACKAGE = Path(neops_remote_lab.__path__[0])
HANDLERS = ("api.sessions", "api.labs", "api.devices", "api.monitoring")
PARTS = {
    **{module: module for module in HANDLERS},
    "requests": "api.requests",
    "uploads": "api.uploads",
    "log_stream": "api.log_stream",
    "labs": "labs.coordinator",
    "devices": "labs.devices",
    "slot": "labs.slot",
    "outcomes": "labs.outcomes",
    "checks": "labs.topology_checks",
    "refusals": "labs.refusals",
}
"""The modules that answer with HTTP statuses, by the names under which the handlers use them."""
TREES = {
    part: ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for part, module in PARTS.items()
}
NEVER_RECEIVED = {408}
"""Statuses that no client receives, because its connection is closed."""


def functions() -> dict[tuple[str, str], ast.AST]:
    """Module and name: the function, or the constant, of that name."""
    found: dict[tuple[str, str], ast.AST] = {}
    for part, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[part, node.name] = node
        for statement in tree.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[part, statement.target.id] = statement
    return found


FUNCTIONS = functions()


def imported() -> dict[tuple[str, str], str]:
    """Module and name: the module that the name is imported from."""
    found: dict[tuple[str, str], str] = {}
    for part, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                found |= {(part, alias.name): str(node.module).rpartition(".")[2] for alias in node.names}
    return found


IMPORTED = imported()


def used(part: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """What a function refers to: `name`, `self.name`, and `uploads.name`, `services.labs.name` and the like."""
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            key = (IMPORTED.get((part, child.id), part), child.id)
        elif isinstance(child, ast.Attribute):
            owner = ast.unparse(child.value).rpartition(".")[2]
            key = (part if owner == "self" else owner, child.attr)
        else:
            continue
        if key in FUNCTIONS:
            yield key


def raised(key: tuple[str, str], seen: set[tuple[str, str]]) -> set[int]:
    """The error statuses that a function can answer with, including those of the functions that it calls."""
    if key in seen:
        return set()
    seen.add(key)
    node = FUNCTIONS[key]
    names = {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}
    codes = {getattr(status, name) for name in names if name.startswith("HTTP_")}
    codes |= {STATUS[Reason[name]] for name in names if name in Reason.__members__}
    for other in used(key[0], node):
        codes |= raised(other, seen)
    return {code for code in codes if code >= 400} - NEVER_RECEIVED


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_failure_that_a_handler_raises_is_described(operation: Operation) -> None:
    handler = next(
        route.endpoint
        for route in create_app(read_settings(ServiceSettings, {}, {})).routes
        if isinstance(route, Route)
        and route.path == operation.path
        and operation.method.upper() in (route.methods or ())
    )
    described = {int(code) for code in describe("0")["paths"][operation.path][operation.method]["responses"]}
    part = handler.__module__.removeprefix(f"{neops_remote_lab.__name__}.")
    assert part in HANDLERS
    assert raised((part, handler.__name__), set()) - described == set()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_call_describes_failures_of_server_and_database(operation: Operation) -> None:
    described = describe("0")["paths"][operation.path][operation.method]["responses"]
    assert operation.path == "/healthz" or {"500", "503"} <= described.keys()


def test_the_log_is_described_in_both_its_forms() -> None:
    log = describe("0")["paths"]["/lab/log"]["get"]["responses"]["200"]
    assert log["content"].keys() == {"text/plain", "text/event-stream"}
