"""Artifacts, addressed by content, on a local folder or any URI that pyarrow opens (s3://, gs://).

<store>/<stage>/<key>/manifest.json     written last: without it the artifact does not exist
<store>/<stage>/<key>/...               the stage's files
<store>/runs/<run>.json                 a RunRecord for each `rayconteur run`

store = Store("s3://bucket/rayconteur")
artifact = store.find("prepare", key)
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs
from filelock import FileLock, Timeout

from models.errors import RayconteurError
from models.files import local_copy, open_uri
from workflows.lease import Lease
from workflows.record import JsonObject, Record, optional

Given = TypeVar("Given")
Made = TypeVar("Made")
_REQUESTS_AT_ONCE = 24
IS_FULL = (errno.ENOSPC, errno.EDQUOT)
"""the errors of a full disk and of a used-up quota"""


class StoreError(RayconteurError):
    """A store that cannot be opened, read or written."""


@dataclass(frozen=True)
class Artifact:
    """What a finished stage left: its manifest."""

    stage: str
    key: str
    pipeline: str
    inputs: dict[str, str]
    """stage -> key of the artifacts that it was made from"""
    settings: JsonObject
    """everything that went into the key: the resolved section of the spec, fingerprints of files, the version"""
    figures: JsonObject
    """what the stage measured; workflows/figures.py has each stage's type"""
    versions: dict[str, str] = field(default_factory=dict)
    started: str = ""
    """UTC, ISO 8601"""
    seconds: float = 0.0


