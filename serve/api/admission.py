"""The limit of replies that run or wait at once; beyond it a request gets 429 immediately."""

from serve.protocol.errors import ApiError

_RETRY_AFTER_SECONDS = "1"


class Admission:
    """Counts replies that run or wait; used from one asyncio loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0

    def enter(self, replies: int) -> None:
        """Let a request for so many replies in; raises ApiError (429) where there is no room for them."""
        if replies > self._most:
            raise ApiError(
                400,
                f"n: this request asks for {replies} replies; at most {self._most} can run or wait at once. "
                "Send several requests.",
                "n",
            )
        if self._inside + replies > self._most:
            raise ApiError(
                429,
                f"Too many requests: {self._inside} replies are running or queued, the limit is {self._most}; "
                "retry later.",
                code="queue_full",
                headers={"Retry-After": _RETRY_AFTER_SECONDS},
            )
        self._inside += replies

    def leave(self, replies: int) -> None:
        """They are done, one way or another."""
        self._inside -= replies
