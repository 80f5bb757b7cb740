"""`neops-remote-lab devices`: list the nodes of the lab and how to log in to them."""

import argparse
import sys
from collections.abc import Sequence

from neops_remote_lab.cli.command import CREDENTIALS, Commands, ExitStatus, add_session_flags
from neops_remote_lab.cli.lab_sessions import current_session, explained
from neops_remote_lab.cli.tables import table
from neops_remote_lab.client import inventories
from neops_remote_lab.client.addresses import address_of
from neops_remote_lab.client.devices import devices_of
from neops_remote_lab.models.lab import DeviceInfoDto

HEADINGS = ("node", "device", "address", "user", "connection")


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "devices",
        help="list the nodes of the lab",
        description="Lists the nodes of the lab that `up` started, and how to log in to them.",
        epilog=CREDENTIALS,
    )
    parser.add_argument(
        "--format",
        choices=sorted(FORMATS),
        default="table",
        help="a table, all data of netlab as JSON, or an Ansible inventory in YAML (default: table)",
    )
    add_session_flags(parser)
    return parser


def run(options: argparse.Namespace) -> None:
    """Print the devices. The exit status is 125 if there is no lab."""
    with explained(options, ExitStatus.NO_LAB), current_session(options) as current:
        with current.forgotten_when_over():
            devices = devices_of(current.session)
        sys.stdout.write(FORMATS[options.format](devices))


def summary(devices: Sequence[DeviceInfoDto]) -> str:
    """The devices as a table."""
    return table(HEADINGS, map(_row, devices))


def _row(device: DeviceInfoDto) -> tuple[str, ...]:
    raw = device.raw
    known = (raw.get("ansible_network_os"), address_of(device), raw.get("ansible_user"), raw.get("ansible_connection"))
    return (device.name, *(str(value) if value else "-" for value in known))


FORMATS = {"table": summary, "json": inventories.as_json, "ansible": inventories.for_ansible}
"""The function for each `--format`."""
