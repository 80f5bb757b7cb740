"""Declares settings, and reads them from flags and environment variables.

Each package declares its settings as a group in its module `settings`, one field per setting. A package does not know
the settings of another.
"""

import argparse
import difflib
import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from neops_remote_lab.core.text import hide_secrets, one_line

ENVIRONMENT_PREFIX: Final = "NEOPS_REMOTE_LAB_"
OWN: Final = frozenset({"NEOPS_REMOTE_LAB_LAB_ID"})
"""Variables that the server sets for its child processes."""
ALL: Final = ("neops_remote_lab.cli.settings", "Settings")
"""Module and class that combine all groups. They are needed even to read one group, so that the variables of other
groups do not count as mistakes. Given by name, because `core` must not import other packages."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SettingsGroup(BaseModel):
    """Settings with a common title, or several such groups, one per field.

    In every group, a setting `like_this` has the flag `--like-this` and the variable `NEOPS_REMOTE_LAB_LIKE_THIS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


Group = TypeVar("Group", bound=SettingsGroup)


@dataclass(frozen=True, slots=True)
class ComputedDefault:
    """Describes a computed default in help texts and documentation. Put it into the annotation of the field."""

    text: str


def _group_of(field: FieldInfo) -> type[SettingsGroup] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, SettingsGroup) else None


def groups_of(kind: type[SettingsGroup]) -> Iterator[type[SettingsGroup]]:
    """The groups that declare settings, in order: this group, or the groups that it consists of."""
    inner = [group for field in kind.model_fields.values() if (group := _group_of(field))]
    if not inner:
        yield kind
    for group in inner:
        yield from groups_of(group)


def settings_of(kind: type[SettingsGroup]) -> dict[str, FieldInfo]:
    """The settings of a group and of the groups in it, by name."""
    return {name: field for group in groups_of(kind) for name, field in group.model_fields.items()}


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return ENVIRONMENT_PREFIX + name.upper()


def default_text(field: FieldInfo) -> str:
    """The default of a setting as help texts show it; empty if there is none."""
    computed = [part.text for part in field.metadata if isinstance(part, ComputedDefault)]
    return computed[0] if computed else "" if field.default in (None, ()) else str(field.default)


def add_flags(parser: argparse.ArgumentParser, kind: type[SettingsGroup]) -> None:
    """Add one flag per setting to a parser. A flag that is not given sets no attribute."""
    for group in groups_of(kind):
        section = parser.add_argument_group(group.model_config.get("title"))
        for name, field in group.model_fields.items():
            default = default_text(field)
            text = f"{field.description}{default and f' (default: {default})'}".replace("%", "%%")
            if field.annotation is bool:
                switch = argparse.BooleanOptionalAction
                section.add_argument(flag(name), action=switch, default=argparse.SUPPRESS, help=text)
            else:
                section.add_argument(flag(name), metavar=name.upper(), default=argparse.SUPPRESS, help=text)


def read_settings(
    kind: type[Group], flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Group:
    """Read settings. A flag wins over a variable, and a variable over the default.

    Args:
        flags: values by setting; other keys are ignored.
        environment: the variables; None means those of this process.

    Raises:
        ValueError: a value is invalid, or a variable with our prefix is unknown; the message names it.
    """
    environment = os.environ if environment is None else environment
    names = settings_of(kind)
    _refuse_unknown(environment, names)
    given = {name: environment[variable(name)] for name in names if environment.get(variable(name))}
    chosen = {name: flags[name] for name in names if flags and name in flags}
    try:
        return kind.model_validate(_arranged(kind, {**given, **chosen}))
    except ValidationError as error:
        raise ValueError(_explain(error, kind, chosen)) from None


def _arranged(kind: type[SettingsGroup], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, nested as the group nests its settings."""
    arranged = {}
    for name, field in kind.model_fields.items():
        if group := _group_of(field):
            arranged[name] = _arranged(group, values)
        elif name in values:
            arranged[name] = values[name]
    return arranged


def _refuse_unknown(environment: Mapping[str, str], names: Iterable[str]) -> None:
    """Refuse variables with our prefix that are no setting: a mistyped one would otherwise be ignored silently.

    Args:
        names: the settings to read. The others need not be loaded if no other variable is set.
    """
    ours = {name for name in environment if name.startswith(ENVIRONMENT_PREFIX)} - OWN - set(map(variable, names))
    if not ours:
        return
    module, name = ALL
    known = [variable(name) for name in settings_of(getattr(importlib.import_module(module), name))]
    unknown = ours - set(known)
    problems = []
    for name in sorted(unknown):
        nearest = difflib.get_close_matches(name, known, 1)
        meant = f": {nearest[0]} may be meant" if nearest else ""
        problems.append(f"the environment variable {one_line(name)} is not a setting{meant}")
    if problems:
        raise ValueError("; ".join(problems))


def _explain(error: ValidationError, kind: type[SettingsGroup], flags: Mapping[str, Any]) -> str:
    lines = []
    for problem in error.errors():
        name = _setting_at(kind, problem["loc"])
        source = flag(name) if name in flags else variable(name)
        given = problem["input"]
        shown = hide_secrets(given) if isinstance(given, str) and "://" in given else given
        lines.append(f"{source}: {problem['msg']}, not {shown!r}")
    return "; ".join(lines)


def _setting_at(kind: type[SettingsGroup], location: tuple[int | str, ...]) -> str:
    name, *rest = location
    group = _group_of(kind.model_fields[str(name)])
    return _setting_at(group, tuple(rest)) if group else str(name)
