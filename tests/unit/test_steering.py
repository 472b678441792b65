"""A hand on a running search: what it allows and refuses, what goes on after an interruption, and races."""

import threading
from pathlib import Path
from typing import Any

import pytest
import ray.tune
from ray.tune.search import Searcher

from models.training.report import Report
from workflows.lease import Lease
from workflows.search.priced import UntilGainIsSmall
from workflows.search.records import Search, Trial
from workflows.search.steered import SteeredSearcher
from workflows.search.steering import Steering
from workflows.search.steering_requests import Listener, SteeringRequest, ask, read_requests, take_over
from workflows.search.tpe import TpeSearch
from workflows.search.trial import RESULT, TrialEvent, values_of
from workflows.search.tuner import InOrder
from workflows.spec import PipelineSpec, TpeSpec
from workflows.spec.space import Values, all_settings, dimensions_of
from workflows.store import Store

RATE, RANK, ALPHA, METHOD = "train.learning_rate", "train.adapter.rank", "train.adapter.alpha", "train.adapter.method"
SPACE = {RATE: [1e-4, 3e-4, 1e-3], RANK: {"int": [4, 16]}}


class Driven:
    """A search with a hand on it, driven as Ray Tune drives its searcher: each trial has a report every 10 steps."""

    def __init__(
        self,
        tiny: dict[str, Any],
        space: dict[str, Any] | None = None,
        *,
        before: Any = (),
        known: int = 0,
        trials: int = 3,
        searcher: Any = None,
        pack: int = 1,
        **tune: Any,
    ) -> None:
        tiny["train"] |= {"adapter": {"rank": 8}, "learning_rate": 2e-4}
        tiny["tune"] = {"space": space or SPACE, "trials": trials} | tune
        self.spec = PipelineSpec.model_validate(tiny)
        assert self.spec.tune is not None
        self.dimensions = dimensions_of(self.spec.tune.space)
        self.search = Search("p", "key", ["held_out_loss"], {}, self.spec.tune.searcher.name, "none", trials)
        self.steering = Steering(self.spec, self.search, before, known, pack)
        drawn = [{RATE: 1e-4, RANK: rank} for rank in range(4, 17)]
        self.inner = searcher or InOrder(drawn)
        self.searcher = SteeredSearcher(self.inner, self.steering.wanted, self.steering)
        self.begun: list[Values] = []

    def begin(self, count: int = 1) -> list[Values]:
        """Up to this many trials begin; fewer if the searcher gives none now, or has ended."""
        found = []
        for _ in range(count):
            suggested = self.searcher.suggest(f"id{len(self.begun)}")
            if suggested in (None, Searcher.FINISHED):
                break
            found.append(values_of(suggested))
            self.begun.append(found[-1])
            number = len(self.begun) - 1
            added = self.steering.words_of(number)
            self.search.trials.append(Trial(number, f"key{number}", found[-1], added=added))
        return found

    def report(self, number: int, step: int, loss: float = 1.0) -> bool:
        """A trial reports; whether it ends with that."""
        trial = self.search.trials[number]
        report = Report(step, 50, {"held_out_loss": loss, "num_tokens": 100.0 * step}, None)
        trial.reports.append(report)
        ends = self.steering.stops(f"id{number}", step) or step == 50
        result = {RESULT: TrialEvent("key", {}, None, report), "done": ends}
        if ends:
            trial.state = "finished" if step == 50 else "stopped"
            self.searcher.on_trial_complete(f"id{number}", result)
        else:
            self.searcher.on_trial_result(f"id{number}", result)
        return ends

    def ask(self, does: Any, trial: int | None = None, **values: Any) -> SteeringRequest:
        named = {"rate": RATE, "rank": RANK, "alpha": ALPHA, "method": METHOD}
        request = SteeringRequest(does=does, trial=trial, values={named.get(n, n): v for n, v in values.items()})
        return self.steering.decide(request)

    def refusal(self, does: Any, trial: int | None = None, **values: Any) -> str:
        answered = self.ask(does, trial, **values)
        assert answered.is_refused
        return answered.answer or ""


@pytest.fixture
def driven(tiny: dict[str, Any]) -> Driven:
    return Driven(tiny)


