"""Holds the one lab that this process uses, from test to test."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from neops_remote_lab.client import RemoteLabClient
from neops_remote_lab.models.lab import DeviceInfoDto
from neops_remote_lab.testing.interrupt import leave_run
from neops_remote_lab.testing.labs import LabSpec


class LabHolder:
    """Keeps at most one reference. It never asks for a lab while it holds another, so that no two workers can wait
    for each other.

    Args:
        session: the pytest run.
        client: whose session it is.
        rejected: netlab's message for each topology that it has already refused.
    """

    def __init__(self, session: pytest.Session, client: RemoteLabClient, rejected: Mapping[Path, str]) -> None:
        self._session = session
        self._client = client
        self._rejected = rejected
        self._held: LabSpec | None = None
        self._devices: list[DeviceInfoDto] = []
        self._lent = False

    @contextmanager
    def lend(self, spec: LabSpec) -> Iterator[list[DeviceInfoDto]]:
        """Have the lab for one test."""
        if self._lent:  # asked for by request.getfixturevalue(): nobody could know when the tests were collected
            pytest.fail(f"remote lab {spec.name}: the test uses a lab already, and the host runs one at a time", False)
        if self._held is not spec:
            self.let_go()
            self._devices = self._acquire(spec)
            self._held = spec
        self._lent = True
        try:
            yield list(self._devices)
        finally:
            self._lent = False
            if not spec.reuse_lab:
                self.let_go()

    def keep_only(self, specs: tuple[LabSpec, ...]) -> None:
        """Release the lab unless the next test uses it."""
        if self._held not in specs:
            self.let_go()

    def let_go(self) -> None:
        """Release the lab, if any is held."""
        spec, self._held = self._held, None
        if spec is None:
            return
        try:
            with suppress(RuntimeError):  # the session is over, and its lab with it
                self._client.release()
        except httpx.HTTPError as error:
            reason = str(error)
        else:
            return
        pytest.fail(f"remote lab {spec.name}: not released: {reason}", pytrace=False)

    def _acquire(self, spec: LabSpec) -> list[DeviceInfoDto]:
        if spec.path in self._rejected:
            pytest.fail(f"remote lab {spec.name}: {self._rejected[spec.path]}", False)
        try:
            return self._client.acquire(spec.path, spec.reuse_lab)
        except (httpx.HTTPError, TimeoutError) as error:
            reason = str(error)
        except RuntimeError as error:
            if self._client.lost_reason is not None:
                leave_run(self._session, str(error))
            reason = str(error)
        pytest.fail(f"remote lab {spec.name}: {reason}", pytrace=False)
