"""What an attacker or an accident may send, as data: a new case is a new entry in a file beside this one."""

from pathlib import Path
from typing import Any, Final

import yaml


def load(name: str) -> Any:
    """The contents of one YAML file of the corpora."""
    return yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))


UNPRINTABLE: Final[dict[str, str]] = load("unprintable.yaml")
"""Characters that no name and no label may have, by what they are."""

TRACEBACKS: Final[dict[str, str]] = load("tracebacks.yaml")
"""Outputs of programs: what says HIDDEN may not be shown, what says `shown` must be."""
