"""A netlab that is loaded before anybody knows what it is to do: most of the start-up of a netlab is its imports.

Run by the Python of the netlab command, as `python preload.py /path/to/netlab`: it can import nothing of ours. Its
order is one line of JSON on standard input, of which netlab itself reads the rest. Without an order it ends.
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
"""What `netlab up` imports, with all that comes with it."""


def main(script: str) -> None:
    """Load netlab, wait for the order, and be the netlab that the script starts."""
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[0] = str(Path(script).parent)  # not our directory: as when the script itself is run
    with suppress(ImportError):  # another netlab, which loads what it needs later
        importlib.import_module(MODULE)
    gc.freeze()  # these modules live as long as the process: the collector need not look at them again and again
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
    if _loaded() != before:  # netlab has been replaced since: half of it would be the old one, and half the new one
        os.execv(script, sys.argv)  # noqa: S606 - the very command that was asked for
    runpy.run_path(script, run_name="__main__")


def _loaded() -> dict[str, tuple[int, int]]:
    """The files of netlab that are imported, as they are now: time of the last change, and size."""
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
        if not (byte := os.read(0, 1)):  # no more than the line: the rest is for netlab, and for what it starts
            return None
        line += byte
    order: dict[str, Any] = json.loads(line)
    return order


if __name__ == "__main__":
    main(sys.argv[1])
