"""Parses the headers of a multipart form and its parts.

The multipart library's parser needs time proportional to the number of semicolons times the length of the header, so
both are limited. The caller limits the length of a part's header.
"""

from email.utils import decode_rfc2231
from typing import Final
from urllib.parse import unquote

from python_multipart.multipart import parse_options_header

MAX_CONTENT_TYPE: Final = 1024
"""Maximum length of the header Content-Type, in characters."""
MAX_SEMICOLONS: Final = 100
"""Maximum number of semicolons in a header, including those in file names."""


def boundary_of(content_type: str) -> bytes:
    """The boundary of a form.

    Args:
        content_type: the header, decoded as Latin-1.

    Raises:
        ValueError: the header is too long, or the body is not a multipart form.
    """
    if len(content_type) > MAX_CONTENT_TYPE:
        raise ValueError(f"the header Content-Type has more than {MAX_CONTENT_TYPE} characters")
    kind, options = _parse(content_type.encode("latin-1"))
    if kind != b"multipart/form-data" or not (boundary := options.get(b"boundary")):
        raise ValueError("the body must be multipart/form-data with the file field 'topology'")
    return boundary


def names_of(disposition: bytes) -> tuple[str | None, str | None]:
    """The field name and the file name in a part's Content-Disposition; None if one is missing.

    Raises:
        ValueError: a name is not UTF-8, or there are too many parameters.
    """
    _, options = _parse(disposition)
    field, file_name = options.get(b"name"), options.get(b"filename")
    return (
        None if field is None else _decode(field),
        _extended_file_name(disposition) if file_name is None else _decode(file_name),
    )


def _extended_file_name(disposition: bytes) -> str | None:
    """The file name in RFC 2231 notation, which older HTTP libraries use for non-ASCII names."""
    # The library drops such parameters, so rename the parameter.
    renamed = _parse(disposition.replace(b"filename*=", b"extended="))[1].get(b"extended")
    if renamed is None:
        return None
    try:
        return unquote(decode_rfc2231(renamed.decode("ascii"))[2], errors="strict")
    except UnicodeDecodeError as error:
        raise _not_utf8(renamed) from error


def _parse(header: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    if header.count(b";") > MAX_SEMICOLONS:
        raise ValueError(f"a header of the form has more than {MAX_SEMICOLONS} semicolons")
    return parse_options_header(header)


def _decode(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(name) from error


def _not_utf8(name: bytes) -> ValueError:
    return ValueError(f"the name {name[:50]!r} in the form is not UTF-8")
