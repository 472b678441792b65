"""Optuna studies: a search as one, and the trials of one. Imports neither Ray nor torch.

write_study(search, "sqlite:///study.db")
trials = read_study("sqlite:///study.db#mine")

A storage is a URL that Optuna opens (SQLite, PostgreSQL, MySQL), or a file: of SQLite, or a journal.
"""

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from models.errors import RayconteurError
from workflows.search.records import FAILED, FINISHED, RUNNING, STOPPED, Search, Trial, higher_is_better
from workflows.spec.space import Choice, Dimension, dimension_of
from workflows.spec.tune import SQLITE, storage_file
from workflows.store import without_secrets

_MAGIC = b"SQLite format 3\0"
_MAX_TEXT = 400
_OF_SEARCH = "rayconteur_search"
_STATES = {
    RUNNING: TrialState.RUNNING, FINISHED: TrialState.COMPLETE, STOPPED: TrialState.PRUNED, FAILED: TrialState.FAIL,
}  # fmt: skip


class StudyError(RayconteurError):
    """A storage that cannot be used, or a study that is not there."""


@dataclass(frozen=True)
class StudyTrial:
    """A trial of a study that has a value."""

    params: Mapping[str, Any]
    badness: float
    """smaller is better"""


def distribution_of(dimension: Dimension) -> Any:
    """A dimension of the space as Optuna has it."""
    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    if dimension.is_whole:
        low, high = int(dimension.low), int(dimension.high)
        return optuna.distributions.IntDistribution(low, high, log=dimension.is_log, step=dimension.step)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.is_log)


def direction_of(metric: str) -> Literal["minimize", "maximize"]:
    """Optuna's direction of a metric."""
    return "maximize" if higher_is_better(metric) else "minimize"


def read_study(text: str) -> list[StudyTrial]:
    """The trials with a value of the study `storage#name`, or of the storage's only one; raises StudyError.

    Of a pruned trial the best intermediate value counts; of several objectives the first.
    """
    place, _, name = text.partition("#")
    if (file := storage_file(place)) and not Path(file).is_file():  # Optuna would create it
        raise StudyError(f"{file}: there is no such file")
    with _opened(place) as storage:
        names = optuna.get_all_study_names(storage)
        if name not in names and (name or len(names) != 1):
            what = f"there is no study {name!r}" if name else f"has {len(names)} studies; name one, as in #NAME"
            listed = f"; there are {', '.join(names)}" if names else ""
            raise StudyError(f"{without_secrets(place)}: {what}{listed}")
        study = optuna.load_study(study_name=name or names[0], storage=storage)
        sign = -1.0 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1.0
        found = [(trial.params, _best_value(trial, sign)) for trial in study.get_trials(deepcopy=False)]
    return [StudyTrial(params, value) for params, value in found if math.isfinite(value)]


def _best_value(trial: FrozenTrial, sign: float) -> float:
    """The smallest; infinity without one."""
    if trial.state == TrialState.COMPLETE:
        return sign * float(trial.values[0])
    between = trial.intermediate_values.values() if trial.state == TrialState.PRUNED else []
    return min((sign * value for value in between if math.isfinite(value)), default=math.inf)


def write_study(search: Search, place: str) -> str:
    """Write a search as a study; one that an earlier call has written is replaced. Returns its name; raises
    StudyError.
    """
    name = f"{search.pipeline}-{search.key}"
    with _opened(place) as storage:
        if name in optuna.get_all_study_names(storage):
            if optuna.load_study(study_name=name, storage=storage).user_attrs.get(_OF_SEARCH) != search.key:
                raise StudyError(f"{without_secrets(place)}: has another study {name!r}; take another storage")
            optuna.delete_study(study_name=name, storage=storage)
        directions = [direction_of(metric) for metric in search.metrics]
        study = optuna.create_study(study_name=name, storage=storage, directions=directions)
        study.set_user_attr(_OF_SEARCH, search.key)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that names of metrics are experimental
            study.set_metric_names(search.metrics)
        dimensions = {field: dimension_of(entry) for field, entry in search.space.items()}
        study.add_trials([_frozen(search, trial, dimensions) for trial in search.trials])
    return name


def _frozen(search: Search, trial: Trial, dimensions: Mapping[str, Dimension]) -> FrozenTrial:
    metric, best, last = search.metrics[0], trial.best(search.metrics[0]), trial.last
    state = _STATES[trial.state]
    values = [best.figures.get(each, math.nan) for each in search.metrics] if best else []
    if state == TrialState.COMPLETE and not (values and all(map(math.isfinite, values))):
        state = TrialState.FAIL
    params = {field: value for field, value in trial.values.items() if _holds(dimensions.get(field), value)}
    more = {field: value for field, value in trial.values.items() if field not in params}
    attributes = {"number": trial.number, "key": trial.key, "state": trial.state, "error": trial.error, **more}
    if last is not None:
        attributes |= {"step": last.step, "num_steps": last.num_steps}
    if best is not None:
        attributes |= {"best_step": best.step, **{f"best_{figure}": each for figure, each in best.figures.items()}}
    between = {report.step: report.figures.get(metric, math.nan) for report in trial.reports}
    frozen = create_trial(
        state=state,
        values=values if state == TrialState.COMPLETE else None,
        params=params,
        distributions={field: distribution_of(dimensions[field]) for field in params},
        user_attrs={name: each for name, each in attributes.items() if each != ""},
        intermediate_values=between if len(search.metrics) == 1 else {},
    )
    if last is not None and frozen.datetime_complete is not None and frozen.datetime_start is not None:
        frozen.datetime_start -= timedelta(seconds=last.figures.get("seconds", 0.0))
    return frozen


def _holds(dimension: Dimension | None, value: Any) -> bool:
    if isinstance(dimension, Choice):
        return value in dimension.values
    return dimension is not None and isinstance(value, int | float) and dimension.nearest(value) == value


@contextlib.contextmanager
def _opened(place: str) -> Iterator[Any]:
    """Optuna's storage; raises StudyError, also for what fails in the storage while it is used."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = storage_file(place)
    if file and not Path(file).absolute().parent.is_dir():
        raise StudyError(f"{file}: the folder {Path(file).absolute().parent} does not exist")
    try:
        yield _storage(place, file)
    except (OptunaError, SQLAlchemyError, ImportError, OSError, json.JSONDecodeError) as error:
        text = without_secrets(f"{place}: Optuna cannot use this storage: {' '.join(str(error).split())}")
        raise StudyError(
            f"{text[:_MAX_TEXT]}; name a database, as in {SQLITE}study.db, or a journal's file"
        ) from error


def _storage(place: str, file: str) -> Any:
    """`file` is empty for a storage that is no file."""
    if file != place or _is_sqlite(file):
        return optuna.storages.RDBStorage(f"{SQLITE}{file}" if file else place)
    return JournalStorage(JournalFileBackend(file))


def _is_sqlite(file: str) -> bool:
    """A new file becomes a database by its ending."""
    if not os.path.exists(file) or not os.path.getsize(file):
        return file.endswith((".db", ".sqlite", ".sqlite3"))
    with open(file, "rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC
