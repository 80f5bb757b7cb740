"""Requests generated from the OpenAPI description: every response is described."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.specs.openapi import checks

from neops_remote_lab.api.openapi import OPERATIONS, Operation
from neops_remote_lab.models import ExecRequestDto
from neops_remote_lab.models.session import ONE_LINE_FORMAT
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server

EXAMPLES: Final = 50
"""Number of requests per operation."""
CHECKS: Final = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
WRONG_TIME: Final = ["404", "409", "410", "423"]
"""Statuses of valid requests that do not fit the state of the session or the lab."""

Form = list[tuple[str, tuple[str | None, bytes]]]

_contents = st.sampled_from([topology_text(1).encode(), topology_text(2).encode()]) | st.binary(max_size=100)
_names = st.sampled_from(["lab.yml", "lab.yaml", "files/r1.cfg", "../lab.yml"]) | st.text(max_size=20)
_files: st.SearchStrategy[tuple[str, tuple[str | None, bytes]]] = st.tuples(
    st.sampled_from(["topology", "extra_files"]), st.tuples(_names, _contents)
)
_texts = st.tuples(st.sampled_from(["reuse", "executable"]), st.tuples(st.none(), st.binary(max_size=20)))
_a_lab: Form = [("topology", ("lab.yml", topology_text(1).encode()))]
FORMS: Final = st.just(_a_lab) | st.lists(_files | _texts, min_size=1, max_size=5)
"""Operations with file names, whose rules an OpenAPI schema cannot describe."""

schemathesis.openapi.format(
    ONE_LINE_FORMAT, st.text(st.characters(categories=("L", "M", "N", "P", "S"), include_characters=" "))
)


@dataclass
class Callers:
    """An active and a waiting session, which join again if an earlier request has ended them."""

    server: LabServer
    http: httpx.Client
    live: list[str] = field(default_factory=list)

    def renew(self) -> list[str]:
        """The ids of the active and of the waiting session."""
        self.live = [session for session in self.live if self.http.get(f"/session/{session}").is_success]
        self.live += [self.server.join() for _ in range(2 - len(self.live))]
        return self.live

    def end(self, session: str) -> None:
        self.http.delete(f"/session/{session}")


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    with running_server(tmp_path_factory.mktemp("server"), max_wait="0.01", ready_cache="60") as server:
        with server.client() as http:
            callers = Callers(server, http)
            yield callers
            for session in callers.live:
                callers.end(session)
        wait_until(server.is_clean, 20, "a lab was not torn down")
        assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def description(callers: Callers) -> BaseSchema:
    accepted = {"positive_data_acceptance": {"expected-statuses": ["2xx", *WRONG_TIME]}}
    config = schemathesis.Config.from_dict({"checks": accepted})
    return schemathesis.openapi.from_url(f"{callers.server.url}/openapi.json", config=config)


def _takes_away(operation: Operation) -> bool:
    return operation.method == "delete" or operation.path == "/lab/release"


CALLS: Final = sorted(OPERATIONS, key=_takes_away)
"""Sort operations that remove something after the others."""


@pytest.mark.parametrize("described", CALLS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_response_matches_the_description(
    callers: Callers, description: BaseSchema, described: Operation
) -> None:
    operation = description[described.path][described.method.upper()]
    can_be_wrong = described.body or any(parameter["in"] != "path" for parameter in described.parameters)
    modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if can_be_wrong else [])]
    # An upload is judged by its file names and its YAML as well, and a command by what no program can be given: a
    # schema does not describe that.
    beyond_schema = described.body in {"upload", ExecRequestDto}
    wanted = CHECKS if beyond_schema else [*CHECKS, checks.positive_data_acceptance]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    @given(
        case=st.one_of([operation.as_strategy(mode) for mode in modes]),
        caller=st.sampled_from([None, 0, 0, 1]),
        form=st.none() | FORMS,
        prefer=st.sampled_from(["", "respond-async"]),
    )
    def send(case: Case[Any], caller: int | None, form: Form | None, prefer: str) -> None:
        sessions = callers.renew()
        if caller is not None:
            _call_as(sessions[caller], case, described)
        given: dict[str, Any] = {}
        if described.body == "upload" and form:
            given = {"files": form, "headers": {"Prefer": prefer}}
        response = case.call(**given)
        if described.path == "/session" and response.status_code == 201:
            callers.end(response.json()["session_id"])
        case.validate_response(response, checks=wanted)

    send()


def _call_as(session: str, case: Case[Any], described: Operation) -> None:
    names = {parameter["name"] for parameter in described.parameters}
    if "session_id" in names:
        case.path_parameters = {"session_id": session}
    if "X-Session-ID" in names:
        case.headers["X-Session-ID"] = session
