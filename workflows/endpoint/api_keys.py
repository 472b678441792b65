"""API keys in the store: made, listed, revoked. An endpoint's replicas read the same file every few seconds.

<store>/keys/keys.json     what is kept of every valid key (serve/access/api_keys.py); never a secret

secret, key = KeyFile(store).add("alice", requests_per_minute=60)

The file is written whole or not at all, and changed by one program at a time. Revoking the last key leaves an empty
list: a file that is gone means that something is wrong with the store.
"""

import contextlib
import re
import uuid
from collections.abc import Callable, Iterator

from pydantic import BaseModel, ConfigDict

from models.errors import RayconteurError, nearest
from serve.access.api_keys import NAME_PATTERN, ApiKey, make_key
from workflows.store import Store, StoreError


class UnusableKey(RayconteurError):
    """A key that cannot be made or revoked."""


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
        """To another process it goes without what is to be told here."""
        return type(self), (self._store,)

    def read(self) -> list[ApiKey] | None:
        """The valid keys, in the order of their making; None where none was ever made. Raises StoreError, OSError."""
        try:
            content = self._store.read_json(self._path)
            return None if content is None else _Content.model_validate(content).keys
        except ValueError as error:
            words = str(error).splitlines()[0]
            raise StoreError(f"{self._path} is not a list of API keys ({words}); mend it, or move it away") from error

    def add(
        self, name: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> tuple[str, ApiKey]:
        """Make a key; the secret, which is kept nowhere, and what is kept. Raises UnusableKey."""
        if not re.fullmatch(NAME_PATTERN, name):
            raise UnusableKey(
                f"NAME: got {name!r}; must have 1 to 63 letters, digits, '.', '_', '@', '-', a letter or digit first"
            )
        with self._changing() as keys:
            if any(key.name == name for key in keys):
                raise UnusableKey(f"NAME: there is a key named {name}; revoke it first, or take another name")
            secret, key = make_key(name, requests_per_minute, tokens_per_minute)
            keys.append(key)
        return secret, key

    def revoke(self, name: str) -> None:
        """Make a key worthless. Raises UnusableKey."""
        with self._changing() as keys:
            names = [key.name for key in keys]
            if name not in names:
                near = nearest(name, names)
                fix = f"did you mean {near}?" if near else f"there are: {', '.join(names) or 'none'}"
                raise UnusableKey(f"NAME: there is no key named {name}; {fix}")
            del keys[names.index(name)]

    @contextlib.contextmanager
    def temporary(self) -> Iterator[str]:
        """The secret of a key without limits that is revoked at the end."""
        name = f"run-{uuid.uuid4().hex[:8]}"
        secret, _ = self.add(name)
        try:
            yield secret
        finally:
            self.revoke(name)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[ApiKey]]:
        """The keys, written back after the block unless it raises."""
        with self._store.lock("keys", "keys", self._on_wait):
            keys = self.read() or []
            yield keys
            self._store.write_json(self._path, _Content(keys=keys).model_dump())


def keys_text(keys: list[ApiKey]) -> str:
    """A table of keys."""
    if not keys:
        return "no keys yet"
    width = max(4, *(len(key.name) for key in keys))
    lines = [f"{'name':<{width}}  {'made':<25}  {'requests/minute':>15}  tokens/minute"]
    lines += [
        f"{key.name:<{width}}  {key.created:<25}  {_limit(key.requests_per_minute):>15}  "
        f"{_limit(key.tokens_per_minute):>13}"
        for key in keys
    ]
    return "\n".join(lines)


def _limit(per_minute: int | None) -> str:
    return "no limit" if per_minute is None else f"{per_minute:,}"
