"""What the front and the replicas share of streams: headers, the comment that keeps one alive, its end."""

import json

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx's word for a proxy that is to pass on what comes
}

DONE = "data: [DONE]\n\n"

RESPONSES = "/v1/responses"
"""the route whose events have types and numbers"""

COMMENT = ": keep-alive\n\n"

# What fails sooner has a status of its own; later its client has had the headers of a stream.
EARLY_SECONDS = 1.0

COMMENT_SECONDS = 10.0


def failure(body: str | bytes, path: str, number: int = 0) -> str:
    """An error's body in the middle of the stream of a route, after `number` events, and the stream's end."""
    if path != RESPONSES:
        text = body if isinstance(body, str) else body.decode()
        return f"data: {' '.join(text.splitlines())}\n\n{DONE}"
    error = json.loads(body)["error"]
    told = {name: error.get(name) for name in ("code", "message", "param")}
    told["code"] = told["code"] or error.get("type")
    return f"event: error\ndata: {json.dumps({'type': 'error', 'sequence_number': number, **told})}\n\n"
