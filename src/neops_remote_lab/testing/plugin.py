"""The pytest plugin: orders tests by their labs and provides each test with its lab.

Every pytest run loads this module, but few use a lab: other modules are imported only once a conftest file has declared
one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

from neops_remote_lab.testing import options

if TYPE_CHECKING:
    from neops_remote_lab.testing.holder import LabHolder
    from neops_remote_lab.testing.run import LabRun
    from neops_remote_lab.testing.session import LabClient

MARKER = "remote_lab"
_run = pytest.StashKey["LabRun"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add a flag and an ini key for each setting."""
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, the summary, and the hooks for pytest-xdist."""
    config.addinivalue_line("markers", f"{MARKER}: uses a remote lab; set by the plugin, for `-m`")
    config.addinivalue_line("markers", "remote_lab_url(url): the lab host of a test, in place of --remote-lab-url")
    if not hasattr(config, "workerinput") and (
        options.is_given(config, "summary") or "GITHUB_STEP_SUMMARY" in os.environ
    ):
        from neops_remote_lab.testing import summary  # noqa: PLC0415 - only needed for a summary

        summary.register(config)
    if hasattr(config, "workerinput") or config.pluginmanager.has_plugin("xdist"):
        from neops_remote_lab.testing import xdist  # noqa: PLC0415 - only needed with pytest-xdist

        xdist.register(config)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Show the address of the lab host. Sends no request."""
    if not options.is_given(config, "url"):
        return None
    from neops_remote_lab import __version__  # noqa: PLC0415 - only needed with a lab host
    from neops_remote_lab.core.text import hide_secrets  # noqa: PLC0415
    from neops_remote_lab.testing.sources import Sources  # noqa: PLC0415

    url, source = Sources.of(config).given("url") or ("", "")
    return f"neops-remote-lab: {__version__}, lab host {hide_secrets(url)} ({source})"


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Register the sorting hooks last, because pytest calls hooks in reverse order of registration."""
    if not session.config.pluginmanager.has_plugin("remote-lab-order"):
        session.config.pluginmanager.register(_Order(), "remote-lab-order")


class _Order:
    """Sorts the tests before other plugins select among them (`--sw`), and again after others have sorted them."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, object, object]:
        """Mark the tests that use a lab before `-m` selects, and sort the tests after all other plugins."""
        if not _labs_are_declared():
            return (yield)
        from neops_remote_lab.testing import xdist  # noqa: PLC0415 - only needed with a lab
        from neops_remote_lab.testing.labs import (  # noqa: PLC0415
            in_order_of_labs,
            labs_of,
            refuse_several_labs,
            refuse_wrong_markers,
        )

        for item in items:
            if labs_of(item):
                item.add_marker(MARKER)
        result = yield
        try:
            refuse_several_labs(items)
            refuse_wrong_markers(items)
            _run_of(session)
        except (pytest.UsageError, ValueError) as error:
            xdist.report_end(config, str(error), pytest.ExitCode.USAGE_ERROR)
            raise pytest.UsageError(*error.args) from None
        items[:] = in_order_of_labs(items)
        return result

    @pytest.hookimpl(specname="pytest_collection_modifyitems")
    def pytest_remote_lab_sort(self, items: list[pytest.Item]) -> None:
        """Sort early, for plugins that skip the tests before a certain one."""
        if _labs_are_declared():
            from neops_remote_lab.testing.labs import in_order_of_labs  # noqa: PLC0415 - only needed with a lab

            items[:] = in_order_of_labs(items)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the session even if a second Ctrl-C skipped the end of the run, or no fixture was set up."""
    if _run in config.stash:
        config.stash[_run].leave()


@pytest.fixture(scope="session")
def remote_lab_client(request: pytest.FixtureRequest) -> LabClient:
    """A client with an active session on the lab host of `--remote-lab-url`. The session ends with the run."""
    __tracebackhide__ = True
    if request.config.getoption("setuponly", False):
        pytest.skip("--setup-only starts no remote lab")
    return _run_of(request.session).wait(request)


@pytest.fixture(scope="session")
def _remote_lab_holder(request: pytest.FixtureRequest, remote_lab_client: LabClient) -> Iterator[LabHolder]:
    with _run_of(request.session).holding(remote_lab_client) as holder:
        yield holder


def _run_of(session: pytest.Session) -> LabRun:
    from neops_remote_lab.testing.run import LabRun  # noqa: PLC0415 - only needed with a lab

    if _run not in session.config.stash:
        session.config.stash[_run] = LabRun(session)
        session.config.pluginmanager.register(session.config.stash[_run], "remote-lab-run")
    return session.config.stash[_run]


def _labs_are_declared() -> bool:
    return "neops_remote_lab.testing.labs" in sys.modules  # imported by the first declaration
