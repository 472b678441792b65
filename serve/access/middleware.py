"""The middleware for API keys: requests need a key, and must stay within its rate limits.

app.add_middleware(ApiKeyMiddleware, keys=KeyRing(read), limits=Limits())
...
await hold_tokens(request, wanted, n)     # in a route, before it generates the replies

Answers have OpenAI's form and headers, so that its clients wait and retry by themselves.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.access.api_keys import ApiKey, KeyRing
from serve.access.bearer import OPEN_PATHS, key_of
from serve.access.rate_limits import Limits
from serve.engines.base import GenerationRequest
from serve.protocol import errors
from serve.protocol.errors import ApiError

if TYPE_CHECKING:
    from serve.replies.completion import Reply


class Caller:
    """The key of one request, and the share of its limits that the request holds."""

    def __init__(self, key: ApiKey, limits: Limits) -> None:
        self.name = key.name
        self.headers: dict[str, str] = {}
        """headers of the answer: the rest of the limits"""
        self._key = key
        self._limits = limits
        self._held = 0

    async def count_request(self) -> None:
        """Count one request. Raises ApiError (429)."""
        await self._take("requests", self._key.requests_per_minute, 1)

    async def hold_tokens(self, amount: int) -> None:
        """Hold the maximum tokens of prompt and reply until `settle`. Raises ApiError (429)."""
        await self._take("tokens", self._key.tokens_per_minute, amount)
        self._held = amount

    async def settle(self, used: int) -> None:
        """Return the tokens that were held and not used."""
        if self._key.tokens_per_minute is not None and self._held > used:
            unused, self._held = self._held - used, 0
            await self._limits.give_back(self._bucket("tokens"), self._key.tokens_per_minute, unused)

    async def _take(self, kind: str, per_minute: int | None, amount: int) -> None:
        if per_minute is None:
            return
        taken = await self._limits.take(self._bucket(kind), per_minute, amount)
        self.headers |= {
            f"x-ratelimit-limit-{kind}": str(per_minute),
            f"x-ratelimit-remaining-{kind}": str(taken.remaining),
            f"x-ratelimit-reset-{kind}": errors.duration(taken.full_s),
        }
        if not taken.granted:
            raise errors.rate_limited(kind, per_minute, amount, taken.remaining, taken.wait_s)

    def _bucket(self, kind: str) -> str:
        return f"{self._key.sha256[:16]}/{kind}"  # not the name: a new key with the same name has a new bucket


async def hold_tokens(request: Request, wanted: Sequence[GenerationRequest], n: int) -> None:
    """Hold the maximum tokens of `n` replies to each prompt until the request is done. Raises ApiError (429).

    A prompt counts once, as in the answer's usage. At endpoints without keys it does nothing.
    """
    prompts = sum(len(each.prompt_ids) for each in wanted[::n])
    await hold_so_many(request, prompts + sum(each.max_new_tokens for each in wanted))


async def hold_so_many(request: Request, tokens: int) -> None:
    """Hold this number of tokens until the request is done. Raises ApiError (429)."""
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is not None:
        await caller.hold_tokens(tokens)


class ApiKeyMiddleware:
    """ASGI middleware: 401 without a valid key, 429 above its request limit; settles tokens when a request is done.

    POST requests count, including those that are refused later; GET requests are free.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, limits: Limits) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            given = dict(scope["headers"]).get(b"authorization", b"")
            caller = Caller(key_of(given, self._keys), self._limits)
        except ApiError as error:
            await errors.response(error)(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["caller"] = caller

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(caller.headers)
            await send(message)

        try:
            if scope["method"] == "POST":
                await caller.count_request()
            await self._app(scope, receive, send_with_limits)
        except ApiError as error:  # the routes' own errors are answered before they get here
            await errors.response(error)(scope, receive, send_with_limits)
        finally:
            reply: Reply | None = state.get("reply")
            await caller.settle(reply.usage().total_tokens if reply else 0)
