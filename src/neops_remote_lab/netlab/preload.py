"""Imports netlab before there is anything to do: most of netlab's start-up time is imports.

The Python of the netlab command runs this file as `python preload.py /path/to/netlab`, so it cannot import our package.
The process then waits for one line of JSON on standard input, which says what to run; netlab reads the rest of standard
input. At end of file it exits.
"""

import gc
import importlib
import json
import os
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGE = "netsim"
MODULE = f"{PACKAGE}.cli.up"
"""The module of `netlab up`; importing it loads everything that the command needs."""


def main(script: str) -> None:
    """Import netlab, wait for the order, and run the netlab script in this process."""
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[0] = str(Path(script).parent)  # as if the script itself had been started
    with suppress(ImportError):  # a netlab version with other modules, which imports them when it runs
        importlib.import_module(MODULE)
    gc.freeze()  # imported modules are never freed, so collections need not traverse them
    before = _loaded()
    order = _read_order()
    if order is None:
        return
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    sys.argv = [script, *order["arguments"]]
    if _loaded() != before:  # netlab was upgraded meanwhile: do not mix old and new modules
        os.execv(script, sys.argv)  # noqa: S606 - the configured netlab command
    runpy.run_path(script, run_name="__main__")


def _loaded() -> dict[str, tuple[int, int]]:
    """The imported files of netlab, with their current modification time and size."""
    found = {}
    for name, module in sys.modules.items():
        if name.partition(".")[0] == PACKAGE and (file := getattr(module, "__file__", None)):
            with suppress(OSError):
                status = Path(file).stat()
                found[file] = status.st_mtime_ns, status.st_size
    return found


def _read_order() -> "dict[str, Any] | None":
    line = bytearray()
    while not line.endswith(b"\n"):
        if not (byte := os.read(0, 1)):  # byte by byte, because netlab and its children read the rest
            return None
        line += byte
    order: dict[str, Any] = json.loads(line)
    return order


if __name__ == "__main__":
    main(sys.argv[1])
