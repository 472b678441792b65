"""Tasks of lm-evaluation-harness in an evaluation: what they ask, and what the models' answers are worth.

asked = LmEvalQuestions.of(spec, checkpoint_folder)          # None without evaluate.lm_eval
scored = asked.scores(results, confidence=0.95)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.statistics.interval import interval
from workflows.lm_eval.requests import EndpointRequest
from workflows.lm_eval.results import TaskMetric, TaskResult
from workflows.lm_eval.tasks import LmEvalTasks
from workflows.scorecard.comparisons import Measure, Unit, finite
from workflows.scorecard.records import ModelScore, ScoredItem, SuiteFigures, TaskFigures
from workflows.scorecard.worker import ScoreRow
from workflows.spec import PipelineSpec


@dataclass(frozen=True)
class ScoredTasks:
    """The tasks' results, by task in the order of the pipeline file."""

    figures: tuple[SuiteFigures, ...] = ()
    """of the tasks whose main metric has a score for each item"""
    measures: tuple[Measure, ...] = ()
    items: tuple[ScoredItem, ...] = ()
    tasks: tuple[TaskFigures, ...] = ()
    """all metrics of all tasks"""


NO_TASKS = ScoredTasks()


@dataclass(frozen=True)
class LmEvalQuestions:
    """What the tasks ask models with the checkpoint's tokenizer."""

    tasks: LmEvalTasks
    tokenizer: Any
    max_positions: int
    requests: Sequence[EndpointRequest]

    @classmethod
    def of(cls, spec: PipelineSpec, checkpoint_folder: Path) -> "LmEvalQuestions | None":
        """None if no tasks are asked for; raises StageFailed for a task that cannot run."""
        if not spec.evaluate.lm_eval:
            return None
        from models.base.load import load_tokenizer, resolve
        from models.base.sizes import describe

        tasks, tokenizer = LmEvalTasks(spec.evaluate), load_tokenizer(checkpoint_folder)
        positions = int(describe(resolve(spec.base_model))["max_positions"])
        return cls(tasks, tokenizer, positions, tasks.requests(tokenizer, positions))

    def texts(self) -> list[str]:
        """The requests as JSON, for workers."""
        return [json.dumps(asdict(request)) for request in self.requests]

    def scores(self, results: Sequence[ScoreRow], confidence: float) -> ScoredTasks:
        """What lm-eval makes of the answers of each model."""
        answers: dict[str, dict[str, Any]] = {}
        for row in results:
            if row.get("request"):
                answers.setdefault(str(row["model"]), {})[str(row["request"])] = row["answer"]
        found = {model: self.tasks.results(self.tokenizer, self.max_positions, own) for model, own in answers.items()}
        return scored_tasks(found, confidence)


def scored_tasks(found: Mapping[str, Sequence[TaskResult]], confidence: float) -> ScoredTasks:
    """The results of each model, by model, compared task by task."""
    figures: list[SuiteFigures] = []
    measures: list[Measure] = []
    items: list[ScoredItem] = []
    tasks: list[TaskFigures] = []
    names: set[str] = set()
    for of_models in zip(*found.values(), strict=True):
        by_model = dict(zip(found, of_models, strict=True))
        first = of_models[0]
        name = _free_name(f"lm-eval {first.name}", names)
        tasks.append(
            TaskFigures(
                name=name,
                items=len(first.items),
                values={
                    metric.name: {model: result.metrics[place].value for model, result in by_model.items()}
                    for place, metric in enumerate(first.metrics)
                },
            )
        )
        main = {model: result.metrics[0] for model, result in by_model.items() if result.metrics}
        if len(main) < len(by_model) or not all(metric.scores for metric in main.values()):
            continue
        measure = _measure(name, first, main)
        measures.append(measure)
        figures.append(_figures(name, first, next(iter(main.values())), measure, confidence))
        items += _items(name, by_model, main)
    return ScoredTasks(tuple(figures), tuple(measures), tuple(items), tuple(tasks))


def _free_name(name: str, names: set[str]) -> str:
    """The name, numbered if a task is listed again, with other settings."""
    again = 1
    while (free := name if again == 1 else f"{name} ({again})") in names:
        again += 1
    names.add(free)
    return free


def _measure(name: str, task: TaskResult, main: Mapping[str, TaskMetric]) -> Measure:
    metric = next(iter(main.values()))
    ids = [item.id for item in task.items if all(item.id in each.scores for each in main.values())]
    scores = {model: [each.scores[number] for number in ids] for model, each in main.items()}
    is_share = metric.higher_is_better and all(0 <= score <= 1 for each in scores.values() for score in each)
    unit: Unit = "share" if is_share else "number"
    return Measure(
        name=name,
        unit=unit,
        scores=scores,
        clusters=ids,
        tags=[{}] * len(ids),
        weights=[metric.weights[number] for number in ids],
        lower_is_better=not metric.higher_is_better,
        golden=task.golden,
    )


def _figures(name: str, task: TaskResult, main: TaskMetric, measure: Measure, confidence: float) -> SuiteFigures:
    scores = []
    for model, values in measure.scores.items():
        mean = interval(values, measure.clusters, measure.weights, confidence)
        scores.append(
            ModelScore(model=model, mean=round(mean.mean, 6), low=finite(mean.low), high=finite(mean.high), failed=0)
        )
    return SuiteFigures(
        name=name, scorer=f"lm-eval {main.name}", golden=task.golden, unit=measure.unit, items=len(measure.clusters),
        scores=tuple(scores),
    )  # fmt: skip


def _items(name: str, by_model: Mapping[str, TaskResult], main: Mapping[str, TaskMetric]) -> list[ScoredItem]:
    replies = {model: {item.id: item.replies for item in result.items} for model, result in by_model.items()}
    first = next(iter(by_model.values()))
    return [
        ScoredItem(
            suite=name,
            id=item.id,
            place=f"{item.task}:{item.id}",
            group=item.id,
            tags={},
            asked=[item.prompt],
            replies={model: of_model[item.id] for model, of_model in replies.items()},
            scores={model: metric.scores[item.id] for model, metric in main.items() if item.id in metric.scores},
            failed=[],
        )
        for item in first.items
    ]
