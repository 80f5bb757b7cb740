"""Tables of docs/ that are generated from the code; cog inserts them into the pages (`make docs`)."""

import ast
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from neops_remote_lab.cli.settings import Settings
from neops_remote_lab.core.codes import EndCode, EventKind, OutcomeCode, QuarantineSource
from neops_remote_lab.core.metrics import FAMILIES, PREFIX, Family
from neops_remote_lab.core.settings import SettingsGroup, default_text, flag, groups_of, variable
from neops_remote_lab.testing import options

PACKAGE: Final = Path(__file__).parents[1] / "src" / "neops_remote_lab"
STEP: Final = 100
"""Sizes of modules are rounded up to this, so that the page does not change with every line."""


def settings() -> str:
    """All settings, a section for each group."""
    return "".join(f"\n## {group.model_config.get('title')}\n{_group(group)}" for group in groups_of(Settings)) + "\n"


def metrics() -> str:
    """All metrics."""
    rows = [(f"`{PREFIX}{family.name}`", family.type, family.help, _labels(family)) for family in FAMILIES]
    return _table(("metric", "type", "meaning", "labels"), rows) + "\n"


def plugin_settings() -> str:
    """The settings of the pytest plugin."""
    rows = [
        (*(f"`{named(name)}`" for named in (options.flag, options.variable, options.key)), _code(default), meaning)
        for name, (_, default, meaning) in options.SETTINGS.items()
    ]
    return _table(("flag", "variable", "ini key", "default", "meaning"), rows) + "\n"


def _code(text: str | None) -> str:
    return "none" if text is None else f"`{text}`"


def fields(model: type[BaseModel]) -> str:
    """The fields of a response."""
    rows = [(f"`{name}`", field.description or "") for name, field in model.model_fields.items()]
    return _table(("field", "meaning"), rows) + "\n"


def end_codes() -> str:
    """Why sessions end."""
    return _messages("end_code", "end_detail", EndCode)


def outcome_codes() -> str:
    """How labs end."""
    return _messages("outcome_code", "outcome_detail", OutcomeCode)


def _messages(code_column: str, message_column: str, codes: Iterable[EndCode | OutcomeCode]) -> str:
    rows = [(f"`{code}`", code.message.replace("{max_hold:g}", "…")) for code in codes]
    return _table((f"`{code_column}`", f"`{message_column}`"), rows) + "\n"


def events() -> str:
    """The kinds of events, with the codes and details that they have."""
    columns: dict[EventKind, tuple[type[StrEnum] | None, str]] = {
        EventKind.SESSION_MOVED: (None, "the old and the new rank"),
        EventKind.SESSION_ENDED: (EndCode, "the reason, as a message"),
        EventKind.LAB_ENDED: (OutcomeCode, "the outcome, as a message"),
        EventKind.QUARANTINE_SET: (QuarantineSource, "the reason; the code says who set it"),
        EventKind.QUARANTINE_LIFTED: (QuarantineSource, "the reason; the code says who had set it"),
    }
    rows = []
    for kind in EventKind:
        codes, detail = columns.get(kind, (None, ""))
        rows.append((f"`{kind}`", ", ".join(f"`{code}`" for code in codes or ()), detail))
    return _table(("`what`", "`code`", "`detail`"), rows) + "\n"


def modules() -> str:
    """The modules of each room, with their size and purpose."""
    rows = []
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (path.parent, path.name)):
        source = path.read_text(encoding="utf-8")
        purpose = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].replace("\n", " ")
        if path.name != "__init__.py":
            lines = -(-source.count("\n") // STEP) * STEP
            rows.append((f"`{path.relative_to(PACKAGE)}`", f"≤ {lines}", purpose.replace("|", "\\|")))
    return _table(("module", "lines", "purpose"), rows) + "\n"


def _group(group: type[SettingsGroup]) -> str:
    rows = [
        (f"`{flag(name)}`", f"`{variable(name)}`", _default(field), field.description or "")
        for name, field in group.model_fields.items()
    ]
    return _table(("flag", "variable", "default", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    text = default_text(field)
    if field.default_factory or not text:
        return text or "none"
    return f"`{text.lower() if field.annotation is bool else text}`"


def _labels(family: Family) -> str:
    values = {label: ", ".join(f"`{value}`" for value in known) for label, known in family.labels.items()}
    return "; ".join(f"`{label}`: {known}" for label, known in values.items())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
