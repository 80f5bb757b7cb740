"""What differs between the databases in the statements of the stores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Dialect:
    """Parts of statements, as one database understands them."""

    insert: Callable[..., Any]
    """SQLAlchemy's INSERT statement with ON CONFLICT."""
    joining: str
    """A query for the rows of the JSON list `:joining`: position, session_id, client, purpose, idempotency_key, at."""
    seen: str
    """A query for the rows of the JSON list `:seen`: session_id, at."""
    listed: str
    """A condition: `session_id` is in the JSON list `:session_ids`."""
