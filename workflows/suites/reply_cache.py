"""Replies in the store, by model and request: what a model has answered once is never asked again.

<store>/replies/<model's key>/<part>.parquet     requests by their hash, and the replies as JSON
"""

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from models.chat import Message
from workflows.record import JsonObject
from workflows.store import Store, content_key

_FOLDER = "replies"
_ANSWERS = "lm_eval:"
_SAVED_EVERY_S = 20.0
_SCHEMA = pa.schema([("request", pa.string()), ("reply", pa.string())])


class ReplyCache:
    """The replies of one model; several workers may write to it at once."""

    def __init__(self, store: Store, model_key: str) -> None:
        self._store, self._folder = store, f"{store.root}/{_FOLDER}/{model_key}"
        self._known: dict[str, str] = {}
        self._new: dict[str, str] = {}
        self._saved = time.monotonic()
        if store.is_folder(self._folder):
            self._known = _read(store.filesystem, self._folder)

    def find(self, request: Mapping[str, Any]) -> Message | None:
        """The reply to a request."""
        found = self._known.get(content_key(request))
        return None if found is None else json.loads(found)

    def add(self, request: Mapping[str, Any], reply: Message) -> None:
        """Keep a reply; it is written within some seconds, or by `save`."""
        self._add(content_key(request), reply)

    def find_answer(self, request_key: str) -> JsonObject | None:
        """The answer to a request of lm-eval, which is no message."""
        found = self._known.get(_ANSWERS + request_key)
        return None if found is None else json.loads(found)

    def add_answer(self, request_key: str, answer: JsonObject) -> None:
        """Keep an answer, as `add` keeps a reply."""
        self._add(_ANSWERS + request_key, answer)

    def _add(self, key: str, value: Mapping[str, Any]) -> None:
        self._known[key] = self._new[key] = json.dumps(value, ensure_ascii=False)
        if time.monotonic() - self._saved > _SAVED_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write what is new, into a file of its own."""
        self._saved = time.monotonic()
        if not self._new:
            return
        table = pa.Table.from_arrays([pa.array(self._new), pa.array(self._new.values())], schema=_SCHEMA)
        buffer = pa.BufferOutputStream()
        pa.parquet.write_table(table, buffer)
        self._store.write_file(f"{self._folder}/{uuid.uuid4().hex}.parquet", buffer.getvalue().to_pybytes())
        self._new = {}


def _read(filesystem: Any, folder: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for info in filesystem.get_file_info(pa.fs.FileSelector(folder)):
        if info.extension == "parquet":
            table = pa.parquet.read_table(info.path, filesystem=filesystem)
            found |= zip(table["request"].to_pylist(), table["reply"].to_pylist(), strict=True)
    return found
