"""API keys: what is kept of one, and which ones are valid at this moment.

secret, key = make_key("alice", requests_per_minute=60)     # the secret is shown once; `key` is kept
ring = KeyRing(read)                                        # such as workflows.endpoint.api_keys.KeyFile(store).read
ring.find(secret)                                           # the key, or None

Of a secret its SHA-256 is kept and nothing else. Slow, salted hashes are for passwords, which people choose and
others can guess; a secret here is 256 random bits, so who reads its hash has nothing to try. Hashes are compared in
constant time, all of them for each request.
"""

import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)

PREFIX = "rk-"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$"
# A key that was made or revoked is seen by a replica at the latest after this, and the time of a read.
RELOAD_SECONDS = 5.0

_PerMinute = Annotated[int, Field(ge=1, le=1_000_000_000)] | None


class ApiKey(BaseModel):
    """What is kept of a key; limits of None are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """whose it is; it stands in logs"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """of the secret, in hexadecimal digits"""
    requests_per_minute: _PerMinute = None
    tokens_per_minute: _PerMinute = None
    """of prompts and replies together"""
    created: str
    """UTC, ISO 8601"""


def make_key(
    name: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
) -> tuple[str, ApiKey]:
    """A new secret, and what to keep of it. Raises pydantic's ValidationError for a name or limit that is none."""
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        name=name,
        sha256=_hash(secret.encode()),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return secret, key


def _hash(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


class KeyRing:
    """The keys that are valid now, read again every few seconds by a thread of its own.

    `read` returns them, or None where none were ever made. While it raises, or what was there is gone, the ring goes
    on with what it read last: keys work on, and a revoked one too. At the start it has to work: what it raises then
    is raised.
    """

    def __init__(self, read: Callable[[], list[ApiKey] | None], reload_s: float = RELOAD_SECONDS) -> None:
        self._read = read
        self._reload_s = reload_s
        found = read()
        self._were_made = found is not None
        self._keys = found or []
        self._failing_since: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._follow, name="api keys", daemon=True).start()

    def find(self, secret: bytes) -> ApiKey | None:
        """The key with this secret, if it is valid."""
        wanted, found = _hash(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, wanted):
                found = key
        return found

    def close(self) -> None:
        """Read no more."""
        self._closed.set()

    def _follow(self) -> None:
        while not self._closed.wait(self._reload_s):
            try:
                self._keys = self._read_again()
            except Exception as error:  # whatever a store's library raises: the replica answers on
                self._say_that_it_fails(error)
            else:
                if self._failing_since is not None:
                    logger.warning("API keys are read again, after %.0f s", time.monotonic() - self._failing_since)
                self._failing_since = None

    def _read_again(self) -> list[ApiKey]:
        found = self._read()
        if found is None and self._were_made:  # revoking leaves an empty list, so the store itself is gone
            raise FileNotFoundError("the file of API keys is gone")
        self._were_made = found is not None
        return found or []

    def _say_that_it_fails(self, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            logger.warning(
                "API keys cannot be read (%s: %s); going on with the %d read last", type(error).__name__, error,
                len(self._keys),
            )  # fmt: skip
