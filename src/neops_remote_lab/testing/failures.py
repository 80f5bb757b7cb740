"""Reports failed labs separately from failed tests, and sets the exit status of the run."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

import pytest

from neops_remote_lab.testing.labs import LabSpec

EXIT_STATUS: Final = 125
"""Exit status of a run in which only labs failed, as of `neops-remote-lab run`: `git bisect run` skips the revision."""
PROPERTY: Final = "remote_lab"
"""Name of the JUnit XML property of a failed lab, with the value `failed`."""
REASON_PROPERTY: Final = "remote_lab_reason"
TITLE: Final = "LAB FAILED"
_SHOWN: Final = "remote_lab_failure"
"""Name of the report attribute with the text for the section of failed labs."""
_PLUGIN: Final = "remote-lab-failures"


class LabFailed(pytest.fail.Exception):  # type: ignore[name-defined,misc]  # mypy treats it as a variable
    """A test has no lab. Reported without a traceback, because the cause is not in the user's code.

    Args:
        lab: the lab; None if the session failed.
        reason: the cause; may have several lines.
        repeated: what is not attempted again because of an earlier failure, such as "not started again"; may be empty.
    """

    def __init__(self, lab: LabSpec | None, reason: str, repeated: str = "") -> None:
        self.lab, self.reason, self.repeated = lab, reason, repeated
        name = f"remote lab {lab.name}" if lab else "remote lab"
        super().__init__(": ".join(part for part in (name, repeated, reason) if part), pytrace=False)


def begin(item: pytest.Item) -> None:
    """Remove the properties that an earlier attempt at the same test recorded."""
    item.user_properties[:] = [one for one in item.user_properties if one[0] not in {PROPERTY, REASON_PROPERTY}]


def mark(item: pytest.Item, report: pytest.TestReport, error: LabFailed) -> None:
    """Turn a report into that of a failed lab, even if the test is expected to fail."""
    report.outcome = "failed"
    report.__dict__.pop("wasxfail", None)
    report.longrepr = str(error)  # with --full-trace, pytest would show frames of the plugin
    begin(item)
    item.user_properties += [(PROPERTY, "failed"), (REASON_PROPERTY, error.reason)]
    report.user_properties = list(item.user_properties)
    # pytest-xdist passes the attribute on to the controller
    report.__dict__[_SHOWN] = report.longrepr.partition("\n")[0] if error.repeated else report.longrepr


def is_failed_lab(report: pytest.TestReport | pytest.CollectReport) -> bool:
    """Whether a report is that of a failed lab, and not one that a plugin for reruns has withdrawn."""
    return report.failed and _SHOWN in report.__dict__


def register(config: pytest.Config) -> None:
    """Register the hooks, in the process with the terminal."""
    if not config.pluginmanager.has_plugin(_PLUGIN):
        config.pluginmanager.register(FailedLabs(), _PLUGIN)


class FailedLabs:
    """Hooks that give failed labs their own letter, section and exit status."""

    def __init__(self) -> None:
        self._reports: list[pytest.TestReport] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.TestReport | pytest.CollectReport
    ) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
        """Count a failed lab as an error, with its own letter and words."""
        return ("error", "L", (TITLE, {"red": True})) if is_failed_lab(report) else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Store the reports of failed labs."""
        if is_failed_lab(report):
            self._reports.append(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Set the exit status if only labs failed."""
        if session.exitstatus == pytest.ExitCode.TESTS_FAILED and session.testsfailed == len(self._reports) > 0:
            session.exitstatus = EXIT_STATUS

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None, object, object]:
        """Hide the failed labs from pytest's section of errors."""
        errors = terminalreporter.stats.get("error", [])
        if self._reports:
            terminalreporter.stats["error"] = [report for report in errors if not is_failed_lab(report)]
        self._errors = errors
        return (yield)

    @pytest.hookimpl(specname="pytest_terminal_summary")
    def pytest_remote_lab_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        """Show the failed labs after pytest's sections, and restore them for pytest's short summary, which follows."""
        if not self._reports:
            return
        terminalreporter.stats["error"] = self._errors
        if config.option.tbstyle == "no" or terminalreporter.no_summary:
            return
        terminalreporter.write_sep("=", TITLE)
        for report in self._reports:
            terminalreporter.write_sep("_", f"{TITLE} at {report.when} of {report.head_line}", red=True, bold=True)
            terminalreporter.write_line(report.__dict__[_SHOWN])
            for title, content in report.sections if config.option.showcapture != "no" else ():
                terminalreporter.write_sep("-", title)
                terminalreporter.write_line(content.rstrip("\n"))
