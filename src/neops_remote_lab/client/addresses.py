"""Finds the address of a device in netlab's data."""

from typing import Final

from neops_remote_lab.models.lab import DeviceInfoDto

CONTAINER_CONNECTION: Final = "docker"
"""The Ansible connection of nodes that are reached with `docker exec`; their `ansible_host` is a container's name."""


def address_of(device: DeviceInfoDto) -> str | None:
    """The address or host name for a login to a device; None if netlab has none."""
    raw = device.raw
    management = raw.get("mgmt") or {}
    managed: str | None = management.get("ipv4") or management.get("ipv6")
    host: str | None = raw.get("ansible_host")
    return (managed or host) if raw.get("ansible_connection") == CONTAINER_CONNECTION else (host or managed)
