"""Writes a Markdown summary of the lab tests of a run, for GitHub's step summary or a page of another CI system.

The processes that run tests attach data about labs to their reports; the process with the terminal collects it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest

from neops_remote_lab.core.text import hide_secrets, one_line
from neops_remote_lab.testing.ci import github_run
from neops_remote_lab.testing.sources import Sources

GITHUB_FILE: Final = "GITHUB_STEP_SUMMARY"
"""GitHub's variable with the path of the step summary, to which other programs may append too."""
MOST_FAILURES: Final = 200
"""Maximum number of listed failures: GitHub limits a summary to one megabyte."""
MESSAGE_LENGTH: Final = 300
"""Maximum length of a failure message."""
_USE: Final = "remote_lab_use"
_OUTCOMES: Final = ("passed", "failed", "error", "skipped")


@dataclass(frozen=True)
class LabUse:
    """Data about the lab of a test, attached to its report. Times are in seconds.

    Attributes:
        lab: name of the fixture.
        topology: file name of the topology.
        start: duration of the lab's start, if this test started it.
        wait: how long the run waited in the queue.
        artifacts: path of the artifacts.
    """

    lab: str
    topology: str
    start: float | None = None
    wait: float | None = None
    artifacts: str | None = None


@dataclass
class _Test:
    """The state of one test."""

    use: LabUse
    outcome: str = "passed"
    message: str = ""
    artifacts: list[str] = field(default_factory=list)


def file_of(config: pytest.Config) -> Path | None:
    """The file for the summary; None if no summary is requested."""
    chosen = Sources.of(config).value("summary") or os.environ.get(GITHUB_FILE)
    return config.invocation_params.dir / chosen if chosen else None


def register(config: pytest.Config) -> None:
    """Register the summary plugin, if a summary is requested."""
    if (path := file_of(config)) is not None:
        config.pluginmanager.register(Summary(config, path), "remote-lab-summary")


def attach(report: pytest.TestReport, use: LabUse) -> None:
    """Attach data for the summary to a report, which carries it from a worker to the controller."""
    report.__dict__[_USE] = asdict(use)


class Summary:
    """Collects the data attached to reports, and writes the summary at the end.

    Args:
        config: the configuration of the pytest run.
        path: the file to write. GitHub's file is appended to.
    """

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._path = path
        self._tests: dict[str, _Test] = {}
        self._starts: dict[tuple[str, str], list[float]] = {}
        self._wait = 0.0
        self._failure: str | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remove the data from a report and store it. Other plugins may write the report to a file."""
        carried = report.__dict__.pop(_USE, None)
        if carried is None:
            return
        use = LabUse(**carried)
        test = self._tests.setdefault(report.nodeid, _Test(use))
        if report.when == "setup":  # a new attempt, if the test is repeated
            test.outcome, test.message = "passed", ""
        if use.start is not None:
            self._starts.setdefault((use.lab, use.topology), []).append(use.start)
        self._wait = max(self._wait, use.wait or 0)
        if use.artifacts and use.artifacts not in test.artifacts:
            test.artifacts.append(use.artifacts)
        if report.failed:
            test.outcome = "failed" if report.when == "call" else "error"
            test.message = _message(report)
        elif report.skipped:
            test.outcome = "skipped"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the file, if there were lab tests."""
        if not self._tests:
            return
        is_github = str(self._path) == os.environ.get(GITHUB_FILE)
        try:
            with self._path.open("a" if is_github else "w", encoding="utf-8") as file:
                file.write(self.text())
        except OSError as error:
            self._failure = f"remote lab: the summary cannot be written: {error}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Report that the file could not be written."""
        if self._failure:
            terminalreporter.write_line(self._failure)

    def text(self) -> str:
        """The summary in Markdown."""
        url = Sources.of(self._config).value("url")
        counts = Counter(test.outcome for test in self._tests.values())
        told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in _OUTCOMES if counts[outcome])
        where = f" on {_shown(hide_secrets(url))}" if url else ""
        lines = [
            "## Remote lab",
            "",
            f"{len(self._tests)} lab tests{where}: {told}. {self._wait:.0f} s in the queue.",
            "",
        ]
        lines += _table(("lab", "topology", *_OUTCOMES, "starts", "start took"), self._labs())
        failed = [(nodeid, test) for nodeid, test in self._tests.items() if test.outcome in {"failed", "error"}]
        if failed:
            rows = (_failure(nodeid, test) for nodeid, test in failed[:MOST_FAILURES])
            lines += ["", *_table(("failure", "lab", "message", "artifacts"), rows)]
        if len(failed) > MOST_FAILURES:
            lines += ["", f"{len(failed) - MOST_FAILURES} more failures are left out."]
        return "\n".join([*lines, "", ""])

    def _labs(self) -> Iterable[tuple[str, ...]]:
        labs: dict[tuple[str, str], Counter[str]] = {}
        for test in self._tests.values():
            labs.setdefault((test.use.lab, test.use.topology), Counter())[test.outcome] += 1
        for lab, counts in labs.items():
            starts = self._starts.get(lab, [])
            took = f"{sum(starts) / len(starts):.1f} s" if starts else ""
            yield (*map(_shown, lab), *(str(counts[outcome] or "") for outcome in _OUTCOMES), str(len(starts)), took)


def _failure(nodeid: str, test: _Test) -> tuple[str, ...]:
    links = "<br>".join(map(_artifacts, test.artifacts))
    return _shown(nodeid), _shown(test.use.lab), _shown(test.message), links


def _message(report: pytest.TestReport) -> str:
    """The first line of the failure message."""
    crash = getattr(report.longrepr, "reprcrash", None)
    # `longreprtext` begins with the worker's name if a worker sent a plain text
    plain = report.longrepr if isinstance(report.longrepr, str) else report.longreprtext
    text = crash.message if crash is not None else plain
    return one_line(text.strip().partition("\n")[0], MESSAGE_LENGTH)


def _artifacts(path: str) -> str:
    """The path of artifacts, as a link if the CI system publishes them at a known URL."""
    if job := os.environ.get("CI_JOB_URL"):
        return f"[{_shown(path)}]({job}/artifacts/browse/{quote(path)})"
    if run := github_run(os.environ):
        return f"[{_shown(path)}]({run}#artifacts)"
    return _shown(path)


def _shown(text: str) -> str:
    """Untrusted text, escaped for a Markdown table."""
    return re.sub(r"[^\w ./:,-]|_", lambda match: f"&#{ord(match[0])};", one_line(text))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [_row(head), _row(("---",) * len(head)), *map(_row, rows)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
