"""The files of suites, and the functions that are their scorers."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs

from models.files import open_uri
from workflows.spec import EvaluateSpec, SuiteSpec
from workflows.stage import StageFailed
from workflows.store import without_secrets
from workflows.suites.user_scorer import UserScorer


def suite_files(suite: SuiteSpec, field: str) -> tuple[Any, list[str]]:
    """A filesystem, and on it the files of a suite in the order of their names; raises StageFailed."""
    shown = without_secrets(suite.path)
    try:
        filesystem, path = open_uri(suite.path, patient=False)
        kind = filesystem.get_file_info(path).type
        if kind == pa.fs.FileType.File:
            return filesystem, [path]
        if kind == pa.fs.FileType.Directory:
            infos = filesystem.get_file_info(pa.fs.FileSelector(path))
            files = sorted(info.path for info in infos if info.is_file and info.path.endswith(".jsonl"))
            if files:
                return filesystem, files
            raise StageFailed(f"{field}.path: the folder {shown} has no file *.jsonl; put the suite's items into one")
    except (OSError, pa.ArrowException) as error:
        raise StageFailed(f"{field}.path: cannot read {shown}: {error}") from error
    raise StageFailed(f"{field}.path: nothing found at {shown}; give a JSON-lines file or a folder of such files")


def fields_of(evaluate: EvaluateSpec) -> Iterator[tuple[str, SuiteSpec]]:
    """Each suite with its dotted field."""
    for index, suite in enumerate(evaluate.suites):
        yield f"evaluate.suites.{index}", suite


def user_scorers(evaluate: EvaluateSpec) -> list[UserScorer]:
    """The scorers that are Python functions; raises StageFailed."""
    return [scorer for field, suite in fields_of(evaluate) if (scorer := user_scorer(suite, field))]


def user_scorer(suite: SuiteSpec, field: str) -> UserScorer | None:
    """The scorer of a suite if it is a Python function; raises StageFailed."""
    return UserScorer.of(suite.function, f"{field}.scorer") if suite.function else None
