"""The tables of docs/ that are made from the code; cog puts them into the pages (`make docs`)."""

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from neops_remote_lab.cli.settings import Settings
from neops_remote_lab.core.settings import default_text, flag, groups_of, variable


def settings() -> str:
    """All settings, a section for each group."""
    return "\n".join(_settings())


def _settings() -> Iterator[str]:
    for group in groups_of(Settings):
        yield f"\n## {group.model_config.get('title')}\n"
        yield _row("flag", "variable", "default", "meaning")
        yield _row(*["---"] * 4)
        for name, field in group.model_fields.items():
            yield _row(f"`{flag(name)}`", f"`{variable(name)}`", _default(field), field.description)
    yield "\n"


def fields(model: type[BaseModel]) -> str:
    """The fields of a response."""
    head = [_row("field", "meaning"), _row(*["---"] * 2)]
    rows = [_row(f"`{name}`", field.description) for name, field in model.model_fields.items()]
    return "\n".join(["", *head, *rows, "\n"])


def _default(field: FieldInfo) -> str:
    text = default_text(field)
    if field.default_factory or not text:
        return text or "none"
    return f"`{text.lower() if field.annotation is bool else text}`"


def _row(*cells: str | None) -> str:
    return f"| {' | '.join(map(str, cells))} |"
