"""What the workers of pytest-xdist tell: they send it, and the controller shows it between the lines of pytest."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:  # xdist need not be installed, and pydantic has to wait until a lab is used
    from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

    from neops_remote_lab.testing.progress import Board, Progress, ShownProgress

PLUGIN: Final = "remote-lab-relay"
"""The name that the controller's hooks are registered by."""
CHANNEL: Final = "remote_lab_channel"
_END: Final = ("idle", None)
"""What is taken for the last call of a worker."""


def progress_of(config: pytest.Config) -> Progress:
    """How this process shows what it waits for."""
    from neops_remote_lab.testing.progress import Board, RelayedProgress, ShownProgress  # noqa: PLC0415 - slow
    from neops_remote_lab.testing.screen import Screen  # noqa: PLC0415

    workerinput: dict[str, Any] = getattr(config, "workerinput", {})
    if CHANNEL in workerinput:
        return RelayedProgress(workerinput[CHANNEL].send)
    controller = config.pluginmanager.get_plugin(PLUGIN)
    return controller.progress_of("controller") if controller else ShownProgress(Board(Screen(config)))


class Relay:
    """Hooks of the controller. Pytest's reporter is not made for several threads, so what the workers tell waits while
    it writes.

    Args:
        config: of the controller.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._board: Board | None = None
        self._progress: dict[str, ShownProgress] = {}

    def pytest_configure_node(self, node: WorkerController) -> None:
        """Give a worker a channel to tell us by."""
        channel = node.gateway.newchannel()
        channel.setcallback(partial(self._take, node.gateway.id), endmarker=_END)
        node.workerinput[CHANNEL] = channel

    def _take(self, worker: str, call: tuple[str, Any]) -> None:
        """Called from the thread that receives what the worker sends."""
        if worker in self._progress or call != _END:
            self.progress_of(worker).take(call)

    def progress_of(self, process: str) -> ShownProgress:
        """How a process shows what it waits for."""
        from neops_remote_lab.testing.progress import Board, ShownProgress  # noqa: PLC0415 - slow
        from neops_remote_lab.testing.screen import Screen  # noqa: PLC0415

        with self._lock:
            if self._board is None:
                self._board = Board(Screen(self._config))
            return self._progress.setdefault(process, ShownProgress(self._board, process))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self) -> Generator[None, object, object]:
        """Leave the terminal to pytest while its reporter writes, in this hook and the ones below."""
        with self._board.screen.left_to_pytest() if self._board else nullcontext():
            return (yield)

    pytest_runtest_logstart = pytest_runtest_logfinish = pytest_testnodedown = pytest_runtest_logreport

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Show nothing more: the end of the run writes without any of these hooks."""
        if self._board is not None:
            self._board.close()
