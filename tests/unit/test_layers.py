"""Imports between packages: no package imports from one above or beside it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import neops_remote_lab
from neops_remote_lab.cli.main import COMMANDS

PACKAGE = Path(neops_remote_lab.__path__[0])
NAME = neops_remote_lab.__name__

SERVER = (
    {"__main__"},
    {"cli"},
    {"api"},
    {"labs"},
    {"queue"},
    {"netlab", "store"},
    {"client"},  # for the sub-commands
    {"models"},
    {"core"},
)
"""The packages of the server, the highest layer first. Packages of one layer do not import each other."""

CLIENT = (
    {"testing"},
    {"client"},
    {"models"},
    {"core"},
)
"""The same for the client and the pytest plugin, which share only the lowest packages with the server."""

LOCAL = "testing.local_labs"
"""The one exception: this module runs labs without a server, and imports the `netlab` package with the first one."""


def modules() -> dict[str, Path]:
    """Dotted name without the package's own: path of its file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """The top-level parts of this package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names = [f"{node.module}.{alias.name}" if node.module == NAME else str(node.module) for alias in node.names]
        for name in names:
            if name.startswith(f"{NAME}.") and not name.endswith(".__version__"):
                yield name.split(".")[1]


def loaded(path: Path) -> Iterator[str]:
    """The modules of this package that are loaded with a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == NAME:
            inside = str(node.module).removeprefix(NAME).removeprefix(".")
            yield inside
            yield from (f"{inside}.{alias.name}".removeprefix(".") for alias in node.names)


def violations(layers: tuple[set[str], ...]) -> list[str]:
    wrong = []
    for name, path in modules().items():
        part = name.split(".")[0]
        own = next((number for number, layer in enumerate(layers) if part in layer), None)
        if own is None:
            continue
        below = set().union(*layers[own + 1 :]) | {part}
        below |= {"netlab"} if name == LOCAL else set()
        wrong += [f"{name} imports {other}" for other in imported(path) if other not in below]
    return wrong


@pytest.mark.parametrize("layers", [SERVER, CLIENT], ids=["server", "client"])
def test_packages_import_only_from_packages_below(layers: tuple[set[str], ...]) -> None:
    assert violations(layers) == []


def test_the_sub_commands_alone_use_the_client() -> None:
    users = {name for name, path in modules().items() if "client" in imported(path)}
    assert {name.split(".")[0] for name in users} == {"cli", "client", "testing"}


def test_the_netlab_package_is_loaded_with_the_first_lab_of_a_run_without_a_server() -> None:
    assert not [name for name in loaded(modules()[LOCAL]) if name.startswith("netlab")]
    imported_by_plugin = loaded_by(f"import {NAME}.testing.plugin, {NAME}.testing.holder, {NAME}.testing.lab_socket")
    assert f"{NAME}.{LOCAL}" in imported_by_plugin
    assert not [name for name in imported_by_plugin if name.startswith(f"{NAME}.netlab")]


def test_there_are_no_import_cycles() -> None:
    """Cycles: a depth-first walk along the imports that run when a module is loaded."""
    known = modules()
    edges = {
        name: {other for other in loaded(path) if other in known and other != name} for name, path in known.items()
    }
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " imports ".join((*way, name))
        if name not in done:
            for other in sorted(edges[name]):
                walk(other, (*way, name))
            done.add(name)

    for name in sorted(known):
        walk(name, ())


def test_the_queue_and_the_labs_import_no_particular_database() -> None:
    particular = ("store.sql", "store.postgresql")
    users = {name for name, path in modules().items() for other in loaded(path) if other.startswith(particular)}
    outside = {name for name in users if not name.startswith(particular)}
    assert {name for name in outside if not name.startswith("cli.")} == {"store.opening"}, "others use store.protocol"
    drivers = {"sqlite3", "sqlalchemy", "aiosqlite", "psycopg"}
    callers = {name for name, path in modules().items() if drivers & libraries_of(path)}
    assert {name.rpartition(".")[0] for name in callers} == {"store.sql", "store.sqlite", "store.postgresql"}


def libraries_of(path: Path) -> set[str]:
    """The top-level names of what a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_every_module_belongs_to_a_layer() -> None:
    known = set().union(*SERVER, *CLIENT)
    assert {name.split(".")[0] for name in modules()} - known - {""} == set()