def test_a_stopped_trial_ends_at_its_next_report_and_the_others_go_on(driven: Driven) -> None:
    driven.begin(2)
    assert not driven.report(0, 10)
    answer = driven.ask("stop", 0)
    assert not answer.is_refused
    assert "trial 0 ends at its next report, after step 10 of 50" in str(answer.answer)
    assert not driven.report(1, 10)
    assert driven.report(0, 20)
    assert driven.steering.was_stopped(driven.begun[0], 20)
    assert not driven.steering.was_stopped(driven.begun[0], 10)
    assert not driven.report(1, 20)


def test_a_trial_that_has_not_reported_ends_at_its_first_report(driven: Driven) -> None:
    driven.begin()
    assert "its first one" in str(driven.ask("stop", 0).answer)
    assert driven.report(0, 10)


def test_an_added_trial_comes_next_and_beyond_those_wanted(driven: Driven) -> None:
    driven.begin(2)
    answer = driven.ask("add", rate=5e-4)
    assert (answer.number, answer.values) == (2, {RATE: 5e-4, RANK: 8})
    assert driven.search.wanted == 4
    assert driven.begin(9) == [{RATE: 5e-4, RANK: 8}, {RATE: 1e-4, RANK: 6}], "its rank is the pipeline file's"
    assert driven.search.trials[2].added == "added by hand"
    assert driven.search.trials[3].added == ""


def test_a_search_waits_for_others_while_a_trial_runs_and_then_ends(driven: Driven) -> None:
    driven.begin(3)
    assert driven.searcher.suggest("x") is None
    driven.ask("add", rank=15)
    assert driven.begin(5) == [{RATE: 2e-4, RANK: 15}]
    for number in range(4):
        assert driven.report(number, 50)
    assert driven.searcher.suggest("x") == Searcher.FINISHED
    assert "has tried all its trials" in driven.refusal("add", rank=16)
    assert "has tried all its trials" in driven.refusal("stop", 0)


def test_a_clone_has_the_values_of_another_trial_but_for_those_set(driven: Driven) -> None:
    driven.begin(2)
    answer = driven.ask("clone", 1, rate=3e-3)
    assert answer.values == {RATE: 3e-3, RANK: 5}
    assert "trial 2 is added as a clone of trial 1 and begins from the start" in str(answer.answer)
    again = driven.ask("clone", 2, rank=6)
    assert again.values == {RATE: 3e-3, RANK: 6}, "of one that waits"
    driven.begin(2)
    assert [trial.added for trial in driven.search.trials[2:]] == ["clone of 1, by hand", "clone of 2, by hand"]


@pytest.mark.parametrize(("values", "words"), [
    ({"train.learning_rat": 1e-4}, f"train.learning_rat: is not a field of tune.space, .*; did you mean {RATE}?"),
    ({"train.epochs": 3}, f"train.epochs: is not a field of tune.space, .*it has {RATE}, {RANK}"),
    ({"rank": 8.5}, f"{RANK}: got 8.5; must be a valid integer"),
    ({"rank": "many"}, f"{RANK}: got 'many'; must be a valid integer"),
    ({"rank": 0}, f"{RANK}: got 0; must be greater than or equal to 1"),
    ({"rate": -1}, f"{RATE}: got -1"),
])  # fmt: skip
def test_values_that_the_pipeline_file_could_not_have_are_refused_by_field(
    driven: Driven, values: dict[str, Any], words: str
) -> None:
    import re

    assert re.search(words.replace("?", r"\?"), driven.refusal("add", **values))


def test_values_outside_of_the_space_are_allowed(driven: Driven) -> None:
    assert not driven.ask("add", rank=128, rate=0.5).is_refused


def test_the_same_values_are_not_tried_twice(driven: Driven) -> None:
    driven.begin(1)
    assert driven.refusal("add", rate=1e-4, rank=4) == "trial 0 has these values already"
    assert driven.refusal("clone", 0) == "trial 0 has these values already"
    driven.ask("add", rate=1e-4, rank=5)
    assert driven.refusal("add", rate=1e-4, rank=5.0) == "trial 1 has these values already"
    assert driven.begin(3) == [{RATE: 1e-4, RANK: 5}, {RATE: 1e-4, RANK: 6}, {RATE: 1e-4, RANK: 7}]


