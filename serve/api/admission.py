"""The limit of replies that run or wait at once; a request beyond it gets 429 immediately."""

import contextlib
from collections.abc import Iterator

from serve.protocol.errors import ApiError, queue_full


class Admission:
    """Counts replies that run or wait; used from one asyncio loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0

    @contextlib.contextmanager
    def admitted(self, replies: int) -> Iterator[contextlib.ExitStack]:
        """Count a request's replies until the block ends, or until the stack is closed if `pop_all` took it over.

        Raises ApiError: 429 if there is no room now, 400 if there is never enough.
        """
        self.enter(replies)
        with contextlib.ExitStack() as place:
            place.callback(self.leave, replies)
            yield place

    def enter(self, replies: int) -> None:
        """Admit a request for this number of replies; raises ApiError as `admitted` does."""
        if replies > self._limit:
            raise ApiError(
                400,
                f"n: this request asks for {replies} replies; at most {self._limit} can run or wait at once. "
                "Send several requests.",
                "n",
            )
        if self._inside + replies > self._limit:
            raise queue_full(self._inside, self._limit)
        self._inside += replies

    def leave(self, replies: int) -> None:
        """The replies have ended, in whatever way."""
        self._inside -= replies
