"""Checks the output of `make build`: the wheel contains only what the server needs, and the sdist builds it."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NEEDED = ("py.typed", "store/sql/alembic/env.py", "api/static/swagger-ui/LICENSE", "testing/plugin.py")
PACKAGE = "neops_remote_lab/"


def names(wheel: Path) -> set[str]:
    """The files of a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def main(directory: str) -> int:
    """Print errors, and return the exit status."""
    (wheel,) = Path(directory).glob("*.whl")
    (sdist,) = Path(directory).glob("*.tar.gz")
    found = names(wheel)
    wrong = [f"the wheel lacks {name}" for name in NEEDED if PACKAGE + name not in found]
    wrong += [f"the wheel installs {name}" for name in sorted(found) if not name.startswith(PACKAGE)]
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--wheel-dir", scratch, str(sdist)], check=True)
        (again,) = Path(scratch).glob("*.whl")
        wrong += [f"{name} is not in both wheels" for name in sorted(names(again) ^ found)]
    for line in wrong:
        sys.stderr.write(f"{line}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
