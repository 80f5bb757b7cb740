"""How settings are declared, and read from flags and the environment.

Each room declares its own in its module `settings`, as a group: one field is one setting, and no room knows the
settings of another.
"""

import argparse
import difflib
import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from neops_remote_lab.core.text import one_line

ENVIRONMENT_PREFIX: Final = "NEOPS_REMOTE_LAB_"
OWN: Final = frozenset({"NEOPS_REMOTE_LAB_LAB_ID"})
"""Variables that the server itself sets, for the commands that it starts."""
ALL: Final = ("neops_remote_lab.cli.settings", "Settings")
"""Module and class of all settings. Named, not imported: nothing here knows a room. Whoever reads one group needs to
know that the variables of the others are no mistakes."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SettingsGroup(BaseModel):
    """Settings that belong together, under the title of the class; or several such groups, one a field.

    A setting `like_this` is a flag `--like-this` and a variable `NEOPS_REMOTE_LAB_LIKE_THIS`, in whatever group it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


Group = TypeVar("Group", bound=SettingsGroup)


@dataclass(frozen=True, slots=True)
class ComputedDefault:
    """What help and documentation say of a default that is computed; to be put into the annotation of the field."""

    text: str


def _group_of(field: FieldInfo) -> type[SettingsGroup] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, SettingsGroup) else None


def groups_of(kind: type[SettingsGroup]) -> Iterator[type[SettingsGroup]]:
    """The groups that have settings, in order: this one, or those that it consists of."""
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
    """The default of a setting for a reader; empty where there is none."""
    computed = [part.text for part in field.metadata if isinstance(part, ComputedDefault)]
    return computed[0] if computed else "" if field.default in (None, ()) else str(field.default)


def add_flags(parser: argparse.ArgumentParser, kind: type[SettingsGroup]) -> None:
    """Give a parser one flag for each setting. Absent flags leave no attribute behind."""
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
    """Settings from flags, then from the environment, then from the defaults.

    Args:
        flags: value by setting; what is no setting is ignored.
        environment: that of this process if it is None.

    Raises:
        ValueError: a value is wrong, or a variable names no setting; the message names the flag or the variable.
    """
    environment = os.environ if environment is None else environment
    _refuse_unknown(environment)
    names = settings_of(kind)
    given = {name: environment[variable(name)] for name in names if environment.get(variable(name))}
    chosen = {name: flags[name] for name in names if flags and name in flags}
    try:
        return kind.model_validate(_arranged(kind, {**given, **chosen}))
    except ValidationError as error:
        raise ValueError(_explain(error, kind, chosen)) from None


def _arranged(kind: type[SettingsGroup], values: Mapping[str, Any]) -> dict[str, Any]:
    """Value by setting, as a group of groups takes it."""
    arranged = {}
    for name, field in kind.model_fields.items():
        if group := _group_of(field):
            arranged[name] = _arranged(group, values)
        elif name in values:
            arranged[name] = values[name]
    return arranged


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    """A mistyped variable would otherwise count as not set, for example on a port that nobody asked for."""
    module, name = ALL
    known = [variable(name) for name in settings_of(getattr(importlib.import_module(module), name))]
    unknown = [name for name in environment if name.startswith(ENVIRONMENT_PREFIX) and name not in {*known, *OWN}]
    problems = []
    for name in sorted(unknown):
        nearest = difflib.get_close_matches(name, known, 1)
        meant = f": {nearest[0]} may be meant" if nearest else ""
        problems.append(f"the environment variable {one_line(name)} is no setting{meant}")
    if problems:
        raise ValueError("; ".join(problems))


def _explain(error: ValidationError, kind: type[SettingsGroup], flags: Mapping[str, Any]) -> str:
    lines = []
    for problem in error.errors():
        name = _setting_at(kind, problem["loc"])
        source = flag(name) if name in flags else variable(name)
        lines.append(f"{source}: {problem['msg']}, not {problem['input']!r}")
    return "; ".join(lines)


def _setting_at(kind: type[SettingsGroup], location: tuple[int | str, ...]) -> str:
    name, *rest = location
    group = _group_of(kind.model_fields[str(name)])
    return _setting_at(group, tuple(rest)) if group else str(name)
