"""Refuses files that are not topologies or would keep netlab busy for minutes, quickly and with little memory.

Small files can be expensive: nested aliases expand exponentially, PyYAML needs time quadratic in the number of `%TAG`
lines, a base-60 number of one megabyte takes a minute to parse, and netlab's search for duplicate keys is quadratic in
the size of a mapping. Every limit is therefore checked before the file is parsed, or event by event while it is. All
limits are far above what real topologies need.
"""

import re
import threading
from dataclasses import dataclass
from itertools import islice
from typing import Final

import yaml

from neops_remote_lab.core.text import one_line

MAX_DEPTH: Final = 64
"""Maximum nesting of a topology, because netlab's parser recurses."""
TOO_DEEP: Final = f"the topology is nested too deeply: more than {MAX_DEPTH} levels"
MAX_KEYS: Final = 2000
"""Maximum number of keys of a mapping, because netlab compares each key with all others."""
MAX_DIRECTIVES: Final = 8
"""Maximum number of lines that begin with %. libyaml parses all of them in one call, which holds the GIL."""
MAX_TAG: Final = 256
"""Maximum length of a tag, including a prefix from a %TAG line, because each use is a copy."""
MAX_NUMBER: Final = 256
"""Maximum length of a number: parsing a base-60 number takes time quadratic in its length."""
SHOWN_NAME: Final = 50
"""Maximum length of a name in a message."""

_TOO_DEEP_TO_READ: Final = "exceeded maximum nesting depth"
"""libyaml's own error above 1000 levels, which comes before any event."""
_NUMBER_TAGS: Final = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_NUMBER: Final = re.compile(r"[-+]?(?:0[bx][0-9A-Fa-f_]*|[0-9.][0-9_:.]*(?:[eE][-+]?[0-9]*)?)")
_DIRECTIVE: Final = re.compile(r"(?:\A|[\n\r\x85\u2028\u2029])%")

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_reading: Final = threading.Lock()
"""One file is parsed at a time: several parsers would compete for the GIL and delay the event loop."""


def check_topology(content: bytes, *, max_nodes: int) -> None:
    """Refuse content that is not a topology or would make netlab use too much time or memory.

    Raises:
        ValueError: the content is not UTF-8, is not a YAML mapping, has more than `max_nodes` YAML nodes after alias
            expansion, or exceeds another limit of this module.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the topology is not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise ValueError("the topology is empty")
    if len(list(islice(_DIRECTIVE.finditer(text), MAX_DIRECTIVES + 1))) > MAX_DIRECTIVES:
        raise ValueError(f"the topology has more than {MAX_DIRECTIVES} lines that begin with % (YAML directives)")
    with _reading:
        root = _read(text, max_nodes)
    if not isinstance(root, yaml.MappingStartEvent):
        raise ValueError("the topology must be a YAML mapping, with nodes and links")


def _read(text: str, max_nodes: int) -> yaml.Event | None:
    tree = _Tree(max_nodes)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            tree.take(event)
    except yaml.YAMLError as error:
        if getattr(error, "problem", None) == _TOO_DEEP_TO_READ:
            raise ValueError(TOO_DEEP) from None
        raise ValueError(f"the topology is not valid YAML: {error}") from None
    return tree.root


@dataclass(slots=True)
class _Collection:
    """An open list or mapping; `before` is the number of nodes counted before it."""

    anchor: str | None
    before: int
    is_mapping: bool
    children: int = 0

    def take_child(self) -> None:
        """Count an item, a key or a value."""
        self.children += 1
        if self.is_mapping and self.children > 2 * MAX_KEYS:
            raise ValueError(f"the topology has a mapping with more than {MAX_KEYS} keys")


class _Tree:
    """Counts the nodes of a YAML document event by event, without building objects and without recursion."""

    def __init__(self, max_nodes: int) -> None:
        self.root: yaml.Event | None = None
        self._max_nodes = max_nodes
        self._size = 0
        self._open: list[_Collection] = []
        self._anchors: dict[str, int | None] = {}

    def take(self, event: yaml.Event) -> None:
        """Count one event. Raises ValueError if the document exceeds a limit."""
        if isinstance(event, yaml.NodeEvent) and self._open:
            self._open[-1].take_child()
        if isinstance(event, yaml.ScalarEvent):
            self._take_scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            self._add(self._size_of(event.anchor or ""))
        elif isinstance(event, yaml.CollectionStartEvent):
            self._begin(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = self._open.pop()
            if closed.anchor:
                self._anchors[closed.anchor] = self._size - closed.before
        elif isinstance(event, yaml.DocumentStartEvent) and self.root:
            raise ValueError("the topology is not valid YAML: it holds more than one document")

    def _add(self, nodes: int) -> None:
        self._size += nodes
        if self._size > self._max_nodes:
            raise ValueError(f"the topology has more than {self._max_nodes} YAML nodes once its aliases are expanded")

    def _take_scalar(self, event: yaml.ScalarEvent) -> None:
        self._add(1)
        self.root = self.root or event
        if event.anchor:
            self._anchors[event.anchor] = 1
        if event.tag:
            _check_tag(event.tag)
        if len(event.value) > MAX_NUMBER and _is_number(event):
            raise ValueError(
                f"the topology has a number of {len(event.value)} characters, and at most {MAX_NUMBER} are allowed:"
                " put it in quotes if it is text"
            )

    def _begin(self, event: yaml.CollectionStartEvent) -> None:
        self.root = self.root or event
        self._open.append(_Collection(event.anchor, self._size, isinstance(event, yaml.MappingStartEvent)))
        if len(self._open) > MAX_DEPTH:
            raise ValueError(TOO_DEEP)
        if event.anchor:
            self._anchors[event.anchor] = None
        if event.tag:
            _check_tag(event.tag)
        self._add(1)

    def _size_of(self, anchor: str) -> int:
        shown = one_line(anchor, SHOWN_NAME)
        if anchor not in self._anchors:
            raise ValueError(f"the topology is not valid YAML: there is nothing for its alias *{shown}")
        if (size := self._anchors[anchor]) is None:
            raise ValueError(f"the topology has an alias that contains itself: *{shown}")
        return size


def _check_tag(tag: str) -> None:
    if len(tag) > MAX_TAG:
        raise ValueError(f"the topology has a YAML tag of more than {MAX_TAG} characters")


def _is_number(event: yaml.ScalarEvent) -> bool:
    """Whether a parser would read a scalar as a number: because of its tag, or its form if it is not quoted."""
    if event.tag:
        return event.tag in _NUMBER_TAGS
    return event.implicit[0] and _NUMBER.fullmatch(event.value) is not None
