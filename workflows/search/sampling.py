"""A search over `serve.sampling`: the sampling settings whose replies of the trained model score best in a suite.

search = search_sampling(context)

Nothing is trained. The workers of `evaluate` generate the replies, on the engine of many replies and by the
endpoint's code. They stay in the store, so a search that is repeated or extended generates what is new.
"""

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from models.training.report import Report
from workflows.cluster.board import watching
from workflows.cluster.workers import check_fits, worker_environment
from workflows.progress import Progress
from workflows.scorecard.worker import TUNED, ScoringSettings, ScoringWorker, scoring_settings
from workflows.search.records import FAILED, FINISHED, Search, Trial, Winner, ranking, write_search
from workflows.search.table import search_table
from workflows.search.trial import RESULT, TrialEvent, values_of
from workflows.search.tuner import searcher_of
from workflows.spec import PipelineSpec, TuneSpec
from workflows.spec.serve import SAMPLING
from workflows.spec.space import Values, dimensions_of, trials_wanted
from workflows.spec.tune import SUITE
from workflows.stage import Context, StageFailed
from workflows.store import Store, content_key
from workflows.suites.answering import Answer, Asked
from workflows.suites.read import metric_suites
from workflows.suites.settings import suite_settings
from workflows.suites.suite import Item, Suite

# Replies that a worker generates together.
_IN_A_BATCH = 96
# TPE chooses by the trials that have ended.
_TPE_AT_ONCE = 4


Converse = Callable[[Sequence[Asked]], list[list[Answer]]]
"""the replies to the turns of each conversation"""


@dataclass(frozen=True)
class _Question:
    """An item for a trial to reply to."""

    trial: Trial
    suite: Suite
    item: Item


class SamplingWorker:
    """Replies as the trained model; a Ray actor."""

    def __init__(self, settings: ScoringSettings, board: Any) -> None:
        self._worker, self._board = ScoringWorker(settings, board), board

    def converse(self, asked: Sequence[Asked]) -> list[list[Answer]]:
        """The replies to the turns of each conversation."""
        answering, cache = self._worker.answering_model(TUNED)
        try:
            return answering.converse(asked, lambda: self._board.add.remote(done=1))
        finally:
            cache.save()


