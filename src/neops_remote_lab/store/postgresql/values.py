"""Values as PostgreSQL can store them."""

import json
from typing import Any

from psycopg.abc import Buffer
from psycopg.types.string import StrDumperUnknown

from neops_remote_lab.store.sql.tables import written


class TextDumper(StrDumperUnknown):
    """Replaces the one character that PostgreSQL cannot store."""

    def dump(self, obj: str) -> Buffer | None:
        """The text as it is sent."""
        return super().dump(_storable(obj))


def as_json(rows: list[Any]) -> str:
    """JSON whose texts can be stored, with times in UTC."""
    return json.dumps(_stored(rows), default=written)


def _stored(value: Any) -> Any:
    match value:
        case str():
            return _storable(value)
        case list() | tuple():
            return [*map(_stored, value)]
    return value


def _storable(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
