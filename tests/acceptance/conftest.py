"""Fixtures for tests of the pytest plugin: a user's project, with or without a server."""

from __future__ import annotations

from collections.abc import Iterator

import httpcore  # noqa: F401 - httpx imports it late, and pytester would take it away again after the test
import pytest

from tests.fakes import topology_text, wait_until
from tests.plugin import CONFTEST, PLUGIN, fork_pytest, queue
from tests.server import LabServer


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with three lab fixtures, in an environment without a lab host."""
    pytester.makeconftest(CONFTEST)
    for name, text in {
        "shared": topology_text(nodes=1),
        "fresh": topology_text(nodes=2),
        "broken": topology_text() + "no_such_attribute: 1\n",
    }.items():
        pytester.path.joinpath(f"{name}.yml").write_text(text, encoding="utf-8")
    for name in ("URL", "REQUEST_TIMEOUT", "SESSION_TIMEOUT", "ACQUISITION_TIMEOUT"):
        monkeypatch.delenv(f"REMOTE_LAB_{name}", raising=False)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_RUN_ID", "CI_JOB_URL"):  # variables of the CI job that runs these tests
        monkeypatch.delenv(name, raising=False)
    # loads the plugin whether its distribution is installed or not, and no other plugins
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-p {PLUGIN} -p no:cacheprovider")
    fork_pytest(pytester, monkeypatch)
    return pytester


@pytest.fixture
def online(
    project: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.Pytester]:
    """The project with a server. At the end of the test, the server has no session and no lab."""
    monkeypatch.setenv("REMOTE_LAB_URL", lab_server.url)
    yield project
    assert queue(lab_server) == []
    wait_until(lambda: not lab_server.fake.leftovers(), 20, "the lab was not torn down")
