"""What TPE learns from before a search begins (`tune.warm_start`): trials of other searches and of Optuna studies.

priors, notes = read_priors(tune.warm_start, store, search, dimensions)

Imports neither Ray nor torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs

from workflows.search.records import Search, badness, compared_badness, read_search
from workflows.spec import TuneSpec
from workflows.spec.paths import study_file
from workflows.spec.space import Choice, Dimension, Values, active
from workflows.spec.tune import OPTUNA
from workflows.stage import StageFailed
from workflows.store import Store, fingerprint, without_secrets


@dataclass(frozen=True)
class Prior:
    """The trials of one source that lie in the space of this search."""

    trials: Sequence[tuple[Values, list[float]]]
    """settings, perhaps of a part of the space, and the badness of each metric"""
    is_comparable: bool
    """whether its metrics measure the same as those of this search: the same model on the same conversations"""

    @property
    def best(self) -> list[float]:
        """The smallest badness of each metric."""
        return [min(values) for values in zip(*(values for _, values in self.trials), strict=True)]

    def shifted(self, best: Sequence[float]) -> list[tuple[Values, list[float]]]:
        """The trials as TPE is told.

        Those that are not comparable keep their distances to their best, which counts as `best`: how good they are
        beside the trials of this search is not known.
        """
        if self.is_comparable:
            return [*self.trials]
        by = [to - own for to, own in zip(best, self.best, strict=True)]
        return [(values, [each + more for each, more in zip(told, by, strict=True)]) for values, told in self.trials]


def tune_fields(tune: TuneSpec) -> dict[str, object]:
    """What `tune` adds to the key of a search: of a study's file its content; raises StageFailed."""
    fields = tune.result_fields()
    if tune.warm_start:
        fields["warm_start"] = [
            _content(f"tune.warm_start.{index}", name) for index, name in enumerate(tune.warm_start)
        ]
    return fields


def _content(field: str, name: str) -> object:
    file = study_file(name)
    if not file:
        return without_secrets(name)
    try:
        return [OPTUNA, fingerprint(pa.fs.LocalFileSystem(), file), name.partition("#")[2]]
    except (OSError, pa.ArrowException) as error:
        raise StageFailed(f"{field}: cannot read {file}: {error}") from error


def best_settings(priors: Sequence[Prior], dimensions: Mapping[str, Dimension]) -> list[Values]:
    """Of each source the best settings that leave no field of the space open: a search tries these first."""
    found = []
    for prior in priors:
        whole = [(told, values) for values, told in prior.trials if _is_whole(values, dimensions)]
        if whole:
            found.append(min(whole, key=lambda each: each[0])[1])
    return found


def _is_whole(values: Values, dimensions: Mapping[str, Dimension]) -> bool:
    filled = {field: values.get(field, dimension.ends[0]) for field, dimension in dimensions.items()}
    return active(dimensions, filled).keys() == values.keys()


def read_priors(
    names: Sequence[str], store: Store, search: Search, dimensions: Mapping[str, Dimension]
) -> tuple[list[Prior], list[str]]:
    """The trials of all sources, and a note on each; raises StageFailed, with the source."""
    priors, notes = [], []
    for index, name in enumerate(names):
        field = f"tune.warm_start.{index}"
        found, is_comparable = _trials_of(field, name, store, search, dimensions)
        inside = [(fitted, values) for given, values in found if (fitted := _fitted(given, dimensions)) is not None]
        shown = without_secrets(name)
        if not inside:
            searched = sorted({key for given, _ in found for key in given})
            raise StageFailed(
                f"{field}: none of the {len(found)} trials of {shown} with a value lies in tune.space: it searched "
                f"{', '.join(searched) or 'nothing'}; leave it out"
            )
        left_out = len(found) - len(inside)
        out = f"; {left_out} out of this space are left out" if left_out else ""
        how = "" if is_comparable else "; not comparable with values of this search, so only their order counts"
        notes.append(f"warm start: {len(inside)} trials of {shown}{out}{how}")
        priors.append(Prior(inside, is_comparable))
    return priors, notes


def _trials_of(
    field: str, name: str, store: Store, search: Search, dimensions: Mapping[str, Dimension]
) -> tuple[list[tuple[Values, list[float]]], bool]:
    """Settings and the badness of each metric, and whether they are comparable."""
    if name.startswith(OPTUNA):
        return _of_study(field, name.removeprefix(OPTUNA), search, dimensions), False
    other = _find_search(field, name, store)
    found = []
    for trial in other.trials:
        reports = [(compared_badness(search.metrics[0], report.figures, search.constraints), report.figures)
                   for report in trial.reports]  # fmt: skip
        value, figures = min(reports, key=lambda each: each[0], default=(math.inf, {}))
        told = [badness(metric, figures.get(metric, math.nan)) for metric in search.metrics]
        if math.isfinite(value) and all(map(math.isfinite, told)):
            found.append((trial.values, told))
    return found, bool(search.measure) and other.measure == search.measure


def _of_study(
    field: str, text: str, search: Search, dimensions: Mapping[str, Dimension]
) -> list[tuple[Values, list[float]]]:
    if len(search.metrics) > 1:
        raise StageFailed(f"{field}: a study has one value for each trial, and tune.metric names several; name one")
    from workflows.search.studies import StudyError, read_study  # other searches do not need Optuna

    try:
        trials = read_study(text)
    except StudyError as error:
        raise StageFailed(f"{field}: {error}") from None
    return [({_field_of(name, dimensions): value for name, value in trial.params.items()}, [trial.badness])
            for trial in trials]  # fmt: skip


def _field_of(name: str, dimensions: Mapping[str, Dimension]) -> str:
    """The field that a parameter of a study stands for: a dotted field, or its only one that ends so."""
    ends = [field for field in dimensions if field.endswith(f".{name}")]
    return ends[0] if name not in dimensions and len(ends) == 1 else name


def _find_search(field: str, name: str, store: Store) -> Search:
    """A search by its key, or by the name of its run."""
    record = next((record for record in store.runs() if record.run == name), None)
    key = name if record is None else record.key_of("tune")
    search = None if key is None or "/" in key else read_search(store, key)
    if search is None and record is not None:
        raise StageFailed(f"{field}: run {name} did not complete a search; name the search's key (rayconteur trials)")
    if search is None:
        known = ", ".join(record.run for record in store.runs() if record.key_of("tune"))
        raise StageFailed(
            f"{field}: the store {store.uri} has no search {name!r}; must be a run with a search "
            f"({known or 'there is none'}), a search's key, or {OPTUNA}STORAGE#STUDY"
        )
    return search


def _fitted(given: Mapping[str, Any], dimensions: Mapping[str, Dimension]) -> Values | None:
    """The settings of the fields of the space; None if it has none of them, or if one is not in its range."""
    values: Values = {}
    for field, dimension in dimensions.items():
        if field not in given:
            continue
        value = given[field]
        if isinstance(dimension, Choice):
            same = [each for each in dimension.values if type(each) is type(value) and each == value]
            numbers = [each for each in dimension.values if _is_number(each) and _is_number(value) and each == value]
            if not (same or numbers):
                return None
            values[field] = (same or numbers)[0]
        elif not _is_number(value) or not dimension.low <= value <= dimension.high:
            return None
        else:
            values[field] = dimension.nearest(value)
    return active(dimensions, values) or None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
