"""Create, list and revoke the API keys in a store. An endpoint's replicas read the same file every few seconds.

<store>/keys/keys.json     the valid keys, as hashes (serve/access/api_keys.py); never a secret

secret, key = KeyFile(store).add("alice", requests_per_minute=60)

Writes are atomic, and a lock lets one program at a time change the file. Revoking the last key leaves an empty list,
because a missing file means that something is wrong with the store.
"""

import contextlib
import re
import uuid
from collections.abc import Callable, Iterator

from pydantic import BaseModel, ConfigDict

from models.errors import RayconteurError, nearest
from serve.access.api_keys import NAME_PATTERN, ApiKey, make_key
from workflows.progress import table_text
from workflows.store import Store, StoreError


class UnusableKey(RayconteurError):
    """A key that cannot be created or revoked."""


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[ApiKey]


class KeyFile:
    """The API keys of a store."""

    def __init__(self, store: Store, on_wait: Callable[[str], None] = lambda text: None) -> None:
        self._store = store
        self._path = f"{store.root}/keys/keys.json"
        self._on_wait = on_wait

    def __repr__(self) -> str:
        return f"KeyFile({self._path!r})"

    def __reduce__(self) -> tuple[type["KeyFile"], tuple[Store]]:
        """Pickle without `on_wait`, which belongs to this process."""
        return type(self), (self._store,)

    def read(self) -> list[ApiKey] | None:
        """The valid keys, oldest first; None if no key was ever created. Raises StoreError, OSError."""
        try:
            content = self._store.read_json(self._path)
            return None if content is None else _Content.model_validate(content).keys
        except ValueError as error:
            words = str(error).splitlines()[0]
            raise StoreError(
                f"{self._path}: is not a list of API keys ({words}); repair or remove the file"
            ) from error

    def add(
        self, name: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> tuple[str, ApiKey]:
        """Create a key. Returns its secret, which is stored nowhere, and the stored part. Raises UnusableKey."""
        if not re.fullmatch(NAME_PATTERN, name):
            raise UnusableKey(
                f"NAME: got {name!r}; must be 1 to 63 letters, digits or any of . _ @ -, and start with a letter or "
                "digit"
            )
        with self._changing() as keys:
            if any(key.name == name for key in keys):
                raise UnusableKey(f"NAME: a key named {name} already exists; revoke it first, or choose another name")
            secret, key = make_key(name, requests_per_minute, tokens_per_minute)
            keys.append(key)
        return secret, key

    def revoke(self, name: str) -> None:
        """Remove a key from the valid ones. Raises UnusableKey."""
        with self._changing() as keys:
            names = [key.name for key in keys]
            if name not in names:
                near = nearest(name, names)
                fix = f"did you mean {near}?" if near else f"existing keys: {', '.join(names) or 'none'}"
                raise UnusableKey(f"NAME: no key is named {name}; {fix}")
            del keys[names.index(name)]

    @contextlib.contextmanager
    def temporary(self) -> Iterator[str]:
        """A key without rate limits, valid until the block ends; yields its secret."""
        name = f"run-{uuid.uuid4().hex[:8]}"
        secret, _ = self.add(name)
        try:
            yield secret
        finally:
            self.revoke(name)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[ApiKey]]:
        """The list of keys, for the block to change; written back afterwards unless the block raises."""
        with self._store.lock("keys", "keys", self._on_wait):
            keys = self.read() or []
            yield keys
            self._store.write_json(self._path, _Content(keys=keys).model_dump())


def keys_text(keys: list[ApiKey]) -> str:
    """A table of keys."""
    if not keys:
        return "no keys yet"
    rows = [(key.name, key.created, _limit(key.requests_per_minute), _limit(key.tokens_per_minute)) for key in keys]
    return table_text(("name", "made", "requests/minute", "tokens/minute"), rows, right=(2, 3))


def _limit(per_minute: int | None) -> str:
    return "no limit" if per_minute is None else f"{per_minute:,}"
