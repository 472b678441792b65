"""Files on any filesystem: paths of this machine, and URIs that pyarrow opens (s3://, gs://).

filesystem, path = open_uri("s3://bucket/conversations")
content = read_file(filesystem, path)       # decompressed, whatever the name of the file
folder = local_copy("s3://bucket/models/mine")
"""

import hashlib
import io
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
from filelock import FileLock

# Retries wait longer each time, at most 20 s: about three minutes in all. While one waits, its process cannot open
# another S3 filesystem, since Arrow builds a client only when no other one is at work.
_TRIES = 16

_PACKED = (
    (b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
)  # fmt: skip
MAGIC_BYTES = 16
"""how many of a file's first bytes show its format"""
_READ_BYTES = 1 << 20


class PatientS3(pa.fs.S3FileSystem):  # type: ignore[misc]
    """Retries when the service answers with errors or not at all. Pickled copies do too; pyarrow's own lose their
    retry strategy.
    """

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _patient, (pa.fs.S3FileSystem.__reduce__(self)[1][0],)


def _patient(options: dict[str, Any]) -> PatientS3:
    # A small file is one request, not three: it is sent as a whole when it is closed.
    options = {**options, "allow_delayed_open": True}
    return PatientS3(**options, retry_strategy=pa.fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES))


def open_uri(uri: str, patient: bool = True) -> tuple[Any, str]:
    """The filesystem of a path or URI, and the path on it.

    With `patient=False` it gives up after seconds, for a person who may have misspelled the address.
    """
    if "://" not in uri:
        return pa.fs.LocalFileSystem(), uri
    filesystem, path = pa.fs.FileSystem.from_uri(uri)
    if patient and isinstance(filesystem, pa.fs.S3FileSystem):
        filesystem = _patient(filesystem.__reduce__()[1][0])
    return filesystem, path


def packing_of(head: bytes) -> str:
    """The compression of a file that begins with these bytes: gzip, zstd, bz2, xz, lz4; empty if it has none."""
    return next((name for magic, name in _PACKED if head.startswith(magic)), "")


def unpacked(raw: Any, packing: str) -> io.BufferedReader:
    """A stream of the decompressed content of the open file `raw`. It raises OSError, EOFError or LZMAError."""
    if packing == "xz":
        return io.BufferedReader(lzma.LZMAFile(raw), _READ_BYTES)
    return io.BufferedReader(pa.CompressedInputStream(raw, packing) if packing else raw, _READ_BYTES)


def read_file(filesystem: Any, path: str) -> bytes:
    """The content of a file, decompressed if its first bytes show a compression; raises OSError.

    pyarrow's `open_input_stream` goes by the ending, which a link or a cache may not have.
    """
    with filesystem.open_input_file(path) as raw:
        packing = packing_of(raw.read(MAGIC_BYTES))
        raw.seek(0)
        try:
            return unpacked(raw, packing).read()
        except (EOFError, lzma.LZMAError) as error:
            raise OSError(f"the {packing} file is damaged: {error}") from error


def listing(filesystem: Any, path: str) -> str:
    """16 hexadecimal digits that change with the names, sizes and times of the files in a folder; empty if there is
    no such folder.
    """
    infos = filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True, allow_not_found=True))
    files = sorted((info.path, info.size, info.mtime_ns) for info in infos if info.type == pa.fs.FileType.File)
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16] if files else ""


def cache_folder() -> Path:
    """This machine's cache of copied and derived files: $RAYCONTEUR_CACHE or ~/.cache/rayconteur."""
    return Path(os.environ.get("RAYCONTEUR_CACHE") or Path.home() / ".cache" / "rayconteur")


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`; if it does not exist, one process of this machine fills it with `make`, completely or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def local_copy(uri: str) -> Path:
    """A local copy of the folder at `uri`, or the folder itself if it is local already; raises OSError."""
    if "://" not in uri:
        return Path(uri)
    filesystem, path = open_uri(uri)

    def copy(folder: Path) -> None:
        pa.fs.copy_files(path, str(folder), source_filesystem=filesystem)

    name = path.rstrip("/").rpartition("/")[2]
    return made_once(cache_folder() / "copies" / (listing(filesystem, path) or "nothing") / name, copy)