@pytest.mark.parametrize(("trial", "words"), [
    (0, "trial 0 has already finished at step 50"), (1, "trial 1 has already ended at step 20"),
    (3, "trial 3 has not begun; stop it once it runs"), (9, "there is no trial 9; trials that have begun: 0 to 2"),
])  # fmt: skip
def test_what_cannot_be_stopped_is_refused_with_the_reason(driven: Driven, trial: int, words: str) -> None:
    driven.begin(3)
    driven.report(0, 50)
    driven.ask("stop", 1)
    driven.report(1, 20)
    driven.ask("add", rank=15)
    assert driven.refusal("stop", trial) == words


def test_before_a_trial_has_begun_there_is_none(driven: Driven) -> None:
    assert driven.refusal("clone", 0) == "there is no trial 0; trials that have begun: none"


def test_a_field_with_a_condition_is_added_only_where_that_holds(tiny: dict[str, Any]) -> None:
    space = {METHOD: ["lora", "rslora"], ALPHA: {"when": {METHOD: "rslora"}, "choices": [8, 16]}}
    driven = Driven(tiny, space, searcher=InOrder([{METHOD: "lora"}]))
    driven.begin()
    assert driven.refusal("add", alpha=8) == (
        f"{ALPHA}: is searched only when {METHOD}: ['rslora']; leave it out, or set that too"
    )
    assert driven.ask("add", method="rslora", alpha=8).values == {METHOD: "rslora", ALPHA: 8}
    assert driven.ask("clone", 0, method="rslora", alpha=16).values == {METHOD: "rslora", ALPHA: 16}


def test_a_population_and_a_search_over_mixtures_refuse_by_name(tiny: dict[str, Any]) -> None:
    population = Driven(tiny, {RATE: [1e-4, 1e-3]}, scheduler="population", searcher=InOrder([]))
    for does in ("stop", "add", "clone"):
        assert "tune.scheduler: the members of a population" in population.refusal(does, 0, rate=1e-4)
    tiny["data"]["sources"] = [tiny["data"]["sources"][0], {**tiny["data"]["sources"][0]}]
    tiny["tune"] = {"searcher": "mixture"}
    spec = PipelineSpec.model_validate(tiny)
    steering = Steering(spec, Search("p", "key", ["held_out_loss"], {}, "mixture", "none", 10))
    assert "tune.searcher: mixture" in str(steering.decide(SteeringRequest(does="stop", trial=0)).answer)


def test_a_trial_that_cannot_join_the_packs_is_refused(tiny: dict[str, Any]) -> None:
    driven = Driven(tiny, {METHOD: ["lora", "rslora"]}, searcher=InOrder([]), pack=4)
    assert "tune.pack: the trials of this search are packed, and DoRA" in driven.refusal("add", method="dora")
    assert not driven.ask("add", method="lora").is_refused


# After an interruption


def test_an_interrupted_search_has_the_same_trials_under_the_same_numbers(tiny: dict[str, Any]) -> None:
    first = Driven(tiny, trials=5)
    first.begin(2)
    asked = [first.ask("add", rank=15), first.ask("clone", 0, rate=3e-3)]
    first.report(0, 10)
    asked.append(first.ask("stop", 0))
    first.begin(9)
    first.report(0, 20)
    again = Driven(tiny, trials=5, before=asked, known=len(first.begun))
    assert again.search.wanted == 7
    later = again.ask("add", rank=16)
    again.begin(9)
    assert again.begun == [*first.begun, later.values]
    assert later.number == 7, "a trial that is added while the search catches up has no other's number"
    assert [trial.added for trial in again.search.trials[:7]] == [trial.added for trial in first.search.trials]
    assert [again.report(0, step) for step in (10, 20)] == [False, True]
    assert not again.report(1, 20)


def test_what_was_refused_or_not_answered_is_not_done(tiny: dict[str, Any]) -> None:
    first = Driven(tiny)
    asked = [first.ask("add", rank=0), SteeringRequest(does="add", values={RANK: 15})]
    assert Driven(tiny, before=asked).search.wanted == 3


def test_added_trials_begin_also_if_the_search_is_now_smaller(tiny: dict[str, Any]) -> None:
    first = Driven(tiny, trials=5)
    first.begin(5)
    asked = [first.ask("add", rank=15)]
    smaller = Driven(tiny, trials=2, before=asked, known=6)
    assert len(smaller.begin(9)) == 3
    assert smaller.begun[-1] == {RATE: 2e-4, RANK: 15}
    assert smaller.search.trials[2].added == "added by hand"
    assert smaller.ask("add", rank=16).number == 3


