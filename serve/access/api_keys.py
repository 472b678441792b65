"""API keys: their stored form, and the keys that are valid now.

secret, key = make_key("alice", requests_per_minute=60)     # the secret is shown once; `key` is stored
ring = KeyRing(read)                                        # such as workflows.endpoint.api_keys.KeyFile(store).read
ring.find(secret)                                           # the key, or None

Only the SHA-256 hash of a secret is stored. Slow, salted hashes are for passwords, which people choose and others can
guess; a secret here is 256 random bits, so its hash gives nothing to guess from. Each request compares all hashes in
constant time.
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
# A replica sees a new or revoked key after at most this, plus the time of a read.
RELOAD_SECONDS = 5.0

_PerMinute = Annotated[int, Field(ge=1, le=1_000_000_000)] | None


class ApiKey(BaseModel):
    """The stored form of a key; a limit of None means no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """the key's owner, shown in logs"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """the hash of the secret, in hexadecimal digits"""
    requests_per_minute: _PerMinute = None
    tokens_per_minute: _PerMinute = None
    """of prompts and replies together"""
    created: str
    """UTC, ISO 8601"""


def make_key(
    name: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
) -> tuple[str, ApiKey]:
    """A new secret and its stored key. Raises pydantic's ValidationError for an invalid name or limit."""
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
    """The keys that are valid now; a thread reads them again every few seconds.

    `read` returns them, or None if no key was ever made. While it raises, or the stored keys are gone, the last read
    keys stay valid, including keys revoked since. The first read must succeed: its exceptions are raised.
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
        """Stop reading."""
        self._closed.set()

    def _follow(self) -> None:
        while not self._closed.wait(self._reload_s):
            try:
                self._keys = self._read_again()
            except Exception as error:  # any error of a store's library: the replica keeps answering
                self._say_that_it_fails(error)
            else:
                if self._failing_since is not None:
                    logger.warning("API keys can be read again, after %.0f s", time.monotonic() - self._failing_since)
                self._failing_since = None

    def _read_again(self) -> list[ApiKey]:
        found = self._read()
        if found is None and self._were_made:  # revoking leaves an empty list, so the file itself is gone
            raise FileNotFoundError("the API key file is gone")
        self._were_made = found is not None
        return found or []

    def _say_that_it_fails(self, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            logger.warning(
                "API keys cannot be read (%s: %s); the %d keys read last stay valid", type(error).__name__, error,
                len(self._keys),
            )  # fmt: skip
