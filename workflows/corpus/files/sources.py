"""Find the files of `data.sources`: paths, folders, globs, URIs, folders saved by `datasets`, datasets of the Hub.

files = find_files(spec)

Endings matter only for files in folders: a file's content decides its format (workflows/corpus/files/formats.py).
"""

import fnmatch
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.fs

from models.errors import RayconteurError
from models.files import MAGIC_BYTES, open_uri, packing_of
from workflows.corpus.files.hub import hub_files, is_hub, names_of_split
from workflows.corpus.files.saved_datasets import SPLITS, STATE, WrongSource, saved_files, splits_of
from workflows.spec import PipelineSpec, Source
from workflows.stage import StageFailed
from workflows.store import fingerprint, without_secrets

_PLAIN = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow", ".feather", ".csv", ".tsv")
_PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4")
_ENDINGS = tuple(plain + packed for plain in _PLAIN for packed in ("", *_PACKED))
# Metadata files that `datasets` and the Hub store beside the data.
_NOT_DATA = (STATE, SPLITS, "dataset_info.json", "dataset_infos.json")


class SourceError(RayconteurError):
    """A source that cannot be found or listed; the text has its field."""


@dataclass(frozen=True)
class SourceFile:
    """A file of conversations, on any filesystem, with the number of lines to read."""

    source: str
    """the path in `data.sources`, which opens the filesystem with its credentials and options"""
    path: str
    """the file on that filesystem; for a dataset of the Hub, `hf:owner/name@commit/file`"""
    limit: int | None
    fingerprint: str
    size: int = 0
    """size in bytes, compressed or not"""
    field: str = "data.sources"
    """the dotted field, for messages"""
    entry: int = 0
    """the number of its entry in `data.sources`"""


def find_files(spec: PipelineSpec) -> list[SourceFile]:
    """The files of `data.sources`, in order; raises SourceError for a source without files."""
    files = []
    for index, source in enumerate(spec.data.sources):
        field = f"data.sources.{index}"
        try:
            files += [replace(file, entry=index) for file in _files_of(source, field)]
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{field}.path: cannot read {without_secrets(source.path)}: {error}") from error
    return files


def is_packed(file: SourceFile) -> bool:
    """Whether its content is compressed, as Parquet is inside; by the name for a file of the Hub, which may not be
    here yet.
    """
    if is_hub(file.path):
        return file.path.endswith((*_PACKED, ".parquet"))
    with open_uri(file.source)[0].open_input_file(file.path) as stream:
        head = stream.read(MAGIC_BYTES)
    return bool(packing_of(head)) or head.startswith(b"PAR1")


def _files_of(source: Source, field: str) -> list[SourceFile]:
    if is_hub(source.path):
        try:
            found = hub_files(source.path, source.split)
        except WrongSource as error:
            raise SourceError(f"{field}.{error}") from error
        return [
            SourceFile(source.path, each.path, source.limit, each.fingerprint, each.size, f"{field}.path")
            for each in found
        ]
    filesystem, path = open_uri(source.path, patient=False)
    try:
        names = files_at(filesystem, path, source.split)
    except WrongSource as error:
        raise SourceError(f"{field}.{error}") from error
    if not names:
        where = without_secrets(source.path)
        fix = "give a file, folder, glob, URI or hf:owner/name"
        if filesystem.get_file_info(path).type == pa.fs.FileType.Directory:
            fix = (
                f"in a folder, files count whose names end in {', '.join(_PLAIN)}, or in one of these and "
                f"{', '.join(_PACKED)}; name others by a glob, such as {where.rstrip('/')}/*"
            )
        raise SourceError(f"{field}.path: nothing found at {where}; {fix}")
    return [
        SourceFile(
            source.path, name, source.limit, fingerprint(filesystem, name), filesystem.get_file_info(name).size,
            f"{field}.path",
        )
        for name in names
    ]  # fmt: skip


