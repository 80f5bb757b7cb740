"""Rewrites the variables of devices so that they are reachable from this machine, through forwarded ports.

netlab's variables contain addresses of the lab host's networks and, for containers, an Ansible connection that works
only on the lab host. They are replaced by an address and a port of this machine, and by SSH where necessary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final, Protocol, Self

from neops_remote_lab.models.lab import DeviceInfoDto

ORIGINAL: Final = "remote_lab_original"
"""The variable with the replaced values; null for variables that were not set."""
SSH_PORT: Final = 22
NETCONF_PORT: Final = 830
_SSH: Final = "ssh"
_ON_THE_LAB_HOST: Final = frozenset({"", "docker", "podman", "local"})
"""Ansible connections that work only on the lab host."""
_SSH_CLIENT: Final = frozenset({"ssh", "paramiko", "paramiko_ssh", "libssh", "smart"})
_NO_HOST_KEYS: Final = {
    "ansible_host_key_checking": False,
    "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
}
"""Host keys cannot be checked: each lab has new ones, and a local port leads to another device the next time."""


class Port(Protocol):
    """An address that leads to a port of a device while its context is open."""

    @property
    def host(self) -> str:
        """An address that this machine can reach."""

    @property
    def port(self) -> int:
        """The TCP port at that address."""

    def __enter__(self) -> Self:
        """Return the port."""

    def __exit__(self, *_: object) -> None:
        """Close the address; nothing needs to lead to the device any more."""


@contextmanager
def reachable(
    devices: Sequence[DeviceInfoDto], forward: Callable[[DeviceInfoDto, int], Port]
) -> Iterator[list[DeviceInfoDto]]:
    """The devices with ports of this machine in their variables. The ports are open until the context ends.

    Args:
        devices: the devices as returned by the server.
        forward: opens a forwarded port of a device.
    """
    with ExitStack() as stack:

        def open_port(device: DeviceInfoDto, port: int) -> Port:
            return stack.enter_context(forward(device, port))

        yield [_through(device, partial(open_port, device)) for device in devices]


def _through(device: DeviceInfoDto, forward: Callable[[int], Port]) -> DeviceInfoDto:
    raw = device.raw
    connection = str(raw.get("ansible_connection") or "").rpartition(".")[2]
    usual = NETCONF_PORT if connection == "netconf" else SSH_PORT
    main = forward(int(raw.get("ansible_port") or usual))
    changes: dict[str, Any] = {"ansible_host": main.host, "ansible_port": main.port}
    if connection in _ON_THE_LAB_HOST:
        connection = changes["ansible_connection"] = _SSH
    if connection in _SSH_CLIENT:
        changes |= {name: value for name, value in _NO_HOST_KEYS.items() if name not in raw}
    if connection == "httpapi":
        secure = raw.get("ansible_httpapi_use_ssl")
        port = int(raw.get("ansible_httpapi_port") or (443 if secure else 80))
        changes["ansible_httpapi_port"] = forward(port).port
    return DeviceInfoDto(name=device.name, raw=raw | changes | {ORIGINAL: {name: raw.get(name) for name in changes}})
