"""Responses that are harmless wherever they end up: JSON in an HTML page, a sentence in a terminal."""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel
from starlette.responses import Response

from neops_remote_lab.core.text import printable_lines

NEVER_SNIFFED: Final = ("X-Content-Type-Options", "nosniff")
"""A header of every response: a browser takes none for HTML that is not declared so."""
_ESCAPES: Final = tuple((character.encode(), f"\\u{ord(character):04x}".encode()) for character in "<>&\u2028\u2029")


def json_response(body: BaseModel | bytes, code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    r"""A JSON response from a model or from JSON text; `<`, `>` and `&` are written as `\u003c`, `\u003e` and `\u0026`.

    These characters occur in strings alone, so the values are the same to every JSON parser.
    """
    content = body if isinstance(body, bytes) else body.model_dump_json().encode()
    for character, escaped in _ESCAPES:
        content = content.replace(character, escaped)
    return Response(content, code, headers, "application/json")


def error_response(detail: Any, code: int, headers: Mapping[str, str] | None = None) -> Response:
    """The response to a call that failed: `{"detail": …}`. What a terminal would act on in a sentence is escaped."""
    shown = printable_lines(detail) if isinstance(detail, str) else detail
    return json_response(json.dumps({"detail": shown}).encode(), code, headers)
