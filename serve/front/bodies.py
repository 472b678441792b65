"""Request bodies in the front: their decompressed size is limited, for each request and for all open ones together.

budget = Budget(128 << 20)
with budget.room() as room:
    body = await read_body(request, room)
"""

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from serve.protocol.errors import ApiError, bodies_full
from serve.protocol.transport import MAX_BODY_BYTES

_BODY_SECONDS = 60.0
_SUPPORTED = "gzip and deflate"


class Room:
    """The part of a Budget that one request holds."""

    def __init__(self, budget: "Budget") -> None:
        self._budget = budget
        self._held = 0

    def take(self, num_bytes: int) -> None:
        """Take this number of bytes. Raises ApiError (503) if the budget is used up."""
        self._budget.take(num_bytes)
        self._held += num_bytes

    def give_back(self) -> None:
        """Return everything; the body is not needed any more."""
        self._budget.give_back(self._held)
        self._held = 0


class Budget:
    """A limit of the bytes of all bodies in memory."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    @contextmanager
    def room(self) -> Iterator[Room]:
        """A request's part, which is returned after the block."""
        room = Room(self)
        try:
            yield room
        finally:
            room.give_back()

    def take(self, num_bytes: int) -> None:
        if self.held + num_bytes > self._most:
            raise bodies_full(self._most >> 20)
        self.held += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self.held -= num_bytes


def too_large(found: str) -> ApiError:
    """413; `found` is the size as text."""
    return ApiError(413, f"The request body has {found}; at most {MAX_BODY_BYTES} are read.")


def check_headers(request: web.BaseRequest) -> None:
    """Refuse a body that is too large or unknown encoded according to its headers. Raises ApiError."""
    _encoding(request)
    if request.content_length is not None and request.content_length > MAX_BODY_BYTES:
        raise too_large(f"{request.content_length} bytes")
    if (expect := request.headers.get("expect", "").lower()) not in ("", "100-continue"):
        raise ApiError(417, f"Expect: got {expect[:100]!r}; only 100-continue is supported.")


async def read_body(request: web.BaseRequest, room: Room) -> bytearray:
    """The body, decompressed. Raises ApiError: 400, 408, 413, 415, 417, 503."""
    check_headers(request)
    encoding = _encoding(request)
    decoder = _Decoder(encoding) if encoding else None
    if request.headers.get("expect") and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while chunk := await request.content.readany():
                left = MAX_BODY_BYTES - len(body)
                plain = decoder.decode(chunk, left + 1) if decoder else chunk
                if len(plain) > left:
                    raise too_large(f"more than {MAX_BODY_BYTES} bytes")
                room.take(len(plain))
                body += plain
    except TimeoutError:
        raise ApiError(408, f"The request body did not arrive within {_BODY_SECONDS:g} seconds.") from None
    except (HttpProcessingError, web.RequestPayloadError) as error:
        raise ApiError(400, f"The request body cannot be read: {_words(error)}.") from error
    if decoder is not None and body and not decoder.is_whole:
        raise ApiError(400, "Content-Encoding: the compressed request body ends too early.")
    return body


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _encoding(request: web.BaseRequest) -> str:
    """The content encoding, "" for none; raises ApiError (415)."""
    given = ",".join(request.headers.getall("content-encoding", ())).strip().lower()
    if given in ("", "identity"):
        return ""
    if given not in ("gzip", "x-gzip", "deflate"):
        raise ApiError(
            415,
            f"Content-Encoding: got {given[:100]!r}; send the body uncompressed, or with {_SUPPORTED}.",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    return given


class _Decoder:
    """Decompresses a body in pieces of limited size."""

    def __init__(self, encoding: str) -> None:
        self._may_be_raw = encoding == "deflate"
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | (0 if self._may_be_raw else 16))

    @property
    def is_whole(self) -> bool:
        return self._inflate.eof

    def decode(self, chunk: bytes, most: int) -> bytes:
        """At most `most` decompressed bytes of the chunk; raises ApiError (400)."""
        if self._inflate.eof:
            raise ApiError(400, "Content-Encoding: something follows the compressed request body.")
        try:
            return self._decode(chunk, most)
        except zlib.error as error:
            raise ApiError(
                400, f"Content-Encoding: the request body is not compressed with this encoding: {error}."
            ) from None

    def _decode(self, chunk: bytes, most: int) -> bytes:
        try:
            plain = self._inflate.decompress(chunk, most)
        except zlib.error:
            if not self._may_be_raw:
                raise
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)  # raw deflate, which some clients send
            plain = self._inflate.decompress(chunk, most)
        self._may_be_raw = False
        if self._inflate.unused_data:
            raise ApiError(400, "Content-Encoding: something follows the compressed request body.")
        return plain
