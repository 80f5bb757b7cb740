"""`neops-remote-lab run`: run a command with a lab."""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from neops_remote_lab.cli.command import (
    COMMAND,
    CREDENTIALS,
    PROGRAM,
    Commands,
    ExitStatus,
    add_lab_flags,
    ended_by_signals,
)
from neops_remote_lab.cli.foreground import Foreground, require_program
from neops_remote_lab.cli.lab_sessions import explained
from neops_remote_lab.cli.opening import LabOrder, queue_for
from neops_remote_lab.client import inventories
from neops_remote_lab.client.exceptions import SessionEnded
from neops_remote_lab.client.reachable import reachable
from neops_remote_lab.core.text import one_line
from neops_remote_lab.models.lab import DeviceInfoDto

DEVICES: Final = "REMOTE_LAB_DEVICES"
ANSIBLE: Final = "REMOTE_LAB_ANSIBLE_INVENTORY"
NORNIR: Final = "REMOTE_LAB_NORNIR_CONFIG"
LABEL_LENGTH: Final = 60
"""Maximum length of the command in the queue's purpose."""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "run",
        usage="%(prog)s TOPOLOGY [flag ...] -- COMMAND [ARGUMENT ...]",
        help="start a lab, run a command, and end the lab",
        description="Waits in the queue, starts a lab, runs a command, and ends the session and its lab.",
        epilog=f"The command finds inventories and the session in variables REMOTE_LAB_…. {CREDENTIALS}",
    )
    add_lab_flags(parser)
    parser.add_argument(
        "--access",
        choices=("direct", "forward"),
        help="how the inventories reach the devices: directly, or through the server (default: direct; "
        "REMOTE_LAB_ACCESS)",
    )
    parser.set_defaults(**{COMMAND: None})
    return parser


def run(options: argparse.Namespace) -> None:
    """Run the command. The exit status is that of the command, or 125 if the lab did not start or was lost."""
    command = options.command
    if not command:
        options.parser.error("which command? It follows the flags, after --")
    require_program(command[0])
    with ended_by_signals(), explained(options, ExitStatus.NO_LAB):
        order = LabOrder.read(options)
        status = _run(order, command)
    sys.exit(status)


def _run(order: LabOrder, command: Sequence[str]) -> int:
    purpose = one_line(f"{PROGRAM} run {shlex.join(command)}", LABEL_LENGTH)
    foreground = Foreground(command)
    opening = queue_for(order, purpose, on_lost=lambda _: foreground.end())
    with opening.client as client:
        devices = opening.bring_up()
        with ExitStack() as stack:
            if order.settings.access == "forward":
                devices = stack.enter_context(reachable(devices, client.forward))
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PROGRAM}-"))
            environment = write_inventories(Path(directory), devices)
            environment |= {"REMOTE_LAB_URL": order.url, "REMOTE_LAB_SESSION_ID": client.session_id}
            defaults = {"ANSIBLE_INVENTORY": environment[ANSIBLE], "ANSIBLE_HOST_KEY_CHECKING": "False"}
            status = foreground.run(environment, defaults, on_cancel=client.close)
        if client.lost_reason is not None:
            raise SessionEnded(client.lost_reason)
    return status


def write_inventories(directory: Path, devices: Sequence[DeviceInfoDto]) -> dict[str, str]:
    """Write the devices in several formats for the command. Returns the variables with the paths of the files."""
    nornir = directory / "nornir"
    nornir.mkdir()
    for name, text in inventories.for_nornir(devices, nornir).items():
        (nornir / name).write_text(text, encoding="utf-8")
    files = {
        DEVICES: (directory / "devices.json", inventories.as_json),
        ANSIBLE: (directory / "ansible.yml", inventories.for_ansible),
    }
    for path, form in files.values():
        path.write_text(form(devices), encoding="utf-8")
    return {name: str(path) for name, (path, _) in files.items()} | {NORNIR: str(nornir / inventories.NORNIR_CONFIG)}
