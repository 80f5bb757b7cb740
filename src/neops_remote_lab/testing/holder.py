"""Holds the reference to the lab that this process uses, across tests."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from neops_remote_lab.client.connection import RESTARTING
from neops_remote_lab.client.exceptions import SessionClosed, SessionEnded
from neops_remote_lab.client.progress import Progress
from neops_remote_lab.models.lab import DeviceInfoDto
from neops_remote_lab.testing.failures import LabFailed
from neops_remote_lab.testing.interrupt import leave_run
from neops_remote_lab.testing.labs import LabSpec, definition_behind, is_set_up_for, item_of, labs_of
from neops_remote_lab.testing.local_labs import Fault, LocalLabFailed
from neops_remote_lab.testing.session import LabClient
from neops_remote_lab.testing.sources import Sources
from neops_remote_lab.testing.workers import KeptLab, LabsOfOneProcess

_LAB_HOST = "the lab host"
"""Key of a failure that affects all labs."""


@dataclass(frozen=True)
class _Loan:
    """An instance of a fixture that uses the lab."""

    definition: pytest.FixtureDef[Any]
    request: pytest.FixtureRequest


class LabHolder:
    """Holds at most one reference. It releases a lab before it acquires another, so that workers cannot deadlock.

    Args:
        session: the pytest session.
        client: the client with the session.
        workers: coordinates the labs of the processes of the run.
        progress: shows what the run waits for.
    """

    def __init__(
        self, session: pytest.Session, client: LabClient, workers: LabsOfOneProcess, progress: Progress
    ) -> None:
        self.client = client
        self._session = session
        self._workers = workers
        self._progress = progress
        self._held: LabSpec | None = None
        self._declared = True
        self._devices: list[DeviceInfoDto] = []
        self._reachable: list[DeviceInfoDto] | None = None
        self._forwards = ExitStack()
        self._loans: list[_Loan] = []
        self._told: set[tuple[str, str]] = set()
        self._latest: pytest.Item | None = None
        self._failed_for: pytest.Item | None = None
        self._start: float | None = None
        self._is_spoilt = False

    @contextmanager
    def lend(self, spec: LabSpec, request: pytest.FixtureRequest) -> Iterator[list[DeviceInfoDto]]:
        """Provide the lab to one instance of a fixture, for one test or several."""
        item, loan = item_of(request), _Loan(definition_behind(request), request)
        if any(is_set_up_for(other.definition, request) for other in self._loans):
            # requested with request.getfixturevalue(), so collection could not detect it
            pytest.fail(f"remote lab {spec.name}: the test uses a lab already, and the host runs one at a time", False)
        if self._held is None or not self._held.shares_with(spec):
            self.let_go()
            self._take(spec, item)
            self._held = spec
        self._declared = spec in labs_of(item)
        self._loans.append(loan)
        self._latest = item
        try:
            yield list(self._devices_of(spec))
        finally:
            self._loans = [other for other in self._loans if other is not loan]
            if not spec.reuse_lab:
                self.let_go()

    @property
    def devices(self) -> list[DeviceInfoDto]:
        """The devices of the held lab."""
        return self._devices

    def spoil(self) -> None:
        """Let no later test have the held lab, because somebody may have changed it."""
        self._is_spoilt = self._held is not None

    def lab_of(self, item: pytest.Item) -> LabSpec | None:
        """The held lab if a test uses it, whether the test declared it or requested it at run time."""
        held = self._held
        uses_it = held is not None and (item is self._latest or any(map(held.shares_with, labs_of(item))))
        return held if uses_it else None

    def take_start(self) -> float | None:
        """Seconds that the start of the latest lab took; None after the first call."""
        start, self._start = self._start, None
        return start

    def can_explain(self, item: pytest.Item) -> bool:
        """Whether there are artifacts for a test: its lab is held, or failed to start for this test."""
        return self.lab_of(item) is not None or item is self._failed_for

    def keep_only(self, specs: tuple[LabSpec, ...]) -> None:
        """Release the lab unless the next test uses it.

        A lab that was requested at run time is kept until another one is needed, because later tests may request it.
        """
        held = self._held
        if held is None or (not self._is_spoilt and any(held.shares_with(spec) for spec in specs)):
            return
        if self._is_spoilt or self._declared or self._workers.passes_labs_on:
            self.let_go()

    def let_go(self, timeout: float | None = None) -> None:
        """Release the held lab, if any, or hand it over to the other workers.

        Args:
            timeout: seconds for which calls to an unreachable server are retried; default: the unreachable timeout.
        """
        spec, self._held = self._held, None
        if spec is None:
            return
        try:
            self._end_loans()
            self._close_forwards()
        finally:
            try:
                if spec.reuse_lab and not self._is_spoilt and self._workers.is_needed(spec.key):
                    self.client.hand_over()
                else:
                    self._release(spec, timeout)
            finally:
                self._is_spoilt = False
                self._workers.drop()

    def _end_loans(self) -> None:
        """End the fixtures of a wider scope that use the lab, with everything that depends on them."""
        while self._loans:
            loan = self._loans.pop()
            loan.definition.finish(loan.request)  # type: ignore[arg-type]  # it is a SubRequest

    def _devices_of(self, spec: LabSpec) -> list[DeviceInfoDto]:
        """The devices, with forwarded ports if the access is `forward`. The ports are open while the lab is held."""
        chosen, _ = Sources.of(self._session.config).given("access") or (spec.access, "")
        if chosen == "direct":
            return self._devices
        if self._reachable is None:
            from neops_remote_lab.client.reachable import reachable  # noqa: PLC0415 - few runs need it

            self._reachable = self._forwards.enter_context(reachable(self._devices, self.client.forward))
        return self._reachable

    def _close_forwards(self) -> None:
        self._reachable = None
        self._forwards.close()

    def _take(self, spec: LabSpec, item: pytest.Item) -> None:
        self._fail_again(spec, item)
        kept = self._workers.take(item)
        try:
            self._fail_again(spec, item)  # another worker may have tried meanwhile
            if kept is not None:
                self.client.take_over(kept.reference)
            if kept is not None and spec.reuse_lab and kept.key == spec.key:
                self._devices = [DeviceInfoDto.model_validate(device) for device in kept.devices]
                return
            if kept is not None:
                self._release(spec)
            self._devices = self._acquire(spec, item)
            if self._workers.passes_labs_on:
                devices = [device.model_dump(mode="json") for device in self._devices]
                self._workers.keep(KeptLab(spec.key, self.client.references[-1], devices))
        except BaseException:
            self._workers.drop()
            raise

    def _acquire(self, spec: LabSpec, item: pytest.Item) -> list[DeviceInfoDto]:
        rejected = getattr(self.client, "rejected", {})  # a client from a conftest file may not have the attribute
        if spec.topology in rejected:
            raise LabFailed(spec, rejected[spec.topology])
        retries = Sources.of(self._session.config).value("retries")
        for attempt in range(retries + 1):
            devices, reason, fault = self._try_acquire(spec)
            if devices is not None:
                self._workers.note_failure(spec.key, None)
                self._failed_for = None
                return devices
            if fault is not Fault.LAB or attempt == retries:
                break
            cause = reason.partition("\n")[0]
            self._progress.note(f"{spec.name}: {cause}: starting the lab again, {attempt + 1} of {retries}")
        if fault is Fault.MACHINE:
            self._workers.note_failure(_LAB_HOST, reason)
        elif spec.reuse_lab or fault is Fault.TOPOLOGY:
            self._workers.note_failure(spec.key, reason)
            self._told.add((spec.key, item.nodeid))
        if fault in (Fault.LAB, Fault.TOPOLOGY):
            self._failed_for = item
        raise LabFailed(spec, reason)

    def _try_acquire(self, spec: LabSpec) -> tuple[list[DeviceInfoDto] | None, str, Fault | None]:
        """Returns the devices, or None with the reason of the failure and what it affects."""
        # A client from a conftest file may not support the keyword.
        extra = {"extra_files": spec.files.extra_files} if spec.files.extra_files else {}
        began = time.monotonic()
        try:
            with self._progress.starting(spec.name):
                devices = self.client.acquire(spec.path, spec.reuse_lab and self._workers.may_reuse, **extra)
        except SessionEnded as error:
            leave_run(self._session, str(error))
        except (httpx.HTTPError, TimeoutError, LocalLabFailed, SessionClosed, OSError) as error:
            return None, str(error), _fault_of(error)  # OSError: a file of the topology cannot be read
        self._start = time.monotonic() - began
        return devices, "", None

    def _release(self, spec: LabSpec, timeout: float | None = None) -> None:
        try:
            with suppress(SessionEnded, SessionClosed):  # the session is over, and its lab with it
                self.client.release(**{} if timeout is None else {"timeout": timeout})
        except (httpx.HTTPError, LocalLabFailed) as error:
            reason = str(error)
            if _fault_of(error) is Fault.MACHINE:
                self._workers.note_failure(_LAB_HOST, reason)
        else:
            self._workers.keep(None)
            return
        raise LabFailed(spec, reason, "not released")

    def _fail_again(self, spec: LabSpec, item: pytest.Item) -> None:
        """Fail at once if the same start has failed before, unless the same test is repeated."""
        if (reason := self._workers.failure(_LAB_HOST)) is not None:
            raise LabFailed(spec, reason, "not tried again")
        if (reason := self._workers.failure(spec.key)) is not None and (spec.key, item.nodeid) not in self._told:
            self._told.add((spec.key, item.nodeid))
            raise LabFailed(spec, reason, "not started again")


def _fault_of(error: BaseException | None) -> Fault | None:
    """What a failure affects; None if it affects only one call, for example a timeout."""
    match error:
        case LocalLabFailed():
            return error.fault
        case httpx.TransportError():
            return Fault.MACHINE
        case httpx.HTTPStatusError(response=response):
            if response.status_code in RESTARTING:  # may come from a proxy in front of the lab host
                return Fault.MACHINE
            rejected = response.status_code == httpx.codes.UNPROCESSABLE_ENTITY
            return Fault.TOPOLOGY if rejected else Fault.LAB if response.is_server_error else None
        case _:
            return _fault_of(error.__cause__) if error is not None else None
