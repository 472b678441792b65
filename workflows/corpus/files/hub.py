"""Datasets of the Hugging Face Hub as files: `hf:owner/name`, `hf:owner/name@revision`, `hf:owner/name/folder`.

files = hub_files("hf:owner/name@main/data", split="train")
filesystem, path = located(source, path)        # downloads a file of the Hub on first use

`datasets` decides which file belongs to which split, from the names of the files and the dataset's README. The
machine that reads a file downloads it once, into the Hub's cache ($HF_HOME).
"""

import functools
import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs

from models.files import open_uri
from workflows.corpus.files.saved_datasets import WrongSource

_PREFIX = "hf:"
_NAME = r"[A-Za-z0-9][\w.-]*"
# Only revisions that the Hub itself makes have slashes, such as the Parquet version of a dataset.
_ADDRESS = re.compile(
    rf"hf:(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<inside>.+))?"
)


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset at one commit."""

    path: str
    """`hf:owner/name@commit/file`"""
    size: int
    fingerprint: str


def is_hub(path: str) -> bool:
    """Whether `path` names a dataset of the Hub."""
    return path.startswith(_PREFIX) and "://" not in path


def hub_files(path: str, split: str | None) -> list[HubFile]:
    """The files of a dataset, or of a folder in it, that make up `split`; downloads only its README.

    Raises WrongSource.
    """
    repository, revision, inside = _parsed(path)
    commit, sizes, card = _listing(repository, revision, path)
    if inside in sizes:
        if split is not None:
            raise WrongSource(f"split: got {split!r}, but {path} is a file, which has no splits; leave the field out")
        names = [inside]
    else:
        names = names_of_split(list(sizes), card, inside or None, split, path)
    address = f"{_PREFIX}{repository}@{commit}"
    return [HubFile(f"{address}/{name}", sizes[name], f"{address}/{name}") for name in names]


def located(source: str, path: str) -> tuple[Any, str]:
    """The filesystem of a source's file and its path there; downloads a file of the Hub if it is not cached."""
    if not is_hub(path):
        return open_uri(source)[0], path
    from huggingface_hub import hf_hub_download

    repository, commit, name = _parsed(path)
    return pyarrow.fs.LocalFileSystem(), hf_hub_download(repository, name, repo_type="dataset", revision=commit)


def names_of_split(names: list[str], card: bytes, folder: str | None, split: str | None, what: str) -> list[str]:
    """Those of `names` that make up a split, decided by `datasets`.

    Gives `datasets` empty files with the same names: it looks only at names and at the README (`card`).
    """
    import datasets

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve() / "files"
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        if folder is not None and not (root / folder).is_dir():
            raise WrongSource(f"path: {what} has no folder or file {folder!r}; it has {_some(names)}")
        (root / "README.md").write_bytes(card)
        card_log = logging.getLogger("huggingface_hub.repocard")
        before = card_log.level
        card_log.setLevel(logging.ERROR)  # it warns about a README without settings
        try:
            builder = datasets.load_dataset_builder(str(root), data_dir=folder, cache_dir=f"{temporary}/cache")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            words = " ".join(str(error).replace(f"{root}/", "").replace(str(root), what).split())
            raise WrongSource(
                f"path: {what}: {words}; name a folder of the dataset with data files, as in hf:owner/name/folder"
            ) from None
        finally:
            card_log.setLevel(before)
        found = {
            str(key): [Path(file).relative_to(root).as_posix() for file in files]
            for key, files in (builder.config.data_files or {}).items()
        }
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        got = "none is named" if split is None else f"got {split!r}"
        raise WrongSource(f"split: {what} has the splits {', '.join(found)}, {got}; name one of them")
    return found[split]


def _parsed(path: str) -> tuple[str, str | None, str]:
    found = _ADDRESS.fullmatch(path.rstrip("/"))
    if found is None:
        raise WrongSource(f"path: got {path!r}; a dataset of the Hub is hf:owner/name, hf:owner/name@revision or "
                         "hf:owner/name@revision/folder")  # fmt: skip
    return found["repository"], found["revision"], found["inside"] or ""


@functools.lru_cache(maxsize=64)  # so that a moving branch cannot change during a command
def _listing(repository: str, revision: str | None, path: str) -> tuple[str, dict[str, int], bytes]:
    """A revision's commit, the sizes of its files by name, and its README; offline, from the Hub's cache."""
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        commit = HfApi().resolve_revision(repository, repo_type="dataset", revision=revision).resolved
        folder = Path(
            snapshot_download(repository, repo_type="dataset", revision=commit, allow_patterns=["README.md"])
        )
        try:
            tree = get_cached_repo_tree(repository, repo_type="dataset", revision=commit)
            sizes = {file.path: int(file.size) for file in tree}
        except CachedRepoTreeNotFoundError:  # a cache filled by another program
            files = [file for file in folder.rglob("*") if file.is_file()]
            sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    except Exception as error:  # of many types, from httpx's to the Hub's own
        words = " ".join(str(error).split())
        raise WrongSource(
            f"path: cannot get {path} from the Hub: {words}; check the name, and log in (`hf auth login` or "
            "HF_TOKEN) if the dataset requires it"
        ) from error
    readme = folder / "README.md"
    return commit, dict(sorted(sizes.items())), readme.read_bytes() if readme.is_file() else b""


def _some(names: list[str]) -> str:
    tops = sorted({name.partition("/")[0] for name in names})
    return ", ".join(tops[:8]) + (f" and {len(tops) - 8} more" if len(tops) > 8 else "")
