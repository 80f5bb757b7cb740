"""Hostile and damaged uploads, as data: a new case is a new entry in a file beside this one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.fakes import topology_text

BOUNDARY: Final = "gc0p4Jq0M2Yt08jU534c0p"
FORM: Final = f"multipart/form-data; boundary={BOUNDARY}"


def load(name: str) -> Any:
    """The contents of one YAML file of the corpora."""
    return yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))


UNPRINTABLE: Final[dict[str, str]] = load("unprintable.yaml")
"""Characters that are refused in names and labels, by a description."""

TRACEBACKS: Final[dict[str, str]] = load("tracebacks.yaml")
"""Outputs of programs. Lines with `HIDDEN` must not be shown, lines with `shown` must be."""

REFUSED_NAMES: Final[list[tuple[str, str]]] = [
    (name, sentence) for group in load("names.yaml").values() for name, sentence in group
]
"""Names that no extra file may have, each with a part of the message that gives the reason."""


@dataclass(frozen=True)
class Upload:
    """An upload that is refused: send `body()` with `content_type()` to POST /lab or POST /topology/check."""

    name: str
    status: int
    sentence: str
    """A part of the answer's `detail`."""
    fields: dict[str, Any]

    def topology(self) -> bytes:
        """The contents of the topology."""
        return _join(self.fields.get("topology", [topology_text(1)]))

    def content_type(self) -> bytes:
        """The header Content-Type."""
        return _join(self.fields.get("content_type", [FORM]), "latin-1")

    def body(self) -> bytes:
        """The form."""
        name = _join(self.fields.get("topology_name", ["topology.yml"])).decode()
        parts = [_part("topology", name, self.topology())]
        parts += [_part("extra_files", extra, b"x") for extra in self.fields.get("extra", [])]
        return b"".join(parts) + b"--%s--\r\n" % BOUNDARY.encode()


UPLOADS: Final[list[Upload]] = [
    Upload(entry.pop("name"), entry.pop("status"), entry.pop("sentence"), entry) for entry in load("uploads.yaml")
] + [Upload(f"file name {name}", 400, sentence, {"extra": [name]}) for name, sentence in REFUSED_NAMES]
"""Uploads that are refused before netlab runs. `body()` creates the contents, because some are large."""


def _part(field: str, file_name: str, content: bytes) -> bytes:
    shown = file_name.replace("\\", "\\\\").encode()
    head = b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n'
    return head % (BOUNDARY.encode(), field.encode(), shown) + content + b"\r\n"


def _join(pieces: list[Any], encoding: str = "utf-8") -> bytes:
    return b"".join(_piece(piece, encoding) for piece in pieces)


def _piece(piece: Any, encoding: str) -> bytes:
    if isinstance(piece, str):
        return piece.encode(encoding)
    times = int(piece.get("times", 1))
    if "hex" in piece:
        return bytes.fromhex(piece["hex"]) * times
    text = str(piece["text"])
    if "{n}" not in text:
        return text.encode(encoding) * times
    return "".join(text.replace("{n}", str(number)) for number in range(times)).encode(encoding)
