"""What people ask of a running search, decided in its driver: trials to stop, to add and to clone.

steering = Steering(spec, search, asked_before)
answer = steering.decide(request)               # any thread
searcher = SteeredSearcher(searcher, wanted, steering)      # workflows/search/steered.py tells it what Tune does

Trials have the numbers in which they begin. An added trial gets the next number at once, and keeps it when the search
goes on after an interruption: the searcher's own trials then have theirs too. A trial to stop is found by its values.
"""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from models.errors import RayconteurError, nearest
from workflows.search.pack import why_not_with
from workflows.search.records import RUNNING, Search
from workflows.search.steering_requests import SteeringRequest, answered, refused
from workflows.spec import PipelineSpec
from workflows.spec.read import refusal_of_values
from workflows.spec.space import Choice, Values, active, dimensions_of, is_inside, value_of, with_values


class RequestRefused(RayconteurError):
    """A request that the search refuses; the text tells why."""


@dataclass(frozen=True)
class Added:
    """A trial that somebody has added."""

    values: Values
    words: str
    """how it came to be"""


class Steering:
    """The trials that were added to a search and those to stop. All methods may be called from any thread."""

    def __init__(
        self,
        spec: PipelineSpec,
        search: Search,
        before: Iterable[SteeringRequest] = (),
        known: int = 0,
        pack: int = 1,
    ) -> None:
        """`before`: what the search was asked before it was interrupted; `known`: the trials that it had begun then.
        `pack`: trials that share a worker group.
        """
        assert spec.tune is not None
        self._spec, self._search, self._pack = spec, search, pack
        self.wanted = search.wanted
        """the number of trials that the searcher chooses"""
        self._dimensions = dimensions_of(spec.tune.space)
        self._lock = threading.RLock()
        self._to_add: dict[int, Added] = {}
        self._stops: list[tuple[Values, int]] = []
        """the values of trials to stop, and the step that each had reported"""
        self._begun: list[Values] = []
        """of each trial, by its number"""
        self._added: dict[int, Added] = {}
        """those that have begun, by their numbers"""
        self._numbers: dict[str, int] = {}
        """of running trials, by Tune's id"""
        self._known = known
        self._searcher_is_over = False
        self._over = ""
        for request in before:
            if request.answer is None or request.is_refused:
                continue
            if request.number is not None:
                self._add(request.number, Added(dict(request.values), _words(request)))
            elif request.does == "stop":
                self._stops.append((dict(request.values), request.step or 0))

    def __getstate__(self) -> dict[str, object]:
        """Keep no state for Tune's restore: our searches resume from their own records."""
        return {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing be asked meanwhile."""
        with self._lock:
            yield

    def decide(self, request: SteeringRequest) -> SteeringRequest:
        """Do what is asked, or refuse it."""
        with self._lock:
            try:
                self._check_open()
                return self._stop(request) if request.does == "stop" else self._begin_another(request)
            except RequestRefused as refusal:
                return refused(request, str(refusal))

    def close(self, why: str) -> None:
        """No trial begins or ends any more."""
        with self._lock:
            self._over = self._over or why

    # What Tune does

    def due(self, searcher_is_over: bool) -> Values | None:
        """The settings of the next trial if it is one that was added; once there are no others, of any of these."""
        with self._lock:
            self._searcher_is_over = searcher_is_over
            first = min(self._to_add, default=None)
            is_due = first is not None and (searcher_is_over or first <= len(self._begun))
            return self._to_add[first].values if first is not None and is_due else None

    def begin(self, trial_id: str, values: Values) -> None:
        """The next trial begins."""
        with self._lock:
            number = len(self._begun)
            if (due := next((n for n, added in self._to_add.items() if added.values is values), None)) is not None:
                self._added[number] = self._to_add.pop(due)
            self._numbers[trial_id] = number
            self._begun.append(values)

    def end(self, trial_id: str) -> None:
        """A trial has ended."""
        with self._lock:
            self._numbers.pop(trial_id, None)

    @property
    def is_quiet(self) -> bool:
        """Whether no trial runs, so that no other will begin."""
        with self._lock:
            return not self._numbers

    def stops(self, trial_id: str, step: int) -> bool:
        """Whether a running trial ends with its report at this step."""
        with self._lock:
            number = self._numbers.get(trial_id)
            return number is not None and self.was_stopped(self._begun[number], step)

    def was_stopped(self, values: Values, step: int) -> bool:
        """Whether a trial with these values ends with its report at this step, because somebody has stopped it."""
        with self._lock:
            return any(step > asked and values == stopped for stopped, asked in self._stops)

    def words_of(self, number: int) -> str:
        """How a trial came to be; empty for the searcher's own."""
        with self._lock:
            return self._added[number].words if number in self._added else ""

    # Decisions

    def _check_open(self) -> None:
        tune = self._spec.tune
        assert tune is not None
        if tune.searcher.name == "mixture":
            raise RequestRefused("tune.searcher: mixture trains all the mixtures that it compares; no other can join")
        if tune.scheduler.name == "population":
            raise RequestRefused(
                "tune.scheduler: the members of a population go on together, and the worst copy the best: a bad "
                "member ends by itself, and none can join"
            )
        if self._over:
            raise RequestRefused(self._over)

    def _stop(self, request: SteeringRequest) -> SteeringRequest:
        number, values = self._trial(request)
        if number not in self._numbers.values():
            state, step = next(((trial.state, trial.last) for trial in self._search.trials if trial.number == number),
                               (RUNNING, None))  # fmt: skip
            ended = "has ended" if state == RUNNING else f"has already {'ended' if state == 'stopped' else state}"
            raise RequestRefused(f"trial {number} {ended}{f' at step {step.step}' if step else ''}")
        last = next((trial.last for trial in reversed(self._search.trials) if trial.number == number), None)
        if not any(values == stopped for stopped, _ in self._stops):
            self._stops.append((values, last.step if last else 0))
        where = f"after step {last.step} of {last.num_steps}" if last else "its first one"
        words = f"trial {number} ends at its next report, {where}; its checkpoint there counts, and can still win"
        return answered(request, words, values=values, step=last.step if last else 0)

    def _begin_another(self, request: SteeringRequest) -> SteeringRequest:
        start: Mapping[str, object] = {}
        if request.does == "clone":
            _, start = self._trial(request, or_waiting=True)
        values = self._whole(start, request.values)
        self._check_new(values)
        number = self._next_number()
        request = replace(request, values=values, number=number)
        self._add(number, Added(values, _words(request)))
        said = ", ".join(f"{field}={json.dumps(value)}" for field, value in values.items())
        origin = f" as a clone of trial {request.trial}" if request.does == "clone" else ""
        words = f"trial {number} is added{origin} and begins from the start when workers are free: {said}"
        outside = [field for field, value in values.items() if not is_inside(self._dimensions[field], value)]
        if outside and self._search.searcher == "tpe":
            words += f"; tpe does not learn from it, because {outside[0]} is outside of tune.space"
        return answered(request, words, values=values, number=number)

    def _next_number(self) -> int:
        """After the trials that have begun, that an interrupted search had begun, and that wait."""
        if self._searcher_is_over:
            return len(self._begun) + len(self._to_add)
        known = self._known
        if self.wanted is not None:
            known = min(known, self.wanted + len(self._added) + len(self._to_add))
        return max(len(self._begun), known, *(waiting + 1 for waiting in self._to_add), 0)

    def _add(self, number: int, added: Added) -> None:
        self._to_add[number] = added
        if self._search.wanted is not None:
            self._search.wanted += 1

    def _trial(self, request: SteeringRequest, or_waiting: bool = False) -> tuple[int, Values]:
        """The number and the values of the trial that a request names."""
        number = request.trial
        if number is not None and 0 <= number < len(self._begun):
            return number, self._begun[number]
        waiting = self._to_add.get(-1 if number is None else number)
        if waiting is not None and or_waiting:
            return number or 0, waiting.values
        if waiting is not None:
            raise RequestRefused(f"trial {number} has not begun; stop it once it runs")
        begun = f"0 to {len(self._begun) - 1}" if self._begun else "none"
        raise RequestRefused(f"there is no trial {number}; trials that have begun: {begun}")

    def _whole(self, start: Mapping[str, object], given: Mapping[str, Any]) -> Values:
        """The values of a trial: those given, else those of `start`, else the pipeline file's."""
        for field in given:
            if field not in self._dimensions:
                near = nearest(field, list(self._dimensions))
                hint = f"did you mean {near}?" if near else f"it has {', '.join(self._dimensions)}"
                raise RequestRefused(f"{field}: is not a field of tune.space, so all trials share it; {hint}")
        of_file = {field: value_of(self._spec, field) for field in self._dimensions}
        whole = {**of_file, **start, **given}
        values = active(self._dimensions, {field: whole[field] for field in self._dimensions})
        if off := next((field for field in given if field not in values), None):
            when = ", ".join(f"{name}: {list(choices)}" for name, choices in self._dimensions[off].when.items())
            raise RequestRefused(f"{off}: is searched only when {when}; leave it out, or set that too")
        try:
            trial = with_values(self._spec, values)
        except ValidationError as error:
            raise RequestRefused(refusal_of_values(error)) from None
        return {field: self._as_drawn(field, value_of(trial, field)) for field in values}

    def _as_drawn(self, field: str, value: Any) -> Any:
        """A value as a searcher would give it, for which 1 and 1.0 differ."""
        dimension = self._dimensions[field]
        same = [choice for choice in dimension.values if choice == value] if isinstance(dimension, Choice) else []
        return same[0] if same else value

    def _check_new(self, values: Values) -> None:
        same = [number for number, other in enumerate(self._begun) if other == values]
        same += [number for number, added in self._to_add.items() if added.values == values]
        if same:
            raise RequestRefused(f"trial {same[0]} has these values already")
        if self._pack > 1 and (why := why_not_with(self._spec, values)):
            raise RequestRefused(f"tune.pack: the trials of this search are packed, and {why}")


def _words(request: SteeringRequest) -> str:
    return f"clone of {request.trial}, by hand" if request.does == "clone" else "added by hand"
