"""What other pytest plugins do with a test."""

from __future__ import annotations

import sys

import pytest


def stop_timer(item: pytest.Item) -> None:
    """Stop the timer of pytest-timeout, if there is one: the test has ended, and its lab may take more time."""
    if hasattr(item.config.hook, "pytest_timeout_cancel_timer"):
        item.config.hook.pytest_timeout_cancel_timer(item=item)


def is_to_be_repeated(item: pytest.Item) -> bool:
    """Whether pytest-rerunfailures is likely to repeat a test that has just failed."""
    plugin = sys.modules.get("pytest_rerunfailures")
    attempt = getattr(item, "execution_count", None)  # set while that plugin runs the test
    return plugin is not None and attempt is not None and attempt <= (plugin.get_reruns_count(item) or 0)
