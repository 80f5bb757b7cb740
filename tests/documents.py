"""The commands and files in the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md"), *ROOT.glob("bench/*.md")])

NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->\n+\Z", re.DOTALL)
"""The marker before a block that the tests cannot run."""

BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"\A# (?P<name>[\w./-]+\.\w+)\b")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    heading: str
    language: str
    text: str
    not_run: str | None

    @property
    def file(self) -> str | None:
        """The file name in the comment of the first line, if there is one."""
        named = FILE_NAME.match(self.text)
        return named["name"] if named else None

    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console block without their prompts, each with the output that the page shows."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        if parts[0]:
            raise ValueError(f"{self}: a console block begins with a prompt")
        found = []
        for part in parts[1:]:
            command, _, output = re.sub(r"\\\n", "", part).partition("\n")
            found.append((command.partition("   # ")[0].rstrip(), output))
        return found

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        before = text[: match.start()]
        headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", before), flags=re.MULTILINE)
        marker = NOT_RUN.search(before)
        found.append(
            Block(
                page=str(page.relative_to(ROOT)),
                line=before.count("\n") + 1,
                heading=headings[-1] if headings else "",
                language=match["language"],
                text=match["text"],
                not_run=" ".join(marker["reason"].split()) if marker else None,
            )
        )
    return found


def file_of(page: str, name: str) -> str:
    """The contents of a file that a page shows."""
    (text,) = [block.text for block in blocks(ROOT / page) if block.file == name]
    return text
