"""Shows the progress of pytest-xdist workers: they send it to the controller, which writes it to the terminal."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:  # xdist is optional, and pydantic is slow to import
    from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

    from neops_remote_lab.client.progress import Board, Progress, ShownProgress
    from neops_remote_lab.testing.screen import PytestScreen

PLUGIN: Final = "remote-lab-relay"
"""Name of the registered `Relay`."""
CHANNEL: Final = "remote_lab_channel"
_END: Final = ("idle", None)
"""The call that ends the progress of a worker; also the end marker of its channel."""


def progress_of(config: pytest.Config) -> Progress:
    """Where this process reports its progress."""
    from neops_remote_lab.client.progress import Board, ShownProgress  # noqa: PLC0415 - slow
    from neops_remote_lab.testing.progress import RelayedProgress  # noqa: PLC0415
    from neops_remote_lab.testing.screen import PytestScreen  # noqa: PLC0415

    workerinput: dict[str, Any] = getattr(config, "workerinput", {})
    if CHANNEL in workerinput:
        return RelayedProgress(workerinput[CHANNEL].send)
    controller = config.pluginmanager.get_plugin(PLUGIN)
    return controller.progress_of("controller") if controller else ShownProgress(Board(PytestScreen(config)))


class Relay:
    """Hooks of the controller. They keep threads from writing while pytest's reporter writes: it is not thread-safe.

    Args:
        config: the configuration of the controller.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._screen: PytestScreen | None = None
        self._board: Board | None = None
        self._progress: dict[str, ShownProgress] = {}

    def pytest_configure_node(self, node: WorkerController) -> None:
        """Open a channel on which a worker sends its progress."""
        channel = node.gateway.newchannel()
        channel.setcallback(partial(self._take, node.gateway.id), endmarker=_END)
        node.workerinput[CHANNEL] = channel

    def _take(self, worker: str, call: tuple[str, Any]) -> None:
        """Show the progress of a worker. Called in the thread that receives it."""
        if worker not in self._progress and call == _END:  # a worker without labs has ended
            return
        from neops_remote_lab.testing.progress import repeat  # noqa: PLC0415 - slow

        repeat(call, self.progress_of(worker))

    def progress_of(self, process: str) -> ShownProgress:
        """Where the progress of a process is reported. Created on first use."""
        from neops_remote_lab.client.progress import Board, ShownProgress  # noqa: PLC0415 - slow
        from neops_remote_lab.testing.screen import PytestScreen  # noqa: PLC0415

        with self._lock:
            if self._board is None:
                self._screen = PytestScreen(self._config)
                self._board = Board(self._screen)
            return self._progress.setdefault(process, ShownProgress(self._board, process))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self) -> Generator[None, object, object]:
        """Reserve the terminal while pytest's reporter writes, in this hook and the ones below."""
        with self._screen.reserved_for_pytest() if self._screen else nullcontext():
            return (yield)

    pytest_runtest_logstart = pytest_runtest_logfinish = pytest_testnodedown = pytest_runtest_logreport

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Stop writing, because no hook surrounds pytest's output at the end of the run."""
        if self._board is not None:
            self._board.close()
