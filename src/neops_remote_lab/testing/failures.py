"""Labs that failed, as opposed to tests that failed: how they are reported, and the exit status of the run."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

import pytest

from neops_remote_lab.testing.labs import LabSpec

EXIT_STATUS: Final = 125
"""Exit status of a run in which labs failed and nothing else, as of `neops-remote-lab run`; `git bisect run` skips."""
PROPERTY: Final = "remote_lab"
"""Name of the property in JUnit XML that tells a failed lab: its value is `failed`."""
REASON_PROPERTY: Final = "remote_lab_reason"
WORD: Final = "LAB FAILED"
_SHOWN: Final = "remote_lab_failure"
"""Name of a report's attribute, with what the section of failed labs shows of it."""
_PLUGIN: Final = "remote-lab-failures"


class LabFailed(pytest.fail.Exception):  # type: ignore[name-defined,misc]  # mypy takes it for a variable
    """The lab of a test is not there. Reported without a traceback, because no code of the user is to blame.

    Args:
        lab: the lab; None if the session failed.
        reason: the cause, of any number of lines.
        repeated: what was not tried again, if the cause is that of an earlier failure.
    """

    def __init__(self, lab: LabSpec | None, reason: str, repeated: str = "") -> None:
        self.lab, self.reason, self.repeated = lab, reason, repeated
        name = f"remote lab {lab.name}" if lab else "remote lab"
        super().__init__(": ".join(part for part in (name, repeated, reason) if part), pytrace=False)


def begin(item: pytest.Item) -> None:
    """Remove what an earlier attempt at the same test has recorded."""
    item.user_properties[:] = [one for one in item.user_properties if one[0] not in {PROPERTY, REASON_PROPERTY}]


def mark(item: pytest.Item, report: pytest.TestReport, error: LabFailed) -> None:
    """Mark a report as that of a failed lab, even if the test itself is expected to fail."""
    report.outcome = "failed"
    report.__dict__.pop("wasxfail", None)
    report.longrepr = str(error)  # with --full-trace, pytest would show frames of the plugin
    begin(item)
    item.user_properties += [(PROPERTY, "failed"), (REASON_PROPERTY, error.reason)]
    report.user_properties = list(item.user_properties)
    # the attribute reaches the controller of pytest-xdist as it is
    report.__dict__[_SHOWN] = report.longrepr.partition("\n")[0] if error.repeated else report.longrepr


def is_failed_lab(report: pytest.TestReport | pytest.CollectReport) -> bool:
    """Whether a report is that of a failed lab, in a test that is not going to be repeated."""
    return report.failed and _SHOWN in report.__dict__


def register(config: pytest.Config) -> None:
    """Register the hooks, in the process that has the terminal."""
    if not config.pluginmanager.has_plugin(_PLUGIN):
        config.pluginmanager.register(FailedLabs(), _PLUGIN)


class FailedLabs:
    """Gives failed labs a word, a section and an exit status of their own."""

    def __init__(self) -> None:
        self._reports: list[pytest.TestReport] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.TestReport | pytest.CollectReport
    ) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
        """Count a failed lab as an error, with a word of its own."""
        return ("error", "L", (WORD, {"red": True})) if is_failed_lab(report) else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the failed labs."""
        if is_failed_lab(report):
            self._reports.append(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Set the exit status if nothing but labs failed."""
        if session.exitstatus == pytest.ExitCode.TESTS_FAILED and session.testsfailed == len(self._reports) > 0:
            session.exitstatus = EXIT_STATUS

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None, object, object]:
        """Leave the failed labs out of pytest's section of errors."""
        errors = terminalreporter.stats.get("error", [])
        if self._reports:
            terminalreporter.stats["error"] = [report for report in errors if not is_failed_lab(report)]
        self._errors = errors
        return (yield)

    @pytest.hookimpl(specname="pytest_terminal_summary")
    def pytest_remote_lab_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        """Show the failed labs, after pytest's sections and before its short summary, which has them again."""
        if not self._reports:
            return
        terminalreporter.stats["error"] = self._errors
        if config.option.tbstyle == "no" or terminalreporter.no_summary:
            return
        terminalreporter.write_sep("=", WORD)
        for report in self._reports:
            terminalreporter.write_sep("_", f"{WORD} at {report.when} of {report.head_line}", red=True, bold=True)
            terminalreporter.write_line(report.__dict__[_SHOWN])
            for title, content in report.sections if config.option.showcapture != "no" else ():
                terminalreporter.write_sep("-", title)
                terminalreporter.write_line(content.rstrip("\n"))
