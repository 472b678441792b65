"""Folders written by `save_to_disk` of `datasets`: which files contain the data, and in which order."""

import json
from typing import Any, TypedDict, cast

from models.errors import RayconteurError

STATE = "state.json"
"""in the folder of a Dataset: its data files in order"""
SPLITS = "dataset_dict.json"
"""in the folder of a DatasetDict: the names of its splits, each a folder of a Dataset"""


class _Saved(TypedDict, total=False):
    """What `datasets` writes into these two files, as far as it is used here."""

    splits: list[str]
    _split: str | None
    _data_files: list[dict[str, str]]
    _indices_data_files: object
    """a mapping of rows, which old versions wrote"""


class WrongSource(RayconteurError):
    """A source that cannot be read as requested; the text begins with the source's wrong field."""


def splits_of(filesystem: Any, folder: str) -> list[str]:
    """The splits of a saved DatasetDict."""
    return [str(name) for name in _read(filesystem, f"{folder}/{SPLITS}")["splits"]]


def saved_files(filesystem: Any, folder: str, split: str | None) -> list[str]:
    """The data files of a saved Dataset, in its order; raises WrongSource if it is not the split `split`.

    Leaves out files that `datasets` caches beside them (`cache-*.arrow`).
    """
    state = _read(filesystem, f"{folder}/{STATE}")
    if split is not None and split != state.get("_split"):
        known = state.get("_split")
        raise WrongSource(
            f"split: got {split!r}, but {folder} is one saved dataset{f', the split {known!r}' if known else ''}; "
            "leave the field out"
        )
    if state.get("_indices_data_files"):
        raise WrongSource(
            f"path: {folder} was saved with an index of its rows by an old version of datasets; load it with "
            "`datasets.load_from_disk` and save it again with a current one"
        )
    return [f"{folder}/{each['filename']}" for each in state["_data_files"]]


def _read(filesystem: Any, path: str) -> _Saved:
    with filesystem.open_input_stream(path) as stream:
        text = stream.read()
    try:
        content = json.loads(text)
    except ValueError as error:
        raise WrongSource(f"path: {path} is not JSON: {error}; save the dataset again") from None
    if not isinstance(content, dict) or not ("_data_files" in content or "splits" in content):
        raise WrongSource(
            f"path: {path} is not in the form that `datasets` writes; save the dataset again, or name its data files"
        )
    return cast(_Saved, content)
