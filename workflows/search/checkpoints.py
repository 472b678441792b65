"""The checkpoints of trials in the store: which are whole, which search needs which, and deleting the others.

<store>/trials/<key>/checkpoint_<step>_<search>-<job><attempt>/    written by a search, whose key begins so
<store>/trials/<key>/checkpoint_*/files.json      its files and their sizes, written last and deleted first
<store>/trials/needs/<search>.json                the checkpoints that a search needs

Searches share trials, so one may continue from, or win by, a checkpoint of another. A search names what it needs
(what its running trials continue from, its winner, its Pareto front) before others can see it in a record, and
deletes only what no other search names. A search that was interrupted keeps its needs until it is run again, and a
finished one as long as its folder in `tune` is there.
"""

import contextlib
import errno
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from workflows.search.records import SEARCH_FILE, TRIALS, Search, flat, trial_folder
from workflows.store import Store, StoreError

Named = tuple[str, str]
"""a checkpoint: its trial's key, the name of its folder"""

_FILES = "files.json"
_NEEDS = "needs"
_TORCH_WRITES = "inline_container.cc"
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_OF_SEARCH = re.compile(r"checkpoint_\d+_([0-9a-z]{1,8})-")


def new_mark(search: str) -> str:
    """A part of the names of a job's checkpoints that no other job has; it says which search wrote them."""
    return f"{search[:8]}-{uuid.uuid4().hex[:8]}"


def write_checkpoint(store: Store, path: str, write: Callable[[Path], None]) -> None:
    """Call `write` with a folder, and store what it writes, a worker's part of a checkpoint; raises StoreError."""
    try:
        if store.is_local:
            with _writing(store, path):
                Path(path).mkdir(parents=True, exist_ok=True)
                write(Path(path))
            return
        with tempfile.TemporaryDirectory(prefix="rayconteur-") as name:
            with _writing(store, name):
                write(Path(name))
            with _writing(store, path):
                store.upload(Path(name), path)
    except StoreError:
        with contextlib.suppress(OSError):
            store.filesystem.delete_dir(path)
        raise


@contextlib.contextmanager
def _writing(store: Store, path: str) -> Iterator[None]:
    """Raise StoreError where the block cannot write to `path`."""
    try:
        yield
    except OSError as error:
        raise store.failure(path, error) from error
    except Exception as error:  # torch and safetensors raise others, with the system's error as text or without it
        number = _SYSTEM_ERROR.search(str(error))
        if number is None and _TORCH_WRITES not in str(error):
            raise
        code = int(number[1]) if number else errno.ENOSPC
        raise store.failure(path, OSError(code, os.strerror(code))) from error


def note_files(store: Store, path: str) -> None:
    """Record that a checkpoint is whole; called once all workers have written their parts."""
    store.write_json(f"{path}/{_FILES}", _sizes(store, path))


def is_whole(store: Store, path: str) -> bool:
    """Whether a checkpoint is there with all its files; for one of an earlier version, whether it is there."""
    there = _sizes(store, path)
    if _FILES not in there:
        return bool(there) and _OF_SEARCH.match(path.rpartition("/")[2]) is None
    noted = store.read_json(f"{path}/{_FILES}") or {}
    return all(there.get(name) == size for name, size in noted.items())


def delete_checkpoint(store: Store, named: Named) -> None:
    """Delete a checkpoint; one that is deleted in part is never taken for a whole one."""
    path = f"{trial_folder(store, named[0])}/{named[1]}"
    with contextlib.suppress(FileNotFoundError):
        store.filesystem.delete_file(f"{path}/{_FILES}")
    with contextlib.suppress(FileNotFoundError):
        store.filesystem.delete_dir(path)


def _sizes(store: Store, path: str) -> dict[str, int]:
    selector = pa.fs.FileSelector(path, recursive=True, allow_not_found=True)
    return {
        info.path[len(path) + 1 :]: info.size for info in store.filesystem.get_file_info(selector) if info.is_file
    }


