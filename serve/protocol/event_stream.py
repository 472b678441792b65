"""What the front and the replicas share of streams: headers, the comment that keeps one alive, its end."""

from serve.protocol.errors import ApiError

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx's word for a proxy that is to pass on what comes
}

DONE = "data: [DONE]\n\n"

COMMENT = ": keep-alive\n\n"

# What fails sooner has a status of its own; later its client has had the headers of a stream.
EARLY_SECONDS = 1.0

COMMENT_SECONDS = 10.0


def event_of(error: ApiError) -> str:
    """A failure in the middle of a stream, and its end."""
    return f"data: {error.body()}\n\n{DONE}"