def search_sampling(context: Context) -> Search:
    """Run the search; returns it with its winner, whose score is measured again with other random numbers. Raises
    StageFailed.
    """
    spec, store = context.spec, context.store
    tune = spec.tune
    assert tune is not None
    check_fits(spec, ["tune"], context.progress)
    suites = metric_suites(spec)
    num_items, num_workers = sum(len(suite.items) for suite in suites), spec.evaluate.num_workers
    room = max(1, _IN_A_BATCH * num_workers // num_items)
    limits = [room, trials_wanted(tune), tune.max_concurrent, _TPE_AT_ONCE if tune.searcher.name == "tpe" else None]
    search = Search(
        pipeline=spec.name,
        key=context.key,
        metrics=list(tune.metric),
        space=tune.space,
        searcher=tune.searcher.name,
        scheduler=tune.scheduler.name,
        wanted=trials_wanted(tune),
        seconds_allowed=tune.time_minutes and tune.time_minutes * 60,
        at_once=min(limit for limit in limits if limit is not None),
    )
    write_search(store, search)
    total = None if search.wanted is None else (search.wanted + 1) * num_items
    with watching(context.progress, "replies", total) as board:
        checkpoint = context.inputs["train"].key
        scoring = Scoring(spec, checkpoint, suites, search, _converse(context, board))
        run_scorings(tune, store, context.progress, search, scoring)
        search.winner = scoring.winner()
    write_search(store, search)
    return search


def run_scorings(tune: TuneSpec, store: Store, progress: Progress, search: Search, scoring: "Scoring") -> None:
    """All trials, some at once."""
    began = time.monotonic()
    searcher = searcher_of(tune, dimensions_of(tune.space), {})
    numbers = itertools.count() if search.wanted is None else iter(range(search.wanted))
    while chosen := list(_suggested(searcher, itertools.islice(numbers, search.at_once))):
        trials = [scoring.trial(number, values) for number, values in chosen]
        search.trials += trials
        progress.show(lambda: search_table(search, progress.console.width))
        scoring.score(trials)
        for trial in trials:
            event = TrialEvent(trial.key, trial.values, None, trial.last, failed=trial.error)
            searcher.on_trial_complete(str(trial.number), {RESULT: event})
        search.seconds = round(time.monotonic() - began, 1)
        write_search(store, search)
        if search.seconds_allowed is not None and search.seconds >= search.seconds_allowed:
            break


def _suggested(searcher: Any, numbers: Iterator[int]) -> Iterator[tuple[int, Values]]:
    for number in numbers:
        suggested = searcher.suggest(str(number))
        if not isinstance(suggested, dict):
            return
        yield number, values_of(suggested)


def _converse(context: Context, board: Any) -> Converse:
    """The trained model on the workers of `evaluate`, who share what is asked."""
    settings, evaluate = scoring_settings(context, in_bulk=True), context.spec.evaluate
    actor: Any = ray.remote(SamplingWorker).options(
        num_cpus=evaluate.cpus_per_worker,
        num_gpus=evaluate.gpus_per_worker,
        runtime_env={"env_vars": worker_environment(evaluate.cpus_per_worker, evaluate.gpus_per_worker)},
    )
    workers = [actor.remote(settings, board) for _ in range(evaluate.num_workers)]

    def converse(asked: Sequence[Asked]) -> list[list[Answer]]:
        parts = [worker.converse.remote(asked[rank :: len(workers)]) for rank, worker in enumerate(workers)]
        answers: list[list[Answer]] = [[] for _ in asked]
        for rank, part in enumerate(ray.get(parts)):
            answers[rank :: len(workers)] = part
        return answers

    return converse


class Scoring:
    """Scores the replies of trials, which `converse` generates."""

    def __init__(
        self, spec: PipelineSpec, checkpoint: str, suites: Sequence[Suite], search: Search, converse: Converse
    ) -> None:
        """`checkpoint`: the key of the trained model."""
        self._spec, self._suites, self._search, self._replies = spec, suites, search, converse
        self._checkpoint = checkpoint
        self._suites_key = content_key({"suites": suite_settings(spec.evaluate)})

    def trial(self, number: int, values: Values) -> Trial:
        """A trial with these settings."""
        key = content_key({"sampling": values, "checkpoint": self._checkpoint, "suites": self._suites_key})
        return Trial(number, key, values)

    def score(self, trials: Sequence[Trial]) -> None:
        """Score trials, which then have ended."""
        for trial, (figures, error) in zip(trials, self._measured(trials, 0), strict=True):
            trial.state, trial.error = (FAILED, error) if error else (FINISHED, "")
            if not error:
                trial.reports.append(Report(1, 1, figures))

    def winner(self) -> Winner:
        """The best trial, scored again; raises StageFailed if no trial has a score."""
        metric = self._search.metrics[0]
        ranked = ranking(self._search.trials, metric)
        if not ranked:
            reasons = {trial.error for trial in self._search.trials if trial.error}
            raise StageFailed(f"tune: no trial has a score: {'; '.join(sorted(reasons)) or 'there was no time'}")
        trial, report = ranked[0]
        [(again, error)] = self._measured([trial], 1)
        if error:
            raise StageFailed(f"tune: cannot measure the winner again: {error}")
        return Winner(trial.number, trial.key, report.step, "", report.figures[metric], again[metric])

    def _measured(self, trials: Sequence[Trial], repeat: int) -> list[tuple[dict[str, float], str]]:
        """Of each trial the score of each suite, or why it has none."""
        items = [(suite, item) for suite in self._suites for item in suite.items]
        questions = [_Question(trial, suite, item) for trial in trials for suite, item in items]
        answers = self._replies([self._asked(each, repeat) for each in questions])
        found = [*zip(questions, answers, strict=True)]
        return [self._scores(found[start : start + len(items)]) for start in range(0, len(found), len(items))]

    def _scores(self, answered: Sequence[tuple[_Question, list[Answer]]]) -> tuple[dict[str, float], str]:
        errors = [answer.error for _, answers in answered for answer in answers if answer.message is None]
        if len(errors) == sum(len(answers) for _, answers in answered):
            return {}, errors[0]
        scores: dict[str, list[float]] = {suite.name: [] for suite in self._suites}
        for question, answers in answered:
            score = question.suite.item_score(question.item, [answer.message for answer in answers])
            scores[question.suite.name].append(score)
        return {f"{SUITE}{name}": math.fsum(each) / len(each) for name, each in scores.items()}, ""

    def _asked(self, question: _Question, repeat: int) -> Asked:
        """All trials reply to an item with the same random numbers, which makes them comparable."""
        fixed = self._spec.serve.sampling.model_dump(exclude_none=True)
        own = {field.removeprefix(SAMPLING): value for field, value in question.trial.values.items()}
        sampling: Mapping[str, object] = {"temperature": 1.0, **fixed, **own, "seed": self._seed(question, repeat)}
        return Asked(question.item.turns, question.suite.max_new_tokens, sampling)

    def _seed(self, question: _Question, repeat: int) -> int:
        assert self._spec.tune is not None
        text = f"{self._spec.tune.seed} {repeat} {question.suite.name} {question.item.id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
