"""Uploads whose request is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from neops_remote_lab.api.settings import UploadSettings
from neops_remote_lab.api.uploads import receive
from tests.corpora import FORM, Upload


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("method", ["feed", "finish"])
def test_a_cancelled_upload_leaves_nothing(tmp_path: Path, method: str, times: int) -> None:
    asyncio.run(cancel(tmp_path, method, times))  # returns after the call in the thread has ended
    assert [path.name for path in tmp_path.glob("[!.]*")] == []


async def cancel(work_dir: Path, method: str, times: int) -> None:
    """Cancel an upload `times` times while `method` runs in a thread, which ends after the upload was discarded."""
    began, resume, discarded = threading.Event(), threading.Event(), threading.Event()

    def work(function: Callable[..., Any], *arguments: Any) -> Any:
        if function.__name__ == method:
            began.set()
            resume.wait(30)
        result = function(*arguments)
        if function.__name__ == "discard":
            discarded.set()
        return result

    async def run_blocking(function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(work, function, *arguments)

    async def chunks() -> AsyncIterator[bytes]:
        yield Upload("", 200, "", {"extra": ["a"]}).body()

    task = asyncio.create_task(
        receive(FORM, chunks(), UploadSettings(), run_blocking, work_dir=work_dir, lab_host="host")
    )
    await asyncio.to_thread(began.wait, 30)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.to_thread(discarded.wait, 30)
    resume.set()
    with pytest.raises(asyncio.CancelledError):
        await task
