"""Error answers with OpenAI's error body: message, type, field and code; and all "retry later" answers."""

import math

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from models.errors import RayconteurError, nearest
from serve.protocol.base import BRANCH
from serve.protocol.responses import Error, ErrorBody

# nginx's status for a client that disconnected before its answer; only for logs.
CLIENT_CLOSED_REQUEST = 499

LOST = "rayconteur-lost"
"""header of an answer if the replica's engine has failed, "before" or "in" the request; the front then retries"""


class ApiError(RayconteurError):
    """An error answer to a request; `param` names the field, and `kind` replaces the status' default error type."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.error = Error(
            message=message,
            type=kind or _kind_of(status),
            param=param,
            code=code,
        )

    def body(self) -> str:
        """The answer's JSON."""
        return ErrorBody(error=self.error).model_dump_json()


# All "retry later" answers, 429 and 503 with Retry-After. The OpenAPI document describes these statuses
# in general, in serve/api/openapi.py.


def queue_full(running: int, limit: int) -> ApiError:
    """429 of a replica whose queue is full (serve/api/admission.py)."""
    return _retry_later(
        429,
        f"Too many requests: {running} replies are running or queued, the limit is {limit}; retry later.",
        code="queue_full",
    )


def replicas_busy() -> ApiError:
    """429 of the front: every replica's queue is full (serve/deployment/front_actor.py)."""
    return _retry_later(429, "All replicas are busy and the queue is full; retry later.", code="queue_full")


def rate_limited(kind: str, per_minute: int, amount: int, remaining: int, wait_s: float) -> ApiError:
    """429 of an API key's limit of requests or tokens (`kind`) per minute (serve/access/middleware.py).

    `wait_s` is infinite for a request that is larger than the limit itself.
    """
    limit = f"This API key may have {per_minute} {kind} a minute"
    if math.isinf(wait_s):
        message = f"{limit}, and this request alone may use {amount}: shorten its prompt or lower its token limit."
        headers = {"x-should-retry": "false"}  # for OpenAI's clients, which would retry otherwise
        return ApiError(429, message, code="rate_limit_exceeded", kind=kind, headers=headers)
    message = f"{limit}: {remaining} are left, and this request needs {amount}. Retry in {duration(wait_s)}."
    return _retry_later(429, message, math.ceil(wait_s), code="rate_limit_exceeded", kind=kind)


def format_queue_full(param: str) -> ApiError:
    """429 of a replica whose queue of formats to check is full (serve/grammar/formats.py)."""
    message = f"{param}: the endpoint is too busy to prepare this format in time; retry in a few seconds."
    return _retry_later(429, message, 3, param=param)


def bodies_full(limit_mib: int) -> ApiError:
    """503 of the front: the bodies of open requests use all its memory for bodies (serve/front/bodies.py)."""
    return _retry_later(
        503,
        f"The request bodies in progress use up the {limit_mib} MiB that are reserved for them; retry later.",
        code="overloaded",
    )


def _retry_later(
    status: int, message: str, seconds: int = 1, *, code: str | None = None, param: str | None = None,
    kind: str | None = None,
) -> ApiError:  # fmt: skip
    return ApiError(status, message, param, code, {"Retry-After": str(max(1, seconds))}, kind)


def duration(seconds: float) -> str:
    """A duration in the format of OpenAI's headers: 250ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 2), 60)
    return f"{minutes:.0f}m{rest:.0f}s" if minutes else f"{rest:g}s"


def _kind_of(status: int) -> str:
    return "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"


def refusal(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    """The answer to an invalid body: its first error."""
    first = error.errors(include_url=False)[0]
    param = _field_path(first["loc"])
    return ApiError(400, _sentence(first, param, kind), param)


def install(app: FastAPI) -> None:
    """Make `app` answer all errors in this form, including the framework's own."""

    async def on_api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return response(error)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = error.detail
        if error.status_code == 404:
            message = f"There is no route {request.method} {request.url.path}."
        if error.status_code == 405:
            message = f"{request.url.path} does not support {request.method} requests."
        return response(ApiError(error.status_code, message, headers=dict(error.headers or {})))

    async def on_departure(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        return response(ApiError(500, "The server failed at this request; its log says why."))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientDisconnect, on_departure)
    app.add_exception_handler(Exception, on_bug)


def response(error: ApiError) -> JSONResponse:
    """The HTTP response of an error."""
    return JSONResponse({"error": error.error.model_dump()}, error.status, error.headers)


def _field_path(location: tuple[int | str, ...]) -> str | None:
    """("messages", 1, "role") as "messages[1].role"."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith(BRANCH):
            path += f".{step}" if path else step
    return path[:200] or None


def _sentence(fault: ErrorDetails, param: str | None, kind_of_request: type[BaseModel]) -> str:
    """The error message for one of pydantic's errors: the field, the rule and the value."""
    kind, rule = fault["type"], fault["msg"]
    if kind == "json_invalid":
        return f"The request body is not valid JSON: {rule.removeprefix('Invalid JSON: ')}."
    if param is None:
        return "The request body must be a JSON object."
    if kind == "extra_forbidden":
        return f"Unrecognized or unsupported request argument: {param}.{_did_you_mean(param, kind_of_request)}"
    if kind == "missing":
        return f"Missing required parameter: {param}."
    if kind == "conflict":
        return f"{param}: {rule}."
    got = repr(fault["input"])
    shortened = got if len(got) <= 80 else f"{got[:80]}…"
    return f"{param}: {rule}; got {shortened}."


def _did_you_mean(name: str, kind: type[BaseModel]) -> str:
    close = nearest(name, kind.model_fields, 0.75)
    return f" Did you mean {close}?" if close else ""
