"""A stand-in for ``ip``: removes the bridges and network namespaces that the fake ``netlab`` has made; no more.

It works below ``FAKE_NETLAB_STATE``, as the fake ``netlab`` does, in ``system/``.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn


def main() -> NoReturn:
    """Run `ip link delete dev NAME type bridge` or `ip netns delete NAME`."""
    system = Path(os.environ.get("FAKE_NETLAB_STATE") or Path.home() / ".fake-netlab") / "system"
    match sys.argv[1:]:
        case ["link", "delete", "dev", name, "type", "bridge"] if (system / "sys/class/net" / name / "bridge").is_dir():
            shutil.rmtree(system / "sys/class/net" / name)
        case ["netns", "delete", name] if os.path.lexists(system / "run/netns" / name):
            (system / "run/netns" / name).unlink()
        case _:
            sys.exit(f"Cannot find device or network namespace: ip {' '.join(sys.argv[1:])}")
    sys.exit(0)


if __name__ == "__main__":
    main()