# Searchers


def test_a_grid_does_not_try_again_what_was_added(tiny: dict[str, Any]) -> None:
    space = {RATE: [1e-4, 1e-3], RANK: [4, 8]}
    grid = InOrder(all_settings(dimensions_of(space)))
    driven = Driven(tiny, space, trials=4, searcher=grid)
    driven.begin(1)
    driven.ask("add", rate=1e-3, rank=4)
    assert len(driven.begin(9)) == 3
    assert len({repr(values) for values in driven.begun}) == 4


def tpe(driven_space: dict[str, Any], startup: int = 1) -> TpeSearch:
    return TpeSearch(TpeSpec(startup_trials=startup), 0, dimensions_of(driven_space), ["held_out_loss"], {})


def test_tpe_learns_from_an_added_trial_of_its_space_and_ignores_others(tiny: dict[str, Any]) -> None:
    space = {RATE: {"loguniform": [1e-5, 1e-3]}, RANK: {"int": [4, 16]}}
    searcher = tpe(space)
    driven = Driven(tiny, space, searcher=searcher)
    driven.begin()
    inside, outside = driven.ask("add", rate=5e-4), driven.ask("add", rate=0.5)
    driven.search.searcher = "tpe"
    assert f"tpe does not learn from it, because {RATE} is outside of tune.space" in str(
        driven.ask("add", rate=0.7).answer
    )
    driven.begin(2)
    assert driven.begun[1:] == [inside.values, outside.values]
    for number in range(3):
        driven.report(number, 10, loss=number + 2.0)
        driven.report(number, 50, loss=number + 1.0)
    known = searcher._study.get_trials(deepcopy=False)
    assert [(trial.params[RATE], trial.values) for trial in known[1:]] == [(5e-4, [2.0])]
    assert driven.begin(2), "and TPE goes on"


def test_a_price_counts_added_trials(tiny: dict[str, Any]) -> None:
    driven = Driven(tiny, trials=3)
    priced = UntilGainIsSmall(driven.inner, 1e-9, "held_out_loss", driven.search)
    driven.searcher = SteeredSearcher(priced, 3, driven.steering)
    driven.begin(1)
    driven.ask("add", rank=15)
    driven.begin(9)
    for number in range(4):
        driven.report(number, 50)
    assert driven.searcher.suggest("x") == Searcher.FINISHED


def test_a_longer_trial_is_not_ended_by_asha_for_its_length(tiny: dict[str, Any]) -> None:
    from workflows.search.schedulers import Asha

    asha = Asha(10, max_t=30, reduction_factor=3)
    asha.set_search_properties("held_out_loss", "min")

    class Of:
        trial_id = "a"

    asha.on_trial_add(None, Of())
    decisions = [asha.on_trial_result(None, Of(), {"step": step, "held_out_loss": 1.0}) for step in (10, 30, 40, 90)]
    assert decisions == [ray.tune.schedulers.TrialScheduler.CONTINUE] * 4


# Files


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def said(words: str) -> None:
    """The command prints this to stderr."""