def files_at(filesystem: Any, path: str, split: str | None = None) -> list[str]:
    """The data files of a file, folder or glob, in order. Raises WrongSource."""
    if any(sign in path for sign in "*?["):
        _refuse_split(split, path, "a glob")
        return _matching(filesystem, path)
    info = filesystem.get_file_info(path)
    if info.type == pa.fs.FileType.NotFound:
        return []
    if info.type == pa.fs.FileType.File:
        _refuse_split(split, path, "a file")
        return [path]
    return _inside(filesystem, path.rstrip("/"), split)


def _matching(filesystem: Any, path: str) -> list[str]:
    folder = path[: min(path.index(sign) for sign in "*?[" if sign in path)].rpartition("/")[0]
    selector = pa.fs.FileSelector(folder or ".", recursive=True, allow_not_found=True)
    infos = filesystem.get_file_info(selector)
    return sorted(
        info.path for info in infos if info.type == pa.fs.FileType.File and fnmatch.fnmatch(info.path, path)
    )


def _inside(filesystem: Any, folder: str, split: str | None) -> list[str]:
    """The data files in a folder; for a folder saved by `datasets`, those that it lists, in its order."""
    infos = filesystem.get_file_info(pa.fs.FileSelector(folder, recursive=True))
    names = sorted(info.path for info in infos if info.type == pa.fs.FileType.File)
    if f"{folder}/{SPLITS}" in names:
        return _inside(filesystem, f"{folder}/{_chosen(filesystem, folder, split)}", None)
    for name in names:
        inner, _, last = name.rpartition("/")
        if last == SPLITS:
            splits = ", ".join(splits_of(filesystem, inner))
            raise WrongSource(
                f"path: {inner} is a dataset with the splits {splits}; give that folder as the path and one of them "
                "as split"
            )
    if f"{folder}/{STATE}" in names:
        return saved_files(filesystem, folder, split)
    saved = {inner: saved_files(filesystem, inner, None) for inner in _saved_folders(names)}
    plain = [
        name for name in names if _is_data(name.removeprefix(f"{folder}/")) and name.rpartition("/")[0] not in saved
    ]
    if split is not None:
        return _of_split(filesystem, folder, plain, split)
    found = {name: [name] for name in plain} | saved
    return [name for key in sorted(found) for name in found[key]]


def _saved_folders(names: list[str]) -> list[str]:
    there = set(names)
    folders = [name.removesuffix(f"/{STATE}") for name in names if name.endswith(f"/{STATE}")]
    return [folder for folder in folders if f"{folder}/dataset_info.json" in there]


def _is_data(name: str) -> bool:
    parts = name.split("/")
    return name.endswith(_ENDINGS) and parts[-1] not in _NOT_DATA and not any(part.startswith(".") for part in parts)


def _chosen(filesystem: Any, folder: str, split: str | None) -> str:
    splits = splits_of(filesystem, folder)
    if split in splits:
        return split
    if split is None and len(splits) == 1:
        return splits[0]
    raise WrongSource(f"split: {folder} has the splits {', '.join(splits)}, {_got(split)}; name one of them")


def _got(split: str | None) -> str:
    return "none is named" if split is None else f"got {split!r}"


def _of_split(filesystem: Any, folder: str, names: list[str], split: str) -> list[str]:
    """The files of a split of a plain folder, which `datasets` derives from their names and the README."""
    card = b""
    if filesystem.get_file_info(f"{folder}/README.md").type == pa.fs.FileType.File:
        with filesystem.open_input_stream(f"{folder}/README.md") as stream:
            card = stream.read()
    relative = [name.removeprefix(f"{folder}/") for name in names]
    return [f"{folder}/{name}" for name in names_of_split(relative, card, None, split, folder)]


def _refuse_split(split: str | None, path: str, what: str) -> None:
    if split is not None:
        raise WrongSource(f"split: got {split!r}, but {path} is {what}, which has no splits; leave the field out")


def source_files(spec: PipelineSpec) -> list[SourceFile]:
    """The files of `data.sources`, in order; raises StageFailed for a source without files."""
    try:
        return find_files(spec)
    except SourceError as error:
        raise StageFailed(str(error)) from error