class Needs:
    """The checkpoints that a search needs, and those that the other searches of its store do."""

    def __init__(self, store: Store, search: str) -> None:
        """Read what all searches need; an interrupted search still needs what it named before."""
        self._store, self._search = store, search
        self._path = store.path(TRIALS, _NEEDS, f"{flat(search)}.json")
        self._over: dict[str, tuple[object, set[Named]]] = {}
        """what searches that are over need, by the file, with its size and time when it was read"""
        files = {info.base_name.removesuffix(".json"): info.path for info in self._files()}
        searches = {
            info.base_name for info in store.folders("tune")
        }  # after the files: a folder is older than its file
        for name in {name for name in files if name.partition("_")[0] not in searches} - {flat(search)}:
            store.remove(files[name])  # the search was deleted
        self._of_earlier_versions = _recorded(store, searches - files.keys() - {search})
        self._before = _named(store.read_json(self._path))[1]
        self._written: set[Named] | None = None

    def write(self, needed: set[Named], is_over: bool = False) -> None:
        """Name what this search needs, until it is over also what it needed before; writes only if some is new."""
        wanted = needed if is_over else needed | self._before
        if is_over or self._written is None or wanted - self._written:
            self._store.write_json(self._path, {"over": is_over, "needs": sorted(wanted)})
            self._written = wanted

    def delete(self, useless: Iterable[Named]) -> None:
        """Delete those of these checkpoints that no other search needs."""
        others = self.of_others()
        for named in useless:
            self._before.discard(named)
            if named not in others:
                delete_checkpoint(self._store, named)

    def of_others(self) -> set[Named]:
        """What the other searches of the store need now."""
        found = set(self._of_earlier_versions)
        states = {info.path: (info.size, info.mtime_ns) for info in self._files() if info.path != self._path}
        # Times may be whole seconds, so the file of a search that is not over may have changed in any case.
        unknown = [path for path, state in states.items() if self._over.get(path, (None,))[0] != state]
        for path, text in zip(unknown, self._store.read_texts(unknown), strict=True):
            is_over, named = _named(json.loads(text) if text else None)
            found |= named
            if is_over:
                self._over[path] = states[path], named
        return found.union(*(self._over[path][1] for path in states.keys() - unknown))

    def sweep(self, keys: Iterable[str]) -> None:
        """After the search: delete checkpoints that none needs and that a crash has left, of this search, of searches
        that were deleted and of earlier versions.
        """
        needed = self.of_others() | (self._written or self._before)
        others = {info.base_name[:8] for info in self._store.folders("tune")} - {self._search[:8]}

        def clear(key: str) -> None:
            for info in self._store.folders(TRIALS, key):
                of_search = _OF_SEARCH.match(info.base_name)
                if (key, info.base_name) not in needed and (of_search is None or of_search[1] not in others):
                    delete_checkpoint(self._store, (key, info.base_name))

        self._store.each(clear, keys)

    def _files(self) -> list[pa.fs.FileInfo]:
        return [info for info in self._store.entries(TRIALS, _NEEDS) if info.extension == "json"]


def _named(content: Any) -> tuple[bool, set[Named]]:
    """Whether a search is over, and what it needs, as `Needs.write` wrote it."""
    return (content["over"], {(key, name) for key, name in content["needs"]}) if content else (False, set())


def _recorded(store: Store, searches: Iterable[str]) -> set[Named]:
    """The checkpoints in the records of these searches: earlier versions did not name what they need."""
    texts = store.read_texts(store.path("tune", name, SEARCH_FILE) for name in searches)
    trials = [trial for text in texts if text for trial in json.loads(text)["trials"]]
    return {(trial["key"], report["checkpoint"]) for trial in trials
            for report in trial["reports"] if report["checkpoint"]}  # fmt: skip


def needs_of(search: Search) -> set[Named]:
    """What a search that is over needs: its winner, and with several metrics the front."""
    found = [pair for pair in [search.leader()] if pair is not None]
    if len(search.metrics) > 1:
        found += search.front()
    return {(trial.key, report.checkpoint) for trial, report in found if report.checkpoint is not None}