RunStatus = Literal["up to date", "running", "finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class StageEntry(Record):
    """A stage in a run's record: its artifact, and how long that took to make."""

    key: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """A `rayconteur run`, at work or ended."""

    run: str
    pipeline: str
    to: str
    """the last stage asked for"""
    status: RunStatus
    started: str
    """UTC, ISO 8601"""
    ended: str | None = None
    host: str = ""
    process: int = 0
    spec: JsonObject = field(default_factory=dict)
    """the pipeline file, resolved"""
    stages: Mapping[str, StageEntry] = field(default_factory=dict)
    """those that are done"""
    error: str | None = optional()
    begun: Mapping[str, str] = field(default_factory=dict)
    """the key of the stage that it works on, or that ended it: stage -> key"""

    def key_of(self, stage: str) -> str | None:
        """The key of a stage's artifact; None if the run did not come to it."""
        entry = self.stages.get(stage)
        return entry.key if entry else None


def without_secrets(text: str) -> str:
    """`text` with the user and password of every URI in it taken out."""
    return re.sub(r"(?<=://)[^/@\s\"']+@", "", text)


def content_key(content: JsonObject) -> str:
    """16 hexadecimal digits that change when anything in `content` does."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """A folder of artifacts that several programs on several machines may use at once."""

    def __init__(self, uri: str, patient: bool = True) -> None:
        """Open `uri`, a folder (created if missing) or a URI; raises StoreError.

        Waits some minutes for a service that does not answer; when opening, only if `patient`.
        """
        try:
            if "://" not in uri:
                uri = str(Path(uri).expanduser().resolve())
            self.filesystem, self.root = open_uri(uri)
            (self.filesystem if patient else open_uri(uri, patient=False)[0]).create_dir(self.root, recursive=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(
                f"store: cannot open {without_secrets(uri)!r}: {error}; give a folder or a URI such as s3://bucket/path"
            ) from error
        self.is_local = isinstance(self.filesystem, pa.fs.LocalFileSystem)
        self.uri = self.root if self.is_local else uri

    def path(self, stage: str, key: str, *parts: str) -> str:
        """The path of an artifact's file, for `self.filesystem`."""
        return "/".join([self.root, stage, key, *parts])

    def address(self, stage: str, key: str, name: str) -> str:
        """The address of an artifact's folder for all machines of a cluster: a path for a local store, else a URI."""
        if self.is_local:
            return self.path(stage, key, name)
        parts = urlsplit(self.uri)
        return parts._replace(path="/".join([parts.path.rstrip("/"), stage, key, name])).geturl()

    def find(self, stage: str, key: str) -> Artifact | None:
        """The finished artifact, or None."""
        content = self.read_json(self.path(stage, key, "manifest.json"))
        return Artifact(**content) if content is not None else None

    def all_of(self, stage: str) -> list[Artifact]:
        """Every finished artifact of a stage, oldest first."""
        texts = self.read_texts(self.path(stage, info.base_name, "manifest.json") for info in self.folders(stage))
        found = [Artifact(**json.loads(text)) for text in texts if text is not None]
        return sorted(found, key=lambda artifact: artifact.started)

    def finish(self, artifact: Artifact) -> None:
        """Write the manifest: from now on the artifact exists."""
        self.write_json(self.path(artifact.stage, artifact.key, "manifest.json"), asdict(artifact))

    def clear(self, stage: str, key: str) -> None:
        """Remove the files of an unfinished attempt."""
        self.remove(self.path(stage, key))

    def folders(self, *parts: str) -> list[Any]:
        """The folders in a folder of the store; empty if it does not exist."""
        return [info for info in self.entries(*parts) if info.type == pa.fs.FileType.Directory]

    def entries(self, *parts: str, recursive: bool = False) -> list[Any]:
        """The files and folders in a folder of the store; empty if it does not exist."""
        folder = "/".join([self.root, *parts])
        return list(
            self.filesystem.get_file_info(pa.fs.FileSelector(folder, recursive=recursive, allow_not_found=True))
        )

    def remove(self, path: str) -> None:
        """Delete a folder or a file of the store, if it is there."""
        found = self.filesystem.get_file_info(path).type
        if found == pa.fs.FileType.Directory:
            self.filesystem.delete_dir(path)
        elif found == pa.fs.FileType.File:
            self.filesystem.delete_file(path)

    def add_folder(self, source: str, stage: str, key: str, name: str, filesystem: Any = None) -> None:
        """Copy a folder, local or on another filesystem, into an artifact."""
        target = self.path(stage, key, name)
        for info in (filesystem or pa.fs.LocalFileSystem()).get_file_info(pa.fs.FileSelector(source, recursive=True)):
            if info.type == pa.fs.FileType.Directory:
                self.filesystem.create_dir(target + info.path[len(source) :], recursive=True)
        self.filesystem.create_dir(target, recursive=True)
        pa.fs.copy_files(source, target, source_filesystem=filesystem, destination_filesystem=self.filesystem)

    def upload(self, folder: Path, path: str) -> None:
        """Copy a folder of this machine to a path on the store."""
        self.filesystem.create_dir(path, recursive=True)
        pa.fs.copy_files(str(folder), path, destination_filesystem=self.filesystem)

    def local_folder(self, stage: str, key: str, name: str) -> Path:
        """A finished artifact's folder on this machine: itself on a local store, else a copy that is made once."""
        return local_copy(self.address(stage, key, name))

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder at this path of `self.filesystem`."""
        return bool(self.filesystem.get_file_info(path).type == pa.fs.FileType.Directory)

    def write_json(self, path: str, content: JsonObject) -> None:
        """Write a whole file or none."""
        self.write_file(path, json.dumps(content, indent=2, ensure_ascii=False).encode())

    def write_file(self, path: str, data: bytes) -> None:
        """The same, of any content; raises StoreError."""
        try:
            if self.is_local:
                _write_whole(Path(path), data)
                return
            with self.filesystem.open_output_stream(
                path
            ) as stream:  # no folders, and no object before it is complete
                stream.write(data)
        except OSError as error:
            raise self.failure(path, error) from error

    def failure(self, path: str, error: OSError) -> StoreError:
        """The error of a write to `path`, in a sentence that says how to go on."""
        reason = error.strerror or " ".join(str(error).split()).rstrip(".")
        fix = "make it writable"
        if error.errno in IS_FULL:
            fix = "free some space"
            if (free := _free_space(Path(path))) and self.is_local:
                reason += f", {free}"
        return StoreError(
            f"store: cannot write {without_secrets(path)}: {without_secrets(reason)}; {fix}, then run the same "
            "command to resume"
        )

    def read_json(self, path: str) -> Any | None:
        """What `write_json` wrote, or None."""
        text = self._read(path)
        return json.loads(text) if text is not None else None

    def read_texts(self, paths: Iterable[str]) -> list[str | None]:
        """The contents of several files, read at the same time; None for each that is not there."""
        return self.each(self._read, paths)

    def each(self, call: Callable[[Given], Made], items: Iterable[Given]) -> list[Made]:
        """`call` of each item, several at the same time where the store is far away."""
        with ThreadPoolExecutor(1 if self.is_local else _REQUESTS_AT_ONCE) as pool:
            return list(pool.map(call, items))

    def write_run(self, record: RunRecord) -> None:
        """Write or replace the record of a run, named by its `run`."""
        self.write_json(f"{self.root}/runs/{record.run}.json", record.to_json())

    def runs(self) -> list[RunRecord]:
        """The records of all runs, oldest first."""
        texts = self.read_texts(info.path for info in self.entries("runs") if info.extension == "json")
        records = [RunRecord.from_json(json.loads(text)) for text in texts if text]
        return sorted(records, key=lambda record: record.started)

    @contextlib.contextmanager
    def lock(self, stage: str, key: str, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Lock an artifact for this program; waits while another program holds the lock.

        On a local folder, the operating system releases the lock when the program dies. On an object store, the lock
        is a lease that the program renews; without a renewal, others take it over after 45 s, whatever the clocks of
        the machines show.
        """
        if self.is_local:
            path = Path(self.root) / stage / f"{key}.lock"
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                on_wait(f"another run is working on {stage} {key}; waiting for it")
                lock.acquire()
            try:
                yield
            finally:
                lock.release()
            return
        lease = Lease(self.filesystem, f"{self.root}/{stage}/{key}.lease", on_wait)
        lease.acquire()
        try:
            yield
        finally:
            lease.release()

    def is_locked(self, stage: str, key: str) -> bool:
        """Whether a living program holds the lock of an artifact now."""
        if not self.is_local:
            return Lease(self.filesystem, f"{self.root}/{stage}/{key}.lease", lambda words: None).is_held()
        path = Path(self.root) / stage / f"{key}.lock"
        if not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _read(self, path: str) -> str | None:
        try:
            with self.filesystem.open_input_stream(path) as stream:
                return str(stream.read().decode())
        except FileNotFoundError:
            return None


def _write_whole(path: Path, data: bytes) -> None:
    """Write a local file so that a reader, also after a crash, sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _free_space(path: Path) -> str:
    """The free space where `path` would be, in words; empty if that is unknown."""
    there = next((folder for folder in path.parents if folder.is_dir()), None)
    if there is None:
        return ""
    usage = shutil.disk_usage(there)
    return f"{usage.free / 1e9:.2f} of {usage.total / 1e9:.1f} GB are free"


def release_in_service(store: Store, pipeline: str, train_key: str) -> Artifact | None:
    """The release of a pipeline that was deployed last from another training than this one.

    A training that is in service itself is compared with the one before it, so its scorecard stays valid.
    """
    for deployed in reversed(store.all_of("deploy")):
        release = store.find("optimize", deployed.inputs["optimize"]) if deployed.pipeline == pipeline else None
        if release is not None and release.inputs["train"] != train_key:
            return release
    return None


def fingerprint(filesystem: Any, path: str) -> str:
    """A hash of a file's content; for a file over 64 MiB, of its size, modification time, first and last MiB."""
    info = filesystem.get_file_info(path)
    digest = hashlib.sha256(str(info.size).encode())
    with filesystem.open_input_file(path) as stream:
        if info.size <= 1 << 26:
            digest.update(stream.read())
        else:
            digest.update(str(info.mtime_ns).encode())
            digest.update(stream.read(1 << 20))
            stream.seek(info.size - (1 << 20))
            digest.update(stream.read())
    return digest.hexdigest()[:16]
