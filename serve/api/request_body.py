"""Request bodies: their size and content type are checked, and the JSON is parsed."""

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from serve.protocol import errors
from serve.protocol.errors import ApiError

Body = TypeVar("Body", bound=BaseModel)


async def read_json(kind: type[Body], request: Request, max_body_bytes: int) -> Body:
    """The parsed body; raises ApiError (400, 413, 415) if it is not a valid `kind` in JSON."""
    body = await _read(request, max_body_bytes)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(415, f"Content-Type: got {content_type!r}; must be application/json.")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise errors.refusal(error, kind) from error


async def _read(request: Request, max_body_bytes: int) -> bytes:
    """The body. If it is too large, up to 16 times the limit is read, so that the client gets to read the answer."""
    body = bytearray()
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes <= max_body_bytes:
            body += chunk
        if num_bytes > 16 * max_body_bytes:
            break
    if num_bytes > max_body_bytes:
        raise ApiError(413, f"The request body has {num_bytes} bytes or more; at most {max_body_bytes} are read.")
    return bytes(body)
