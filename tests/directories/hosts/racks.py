"""A netlab plugin: each node has a rack of its own."""

from typing import Any


def post_transform(topology: Any) -> None:
    for number, node in enumerate(topology.nodes.values(), 1):
        node.rack = number
