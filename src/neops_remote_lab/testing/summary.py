"""A summary of the lab tests of a run, in Markdown: for GitHub's step summary, or any page that a CI system shows.

The processes that run tests attach what they know of a lab to their reports; the one that has the terminal collects it.
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
"""GitHub's variable with the file of a step's summary. Others may have written to it before."""
MOST_FAILURES: Final = 200
"""Failures that are listed: GitHub shows no summary of more than a megabyte."""
MESSAGE_LENGTH: Final = 300
"""Characters of a failure's message that are shown."""
_USE: Final = "remote_lab_use"
_OUTCOMES: Final = ("passed", "failed", "error", "skipped")


@dataclass(frozen=True)
class LabUse:
    """What one report says of the lab of its test; times are in seconds.

    Attributes:
        lab: the fixture's name.
        topology: the file's name.
        start: how long the lab of this very test took to come up, or to fail.
        wait: how long the run has waited in the queue.
        artifacts: where they are.
    """

    lab: str
    topology: str
    start: float | None = None
    wait: float | None = None
    artifacts: str | None = None


@dataclass
class _Test:
    """What is known of one test."""

    use: LabUse
    outcome: str = "passed"
    message: str = ""
    artifacts: list[str] = field(default_factory=list)


def file_of(config: pytest.Config) -> Path | None:
    """The file that the summary goes to; None where nobody wants one."""
    chosen = Sources.of(config).value("summary") or os.environ.get(GITHUB_FILE)
    return config.invocation_params.dir / chosen if chosen else None


def register(config: pytest.Config) -> None:
    """Have a summary written, where somebody wants one."""
    if (path := file_of(config)) is not None:
        config.pluginmanager.register(Summary(config, path), "remote-lab-summary")


def attach(report: pytest.TestReport, use: LabUse) -> None:
    """Let a report carry what the summary needs, from a worker to the controller."""
    report.__dict__[_USE] = asdict(use)


class Summary:
    """Collects what reports carry, and writes the summary at the end.

    Args:
        config: the pytest run.
        path: the file to write. What is in GitHub's own one stays.
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
        """Take what a report carries: others may write the report to a file."""
        carried = report.__dict__.pop(_USE, None)
        if carried is None:
            return
        use = LabUse(**carried)
        test = self._tests.setdefault(report.nodeid, _Test(use))
        if report.when == "setup":  # of each attempt, where a test is repeated
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
        """Say that the file could not be written."""
        if self._failure:
            terminalreporter.write_line(self._failure)

    def text(self) -> str:
        """The summary."""
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
    """The first line of what went wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    return one_line(text.strip().partition("\n")[0], MESSAGE_LENGTH)


def _artifacts(path: str) -> str:
    """Where artifacts are; a link where the CI system has them at an address that is known."""
    if job := os.environ.get("CI_JOB_URL"):
        return f"[{_shown(path)}]({job}/artifacts/browse/{quote(path)})"
    if run := github_run(os.environ):
        return f"[{_shown(path)}]({run}#artifacts)"
    return _shown(path)


def _shown(text: str) -> str:
    """Text from outside, as a table in Markdown shows it: no character of it means anything."""
    return re.sub(r"[^\w ./:,-]|_", lambda match: f"&#{ord(match[0])};", one_line(text))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [_row(head), _row(("---",) * len(head)), *map(_row, rows)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