def test_netlab_imports_no_library_for_http_or_databases() -> None:
    for name, path in modules().items():
        if name.startswith(("netlab", "cache", "models")):
            text = path.read_text(encoding="utf-8")
            assert not {"starlette", "sqlalchemy", "httpx"} & {
                part.split(".")[0]
                for node in ast.walk(ast.parse(text))
                for part in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
            }, name


def loaded_by(script: str) -> set[str]:
    """The modules that a new interpreter has loaded at the end of a script, whatever its exit status."""
    script = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n{script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return set(done.stderr.split())


def test_a_server_loads_no_http_client() -> None:
    assert "httpx" not in loaded_by(f"import {NAME}.cli.main, {NAME}.cli.server")


@pytest.mark.parametrize("package", ["client", "testing", "models"])
def test_client_and_plugin_load_nothing_of_the_server(package: str) -> None:
    programs = ("testing.fake_",)  # tests run them as netlab, Docker and ip
    names = [f"{NAME}.{name}" for name in modules() if name.split(".")[0] == package and not name.startswith(programs)]
    loaded = loaded_by(f"import {', '.join(names)}")
    assert set(names) <= loaded
    packages = set().union(*SERVER) - set().union(*CLIENT)
    libraries = {"starlette", "sqlalchemy", "aiosqlite", "alembic", "uvicorn", "python_multipart", "prometheus_client"}
    assert not ({f"{NAME}.{name}" for name in packages} | libraries) & loaded


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "serve"])
def test_a_client_command_loads_no_module_of_the_server(command: str) -> None:
    loaded = loaded_by(f"from {NAME}.cli.main import main; main([{command!r}, '--help'])")
    assert "httpx" in loaded or command == "copy-database"
    assert not {"uvicorn", "starlette", "sqlalchemy", f"{NAME}.cli.server"} & loaded


def calls(path: Path) -> Iterator[tuple[str, str]]:
    """`module.function` of each call by such a name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            yield node.func.value.id, node.func.attr


def test_programs_are_started_in_one_module_of_server_and_client_and_without_a_shell() -> None:
    starters = {("subprocess", name) for name in ("run", "call", "check_call", "check_output", "Popen")}
    starters |= {("psutil", "Popen"), ("os", "system"), ("pty", "spawn")}
    starters |= {("asyncio", "create_subprocess_exec"), ("asyncio", "create_subprocess_shell")}
    calling = {name for name, path in modules().items() if starters & set(calls(path))}
    found = {name for name in calling if not name.startswith("testing.fake_")}  # separate programs
    assert found == {"netlab.process", "client.programs"}
    for name in found:
        assert "shell=True" not in modules()[name].read_text(encoding="utf-8")


def test_the_environment_is_read_in_few_modules() -> None:
    readers = {
        name
        for name, path in modules().items()
        if any(
            isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    }
    # `netlab.process` and `client.programs` pass it to the programs that they start. The client, the plugin and the
    # client commands read their own variables. The fakes, the preloaded netlab and the keeper are separate programs.
    ours = {name for name in readers if not name.startswith("testing.")}
    readers_of_the_server = {"cli.settings", "core.settings", "netlab.process", "netlab.preload"}
    assert ours == readers_of_the_server | {"client.access", "client.keeper", "client.programs", "client.progress"}


LONGEST_MODULE = 400
"""Lines."""
LONG_MODULES = {
    "client.lab_client": "one public class, half of which is its documentation",
    "testing.fake_docker": "a separate program, which tests copy as one file",
    "testing.fake_netlab": "a separate program, which tests copy as one file",
}
"""Modules that are longer, and why."""


def test_no_module_is_too_long() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name for name, count in lines.items() if count > LONGEST_MODULE} == LONG_MODULES.keys()
