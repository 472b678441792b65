"""Constants of streams that the front and the replicas share: headers, the keep-alive comment, the end."""

import json

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # tells nginx to forward events immediately
}

DONE = "data: [DONE]\n\n"

RESPONSES = "/v1/responses"
"""the route with typed and numbered events"""

COMMENT = ": keep-alive\n\n"

# Earlier failures have their own status; after this time the client has the stream's headers.
EARLY_SECONDS = 1.0

COMMENT_SECONDS = 10.0


def failure(body: str | bytes, path: str, number: int = 0) -> str:
    """An error event for the stream of a route, after `number` events, and the stream's end."""
    if path != RESPONSES:
        text = body if isinstance(body, str) else body.decode()
        return f"data: {' '.join(text.splitlines())}\n\n{DONE}"
    error = json.loads(body)["error"]
    told = {name: error.get(name) for name in ("code", "message", "param")}
    told["code"] = told["code"] or error.get("type")
    return f"event: error\ndata: {json.dumps({'type': 'error', 'sequence_number': number, **told})}\n\n"