def test_the_driver_answers_several_commands_at_once(driven: Driven, store: Store) -> None:
    driven.begin(2)
    answers: list[SteeringRequest] = []

    def command(rank: int) -> None:
        requests = [SteeringRequest(does="add", values={RANK: rank}), SteeringRequest(does="stop", trial=rank % 2)]
        answers.extend(ask(store, "key", requests, said))

    with store.lock("tune", "key", said), Listener(store, "key", driven.steering.decide):
        threads = [threading.Thread(target=command, args=[rank]) for rank in (14, 15)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert sorted(request.number for request in answers if request.does == "add") == [2, 3]
    assert not any(request.is_refused for request in answers)
    kept = read_requests(store, "key")
    assert {request.name for request in kept} == {request.name for request in answers}
    assert all(request.answer for request in kept)


def test_a_request_is_decided_once_also_if_its_answer_cannot_be_written(
    driven: Driven, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener(store, "key", driven.steering.decide)
    request = SteeringRequest(does="add", values={RANK: 15})
    store.write_json(store.path("tune", "key", "requests", f"{request.name}.json"), request.to_json())
    with monkeypatch.context() as patched:
        patched.setattr(store, "write_json", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        listener.look()
    listener.look()
    assert driven.search.wanted == 4
    assert [request.number for request in read_requests(store, "key")] == [0]


def test_a_look_at_the_store_is_one_request_and_reads_no_request_twice(
    driven: Driven, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (14, 15):
        request = SteeringRequest(does="add", values={RANK: rank})
        store.write_json(store.path("tune", "key", "requests", f"{request.name}.json"), request.to_json())
    calls: list[str] = []
    for name in ("entries", "_read", "write_file"):
        original = getattr(store, name)
        monkeypatch.setattr(store, name, lambda *given, name=name, call=original: calls.append(name) or call(*given))
    listener = Listener(store, "key", driven.steering.decide)
    listener.look()
    assert sorted(calls) == ["_read", "_read", "entries", "write_file", "write_file"]
    calls.clear()
    for _ in range(5):
        listener.look()
    assert calls == ["entries"] * 5


def test_without_a_driver_nothing_is_asked(store: Store) -> None:
    from models.errors import RayconteurError

    with pytest.raises(RayconteurError, match="no run is working on search key"):
        ask(store, "key", [SteeringRequest(does="stop", trial=0)], said)
    assert read_requests(store, "key") == []


def test_a_driver_that_ends_without_an_answer_leaves_no_request(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.errors import RayconteurError

    looks = iter([True, True, False])
    monkeypatch.setattr(store, "is_locked", lambda *_: next(looks))
    with pytest.raises(RayconteurError, match="ended without an answer"):
        ask(store, "key", [SteeringRequest(does="stop", trial=0)], said)
    assert read_requests(store, "key") == []


def test_a_search_that_ends_meanwhile_refuses(driven: Driven, store: Store) -> None:
    with store.lock("tune", "key", said), Listener(store, "key", driven.steering.decide):
        driven.steering.close("the search has ended")
        [answer] = ask(store, "key", [SteeringRequest(does="add", values={RANK: 15})], said)
    assert (answer.answer, answer.is_refused) == ("the search has ended", True)


def test_a_file_that_is_no_request_is_left_alone(driven: Driven, store: Store) -> None:
    for name, text in (("a", "{"), ("b", '{"does": "dance"}'), ("c", "[]")):
        store.write_file(store.path("tune", "key", "requests", f"{name}.json"), text.encode())
    Listener(store, "key", driven.steering.decide).look()
    assert read_requests(store, "key") == []


def test_a_wider_search_takes_over_what_was_done(driven: Driven, store: Store) -> None:
    for does, values in (("add", {RANK: 15}), ("add", {RANK: 0})):
        request = SteeringRequest(does=does, values=values)
        store.write_json(store.path("tune", "key", "requests", f"{request.name}.json"), request.to_json())
    Listener(store, "key", driven.steering.decide).look()
    take_over(store, "wider", "key")
    assert [request.values for request in read_requests(store, "wider")] == [{RATE: 2e-4, RANK: 15}]


def test_a_lock_is_seen_by_others(store: Store, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.lease.SETTLE_S", 0.0)
    for each in (store, Store(s3_uri)):
        assert not each.is_locked("tune", "key")
        with each.lock("tune", "key", said):
            assert each.is_locked("tune", "key")
        assert not each.is_locked("tune", "key")
    away = Store(s3_uri)
    lease = Lease(away.filesystem, f"{away.root}/tune/key.lease", said)
    lease._renew()
    monkeypatch.setattr("workflows.lease.DEAD_AFTER_S", -1.0)
    assert not lease.is_held(), "nobody renews it"


def test_requests_on_an_object_store(driven: Driven, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.lease.SETTLE_S", 0.0)
    monkeypatch.setattr("workflows.search.steering_requests._SECONDS_AWAY", 0.1)
    store = Store(s3_uri)
    with store.lock("tune", "key", said), Listener(store, "key", driven.steering.decide):
        [answer] = ask(Store(s3_uri), "key", [SteeringRequest(does="add", values={RANK: 15})], said)
    assert answer.number == 0
    assert [request.number for request in read_requests(store, "key")] == [0]
