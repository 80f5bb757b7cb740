"""The OpenAPI 3.1 description, generated from the Dto models that the handlers use."""

import re
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from neops_remote_lab.api.requests import KEY_LENGTH
from neops_remote_lab.models import (
    AcquireResponseDto,
    ActiveSessionResponseDto,
    CreateSessionRequestDto,
    CreateSessionResponseDto,
    DebugHealthDto,
    DeviceInfoDto,
    ErrorDto,
    ExecRequestDto,
    ExecResponseDto,
    LabStatusDto,
    QueueDto,
    ReadyDto,
    SessionStatusResponseDto,
    TopologyCheckDto,
)
from neops_remote_lab.models.session import ONE_LINE_FORMAT

_REFERENCE: Final = "#/components/schemas/{model}"


def _header(name: str, description: str, *, required: bool = False, **limits: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": required,
        "description": description,
        "schema": {"type": "string", **limits},
    }


def _key_header(description: str) -> dict[str, Any]:
    return _header("Idempotency-Key", description, minLength=1, maxLength=KEY_LENGTH, format=ONE_LINE_FORMAT)


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


SESSION_HEADER: Final = _header("X-Session-ID", "the id of the calling session", required=True, minLength=1)
LAST_EVENT_HEADER: Final = _header(
    "Last-Event-ID", "the last event that was received, or empty: events get ids, and the stream continues after it"
)
KEY_HEADER: Final = _key_header("a repeated call with the same key has no further effect")
DEVICE_NAME: Final = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
SESSION_ID: Final = {"name": "session_id", "in": "path", "required": True, "schema": {"type": "string"}}
_FILE: Final = {"type": "string", "contentMediaType": "application/octet-stream"}
_UPLOAD: Final = {
    "type": "object",
    "required": ["topology"],
    "properties": {
        "topology": {**_FILE, "description": "the netlab topology, .yml or .yaml"},
        "reuse": {
            "type": "boolean",
            "default": True,
            "description": "share the lab if it is already running this topology",
        },
        "extra_files": {
            "type": "array",
            "items": _FILE,
            "description": "files that the topology needs; their names may contain directories",
        },
        "executable": {
            "type": "array",
            "items": {"type": "string"},
            "description": "names of the extra files that are executable",
        },
    },
}


