"""Forks workers of pytest-xdist from a copy of the pytest process, because imports take most of a start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from execnet import gateway_io
from execnet.gateway_base import ExecModel, Popen2IO

from tests.fork_server import END_SIGNALS, ForkChannel, serve

WORKERS = ("-n", "--tx")
"""Options of pytest that start workers."""
BOOTSTRAP = ["-u", "-c", gateway_io.popen_bootstrapline]
"""The arguments with which execnet starts an interpreter."""


def fork_workers(arguments: Sequence[str]) -> None:
    """Let execnet fork the workers of a pytest with these arguments. Returns in this process only."""
    if not any(word in WORKERS for word in arguments):
        return
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        other.close()
        _use(ForkChannel(ours))
        return
    ours.close()
    for number in END_SIGNALS:  # the run ends its workers, and this process ends with the run
        signal.signal(number, signal.SIG_IGN)
    serve(other, _work)
    sys.exit()


def _use(forks: ForkChannel) -> None:
    def begin(self: gateway_io.Popen2IOMaster, arguments: list[str], execmodel: ExecModel) -> None:
        assert arguments == [sys.executable, *BOOTSTRAP]
        self.popen = forks.popen([], env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=2)
        Popen2IO.__init__(self, self.popen.stdin, self.popen.stdout, execmodel=execmodel)

    gateway_io.Popen2IOMaster.__init__ = begin  # type: ignore[assignment, method-assign]


def _work(_words: list[str]) -> None:
    exec(eval(sys.stdin.readline()))  # noqa: S102, S307 - as the interpreter would
