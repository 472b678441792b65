"""Run lm-eval's tasks: once to note what they ask, and once for each model to score its answers."""

import contextlib
import functools
import io
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import RayconteurError
from workflows.cluster.errors import describe_error
from workflows.lm_eval.files import entries, lm_eval_version
from workflows.lm_eval.requests import Answer, EndpointRequest
from workflows.lm_eval.results import TaskResult, read_results
from workflows.spec import EvaluateSpec, LmEvalSpec
from workflows.stage import StageFailed

_NO_ANSWER: Answer = {"text": "", "logprob": 0.0, "is_greedy": False}


class LmEvalTasks:
    """The tasks of `evaluate.lm_eval`; raises StageFailed if lm-eval is not installed."""

    def __init__(self, evaluate: EvaluateSpec) -> None:
        lm_eval_version()
        self._entries = list(entries(evaluate))

    def requests(self, tokenizer: Any, max_positions: int) -> list[EndpointRequest]:
        """What the tasks ask a model with this tokenizer, each request once; raises StageFailed."""
        found: dict[str, EndpointRequest] = {}

        def note(requests: Sequence[EndpointRequest]) -> list[Answer]:
            found.update((request.key, request) for request in requests)
            return [_NO_ANSWER] * len(requests)

        for field, entry in self._entries:
            _run(entry, field, tokenizer, max_positions, note, predict_only=True)
        return list(found.values())

    def results(self, tokenizer: Any, max_positions: int, answers: Mapping[str, Answer]) -> list[TaskResult]:
        """What lm-eval makes of a model's answers, by the keys of the requests; raises StageFailed."""

        def look_up(requests: Sequence[EndpointRequest]) -> list[Answer]:
            return [answers[request.key] for request in requests]

        found: list[TaskResult] = []
        for field, entry in self._entries:
            results = _run(entry, field, tokenizer, max_positions, look_up, predict_only=False)
            found += read_results(results, entry, field)
        return found


def _run(
    entry: LmEvalSpec, field: str, tokenizer: Any, max_positions: int, ask: Any, predict_only: bool
) -> Mapping[str, Any]:
    """lm-eval's own results of an entry's tasks."""
    from lm_eval import evaluate

    from workflows.lm_eval.model import EndpointLM

    with _quiet():
        tasks, manager = _tasks(entry, field)
        try:
            # Not simple_evaluate: it also runs `pip list` and others, 3 s, for a report on the machine.
            found: Mapping[str, Any] = evaluate(
                lm=EndpointLM(tokenizer, max_positions, ask),
                task_dict=_loaded(tasks, manager, entry, predict_only),
                limit=entry.limit,
                apply_chat_template=entry.chat_template,
                fewshot_as_multiturn=entry.chat_template,
                bootstrap_iters=0,
            )
        except (Exception, SystemExit) as error:
            if isinstance(error, StageFailed):
                raise
            what = str(error) if isinstance(error, RayconteurError) else describe_error(error)
            raise StageFailed(f"{field}: lm-eval cannot run {entry.task}: {what}") from error
    return found


def _loaded(tasks: list[Any], manager: Any, entry: LmEvalSpec, predict_only: bool) -> Any:
    """The tasks with an entry's settings and the seeds of lm-eval's own command; `predict_only`: without metrics."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    loaded = manager.load(tasks)
    for task in loaded["tasks"].values():
        if predict_only:
            task.override_metric("bypass")
        decided = task.get_config("num_fewshot")  # 0: the task allows no examples
        if decided is None or (decided != 0 and entry.num_fewshot is not None):
            task.set_config("num_fewshot", entry.num_fewshot or 0)
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    return loaded


def _tasks(entry: LmEvalSpec, field: str) -> tuple[list[Any], Any]:
    """The tasks as lm-eval wants them, and its task manager."""
    if entry.is_folder:
        return task_dicts(Path(entry.task), field), _manager(False)
    manager = _manager(True)
    if entry.task not in manager.task_index:
        raise StageFailed(
            f"{field}.task: lm-eval has no task, group or tag {entry.task!r}; `lm-eval ls tasks` lists them; a "
            f"folder of tasks has a slash, as in ./{entry.task}"
        )
    return [entry.task], manager


@functools.cache
def _manager(include_defaults: bool) -> Any:
    """lm-eval's index of tasks; its own 14,000 take it ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=include_defaults)


def task_dicts(folder: Path, field: str) -> list[dict[str, Any]]:
    """The tasks of a folder; paths of data in them start at the file that names them, and not where we are."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found = []
    for file in sorted(folder.rglob("*.yaml")):
        try:
            task = load_yaml(file)
        except Exception as error:
            raise StageFailed(f"{field}.task: cannot read {file}: {describe_error(error)}") from error
        if isinstance(task.get("task"), str):  # others are groups, and parts that tasks include
            found.append({**task, "dataset_kwargs": _beside(file.parent, task.get("dataset_kwargs") or {})})
    if not found:
        raise StageFailed(f"{field}.task: no file *.yaml in {folder} has the key `task`, a task's name; add it")
    return found


def _beside(folder: Path, value: Any) -> Any:
    """`value` with the names of files in `folder` as whole paths."""
    if isinstance(value, dict):
        return {name: _beside(folder, item) for name, item in value.items()}
    if isinstance(value, list):
        return [_beside(folder, item) for item in value]
    return str(folder / value) if isinstance(value, str) and (folder / value).exists() else value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's progress bars and notes, which the display of a run has no place for."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