Content = type[BaseModel] | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the API."""

    method: str
    path: str
    summary: str
    success: dict[int, Content]
    """For each status code, the model of the body, its media types, or None for no body."""
    failures: dict[int, str]
    parameters: tuple[dict[str, Any], ...] = ()
    body: type[BaseModel] | str | None = None
    many: bool = False
    """The body is a list of the model."""


_UNKNOWN: Final = {404: "unknown session"}
_NOT_ACTIVE: Final = {404: "unknown session, or no lab", 423: "the session is not active"}
_HEADER_MISSING: Final = {422: "X-Session-ID is missing"}
_ALWAYS: Final = {500: "the server failed; its log says why", 503: "the server's database cannot be used"}
"""Failures of every operation that needs the database."""
_OTHER_HOST: Final = "the server of the session's lab host cannot be reached"
"""Added to 503 for calls that may be passed on to another server of the queue."""
_UPLOAD_FAILURES: Final = {
    400: "a file name is not allowed",
    413: "the upload is too large",
    422: "the form is invalid, or netlab rejects the topology",
    503: "the server is shutting down, or its database cannot be used",
    507: "the lab host's disk is full",
}

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        "post",
        "/session",
        "Join the queue",
        {201: CreateSessionResponseDto},
        {
            413: "the body is too large",
            422: "the body, a label or the key is invalid",
            503: "the server is shutting down, or its database cannot be used",
        },
        (KEY_HEADER,),
        CreateSessionRequestDto,
    ),
    Operation(
        "get",
        "/session/{session_id}",
        "Get a session's position, or wait until it changes",
        {200: SessionStatusResponseDto},
        {
            **_UNKNOWN,
            410: "the session was ended by the server or an operator",
            422: "wait or position is not a number",
        },
        (
            SESSION_ID,
            _query("wait", {"type": "number", "minimum": 0}, "seconds to wait for a change (long poll)"),
            _query("position", {"type": "number", "minimum": 0}, "the known position; any other is returned at once"),
        ),
    ),
    Operation("delete", "/session/{session_id}", "End a session", {204: None}, _UNKNOWN, (SESSION_ID,)),
    Operation(
        "get",
        "/active-session",
        "Get the active session",
        {200: ActiveSessionResponseDto},
        {404: "no session is active"},
        (_header("X-Session-ID", "the owner of the active session gets its whole id"),),
    ),
    Operation(
        "post", "/session/heartbeat", "Keep a session alive", {204: None}, _UNKNOWN | _HEADER_MISSING, (SESSION_HEADER,)
    ),
    Operation(
        "post",
        "/lab",
        "Acquire the lab with a topology",
        {200: AcquireResponseDto, 202: None},
        {
            **_UPLOAD_FAILURES,
            404: "unknown session",
            408: "the upload stalled",
            409: "the lab was torn down during its start",
            423: "the session is not active, or the lab is busy",
            500: "netlab or the server failed; the server's log says why",
        },
        (SESSION_HEADER, KEY_HEADER, _header("Prefer", "respond-async: answer 202 at once; GET /lab shows progress")),
        "upload",
    ),
    Operation(
        "get", "/lab", "Get the session's lab", {200: LabStatusDto}, _NOT_ACTIVE | _HEADER_MISSING, (SESSION_HEADER,)
    ),
    Operation(
        "delete",
        "/lab",
        "Tear the lab down",
        {202: None, 204: None},
        {**_NOT_ACTIVE, 409: "in use, and force is false", 422: "force is not a boolean, or X-Session-ID is missing"},
        (SESSION_HEADER, _query("force", {"type": "boolean", "default": True}, "tear down a lab that is in use")),
    ),
    Operation(
        "get",
        "/lab/devices",
        "Get the lab's devices",
        {200: DeviceInfoDto},
        _NOT_ACTIVE | _HEADER_MISSING,
        (SESSION_HEADER,),
        many=True,
    ),
    Operation(
        "post",
        "/lab/devices/{name}/exec",
        "Run a command in a device",
        {200: ExecResponseDto},
        {
            **_NOT_ACTIVE,
            404: "unknown session, no lab, or no such device",
            408: "the command did not end in time, and was ended",
            413: "the body is too large",
            422: "the body is wrong, or X-Session-ID is missing",
            500: "Docker could not run the command, or the server failed; its log says why",
            501: "the device does not run in a container, or has no shell",
            503: "the server is shutting down, or its database cannot be used",
            507: "the lab host's disk is full",
        },
        (SESSION_HEADER, DEVICE_NAME),
        ExecRequestDto,
    ),
    Operation(
        "get",
        "/lab/log",
        "Get netlab's output; as a live stream with Accept: text/event-stream",
        {200: ("text/plain", "text/event-stream")},
        _NOT_ACTIVE
        | _HEADER_MISSING
        | {429: "too many readers of this log", 503: "too many readers of logs, or the database cannot be used"},
        (SESSION_HEADER, LAST_EVENT_HEADER),
    ),
    Operation(
        "get",
        "/lab/artifacts",
        "Get logs, configurations and other artifacts of the lab as an archive",
        {200: ("application/gzip",)},
        _NOT_ACTIVE
        | _HEADER_MISSING
        | {
            429: "another call of the session is collecting them",
            500: "the archive could not be created; the server's log says why",
            503: "the server is shutting down, or its database cannot be used",
            507: "the lab host's disk is full",
        },
        (SESSION_HEADER,),
    ),
    Operation(
        "post",
        "/lab/release",
        "Release one reference",
        {204: None},
        _NOT_ACTIVE | _HEADER_MISSING,
        (SESSION_HEADER, _key_header("the key of the acquire to release")),
    ),
    Operation(
        "post",
        "/topology/check",
        "Check a topology with netlab, and prepare it for this session's acquire",
        {200: TopologyCheckDto},
        {
            **_UPLOAD_FAILURES,
            404: "unknown session",
            408: "the upload stalled",
            409: "the session became active before the check began",
            423: "too many labs of the host are running or prepared",
            500: "netlab could not be run, or the server failed; its log says why",
        },
        (SESSION_HEADER,),
        "upload",
    ),
    Operation(
        "get",
        "/queue",
        "Get the queue",
        {200: QueueDto},
        {422: "limit is not a number"},
        (_query("limit", {"type": "number", "minimum": 0}, "maximum number of listed sessions"),),
    ),
    Operation("get", "/healthz", "Check whether the server answers", {204: None}, {}),
    Operation(
        "get", "/readyz", "Check whether the host can start labs", {200: ReadyDto}, {503: "it cannot; detail says why"}
    ),
    Operation("get", "/metrics", "Get the metrics for Prometheus", {200: ("text/plain",)}, {}),
    Operation("get", "/debug/health", "Get figures about the server", {200: DebugHealthDto}, {}),
)


def describe(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    _, schema = models_json_schema([(model, "serialization") for model in _models()], ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "neops-remote-lab",
            "version": version,
            "description": "Shares one netlab host among many users: a FIFO queue of sessions, one lab at a time.",
        },
        "paths": paths,
        "components": {"schemas": schema["$defs"]},
    }


def _models() -> list[type[BaseModel]]:
    used = [content for operation in OPERATIONS for content in (operation.body, *operation.success.values())]
    return [ErrorDto, *dict.fromkeys(content for content in used if isinstance(content, type))]


def _describe(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method}{operation.path}").strip("_"),
        "parameters": list(operation.parameters),
        "responses": {
            str(code): _answer(operation.summary, content, many=operation.many)
            for code, content in operation.success.items()
        }
        | {str(code): _answer(text, ErrorDto) for code, text in sorted(_failures(operation).items())},
    }
    if operation.body == "upload":
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}}
    elif isinstance(operation.body, type):
        content = {"application/json": {"schema": _reference(operation.body)}}
        described["requestBody"] = {"required": False, "content": content}
    return described


def _failures(operation: Operation) -> dict[int, str]:
    if operation.path == "/healthz":
        return operation.failures
    failures = _ALWAYS | operation.failures
    if operation.path.startswith("/lab"):
        failures[503] += f"; or {_OTHER_HOST}"
    return failures


def _answer(text: str, content: Content, *, many: bool = False) -> dict[str, Any]:
    if content is None:
        return {"description": text}
    if isinstance(content, tuple):
        return {"description": text, "content": {kind: {"schema": {"type": "string"}} for kind in content}}
    schema = _reference(content)
    body = {"application/json": {"schema": {"type": "array", "items": schema} if many else schema}}
    return {"description": text, "content": body}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
