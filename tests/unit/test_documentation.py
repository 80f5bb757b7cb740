"""The documentation is complete, and its generated tables are up to date."""

import subprocess
import sys
from pathlib import Path

import pytest

from neops_remote_lab.api.openapi import OPERATIONS, Operation
from neops_remote_lab.cli.settings import Settings
from neops_remote_lab.core.settings import flag, settings_of, variable
from neops_remote_lab.testing import options

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("field", settings_of(Settings))
def test_every_setting_is_documented_with_its_flag_and_its_variable(field: str) -> None:
    rows = [row for row in (DOCS / "settings.md").read_text().splitlines() if f"| `{flag(field)}` |" in row]
    assert len(rows) == 1
    assert f"`{variable(field)}`" in rows[0]
    assert settings_of(Settings)[field].description is not None


def test_generated_tables_are_up_to_date() -> None:
    check = [sys.executable, "-m", "cogapp", "-I", ".ci", "--check", "--diff", *map(str, DOCS.glob("*.md"))]
    done = subprocess.run(check, cwd=DOCS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"make docs\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_call_is_documented(operation: Operation) -> None:
    text = (DOCS / "http.md").read_text()
    assert f"{operation.method.upper()} {operation.path.replace('{session_id}', '{id}')}" in text


@pytest.mark.parametrize("name", options.SETTINGS)
def test_every_variable_of_the_client_has_a_row_in_the_readme(name: str) -> None:
    lines = (DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("| `") and f"`{options.variable(name)}`" in line for line in lines)
