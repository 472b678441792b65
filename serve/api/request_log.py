"""A log line and metrics for each request, without any message content."""

import json
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.log import logger
from serve.metrics import Metrics
from serve.protocol.transport import DIRECT, REQUEST_ID, request_id_of

if TYPE_CHECKING:
    from serve.replies.completion import Reply


class RequestLog:
    """ASGI middleware: gives each request an id, which is in the answer's headers and in the request's log line."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID)
        request_id = request_id_of(given)
        scope[DIRECT] = send
        began = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._tell(scope, request_id, status, time.perf_counter() - began)

    def _tell(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        state = scope.get("state", {})
        reply: Reply | None = state.get("reply")
        line: dict[str, Any] = {"id": request_id, "method": scope["method"], "path": scope["path"][:200]}
        if "caller" in state:
            line["key"] = state["caller"].name
        if reply is not None:
            usage = reply.usage()
            self._metrics.prompt_tokens.inc(usage.prompt_tokens)
            line |= {"reply": reply.id, "prompt_tokens": usage.prompt_tokens, "reply_tokens": usage.completion_tokens}
            status = reply.status  # a stream's headers are sent before it fails, or its client leaves
        route = getattr(scope.get("route"), "path", "none")  # not the path: clients could create any number of labels
        self._metrics.requests.labels(route, str(status)).inc()
        logger.info(json.dumps(line | {"status": status, "seconds": round(seconds, 4)}))
