"""Responses that are safe in any context: JSON embedded in HTML, messages printed to a terminal."""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel
from starlette.responses import Response

from neops_remote_lab.core.text import printable_lines

NEVER_SNIFFED: Final = ("X-Content-Type-Options", "nosniff")
"""A header of every response, so that browsers do not treat other content types as HTML."""
_ESCAPES: Final = tuple((character.encode(), f"\\u{ord(character):04x}".encode()) for character in "<>&\u2028\u2029")


def json_response(body: BaseModel | bytes, code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    r"""A JSON response from a model or from JSON text, with `<`, `>` and `&` as `\u003c`, `\u003e` and `\u0026`.

    In JSON these characters occur only inside strings, so every parser reads the same values.
    """
    content = body if isinstance(body, bytes) else body.model_dump_json().encode()
    return Response(escape(content), code, headers, "application/json")


def escape(content: bytes) -> bytes:
    """JSON text as `json_response` sends it."""
    for character, escaped in _ESCAPES:
        content = content.replace(character, escaped)
    return content


def error_response(detail: Any, code: int, headers: Mapping[str, str] | None = None) -> Response:
    """An error response `{"detail": …}`. Control characters in a message are escaped."""
    shown = printable_lines(detail) if isinstance(detail, str) else detail
    return json_response(json.dumps({"detail": shown}).encode(), code, headers)
