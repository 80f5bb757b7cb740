"""Reads how much memory the containers of labs use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ByteSize, TypeAdapter, ValidationError

from neops_remote_lab.models.lab import DeviceInfoDto
from neops_remote_lab.netlab.leftovers import NOT_DOCKER, Container, Docker, all_containers

_STATS: Final = ("stats", "--no-stream", "--no-trunc", "--format", "{{.ID}} {{.MemUsage}}")
_SIZE: Final = TypeAdapter(ByteSize)


class NodeMemory(NamedTuple):
    """The memory of one container, in bytes."""

    container: Container
    used: int


def images_of(devices: Sequence[DeviceInfoDto]) -> list[str]:
    """The image of each device; empty for one without an image."""
    return [str(device.raw.get("box") or "") for device in devices]


def memory_below(directory: Path, docker: Docker) -> list[NodeMemory]:
    """The memory of each container of the labs below a directory. This takes Docker a second or two.

    Raises:
        ValueError: the output is not Docker's.
        The exceptions of `run_netlab`.
    """
    containers = {found.identifier: found for found in all_containers(docker) if found.is_below(directory)}
    if not containers:
        return []
    found = []
    for line in docker([*_STATS, *containers]).splitlines():
        identifier, _, usage = line.partition(" ")  # such as "28.5MiB / 7.6GiB"
        try:
            container, used = containers[identifier], _SIZE.validate_python(usage.partition("/")[0].strip())
        except (LookupError, ValidationError):
            raise ValueError(NOT_DOCKER) from None
        found.append(NodeMemory(container, used))
    return found
