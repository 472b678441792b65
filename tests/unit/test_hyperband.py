"""What the scheduler hyperband decides from reports, also with tpe; and what further trials would gain."""

import math
import random

import pytest
from ray.tune.schedulers import TrialScheduler

from models.training.report import Report
from workflows.search.brackets import Brackets, Rungs
from workflows.search.gain import Gain
from workflows.search.hyperband import Hyperband
from workflows.search.priced import UntilGainIsSmall
from workflows.search.records import Search
from workflows.search.tpe import TpeSearch
from workflows.search.trial import RESULT, TOGETHER, TrialEvent, values_of
from workflows.search.tuner import InOrder
from workflows.spec import TpeSpec
from workflows.spec.space import dimensions_of

ONE = dimensions_of({"train.learning_rate": {"loguniform": [1e-5, 1e-3]}})
draw = random.Random(0)
STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE
CHECKPOINT, WHOLE = 10, 90


def curve(quality, late=False):
    """The losses of a training at each checkpoint; one that improves late crosses those that improve at once."""
    tokens = range(CHECKPOINT, WHOLE + 1, CHECKPOINT)
    return {t: 3.0 - 2.0 * quality * (t / WHOLE) ** (3.0 if late else 0.5) for t in tokens}


def train(brackets, curves):
    """The tokens that each trial reads, one trial after another."""
    read = []
    for number, losses in enumerate(curves):
        for tokens, loss in losses.items():
            if not brackets.goes_on(number, tokens, loss):
                break
        read.append(tokens)
    return read


def test_the_best_third_continues_past_each_rung():
    qualities = [0.5, 0.4, 0.3, 0.9, 0.2, 0.1, 0.8, 0.7, 0.95]
    read = train(Brackets(CHECKPOINT, 3.0, 1), [curve(quality) for quality in qualities])
    assert read[qualities.index(0.95)] == WHOLE
    assert read[qualities.index(0.1)] == CHECKPOINT
    assert set(read) <= {10, 30, 90}
    assert read.count(CHECKPOINT) > len(read) / 2


def test_a_report_counts_at_the_first_checkpoint_at_or_after_a_rung():
    rungs = Rungs(10, 2.0)
    assert [*rungs.reached(0, 9, 5.0)] == []
    assert [*rungs.reached(0, 12, 4.0)] == [0]
    assert [*rungs.reached(0, 19, 3.0)] == []
    assert [*rungs.reached(0, 85, 2.0)] == [1, 2, 3]
    assert rungs.values == [{0: 4.0}, {0: 2.0}, {0: 2.0}, {0: 2.0}]


def test_different_batch_sizes_are_compared_after_the_same_tokens():
    """By steps, the trial with large batches would win at each rung."""
    small = {t: 3.0 - t / 100 for t in range(5, 91, 5)}
    large = {t: 3.1 - t / 100 for t in range(20, 91, 20)}
    assert train(Brackets(20, 3.0, 1), [small, large]) == [90, 20]


def test_brackets_protect_trials_that_improve_late():
    compared_last = Brackets(CHECKPOINT, 3.0, 3)._order.index(2)
    curves = [curve(1.0, late=True) if number == compared_last else curve(0.3) for number in range(13)]
    assert train(Brackets(CHECKPOINT, 3.0, 1), curves)[compared_last] == CHECKPOINT
    assert train(Brackets(CHECKPOINT, 3.0, 3), curves)[compared_last] == WHOLE


def test_brackets_take_turns_in_hyperbands_shares():
    order = Brackets(10, 3.0, 3)._order
    assert sorted(order) == [0] * 9 + [1] * 3 + [2]
    assert order[:3] != [0, 0, 0]
    assert len(Brackets(10, 100.0, 10)._order) < 10_000


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_the_worst_and_stops_at_the_first_rung(broken):
    brackets = Brackets(10, 3.0, 1)
    assert brackets.goes_on(0, 5, broken)
    assert not brackets.goes_on(0, 10, broken)
    assert brackets.goes_on(1, 10, 5.0)


def test_decisions_depend_on_the_reports_alone():
    """A resumed search replays known reports to new brackets, which then decide as the old ones."""
    reports = [(draw.randrange(12), draw.randrange(1, 91), draw.uniform(1, 3)) for _ in range(300)]
    whole, before, resumed = (Brackets(10, 3.0, 2) for _ in range(3))
    decided = [whole.goes_on(*report) for report in reports]
    assert [before.goes_on(*report) for report in reports[:150]] == decided[:150]
    assert [resumed.goes_on(*report) for report in reports] == decided


def result(step, loss, *, number=0, failed=""):
    report = None if failed else Report(step, WHOLE // 10, {"held_out_loss": loss, "num_tokens": step * 10.0})
    event = TrialEvent("key", {}, None, report, failed=failed)
    return {"step": step, "held_out_loss": loss, RESULT: event}


class OneTrial:
    def __init__(self, number):
        self.trial_id = self.name = str(number)

    def __str__(self):
        return self.name


def test_the_scheduler_reads_tokens_from_reports():
    scheduler = Hyperband(Brackets(30, 3.0, 1), "held_out_loss")
    assert scheduler.set_search_properties("held_out_loss", "min")  # Tune refuses a scheduler that has its own
    assert scheduler.on_trial_result(None, OneTrial(0), result(2, 9.0)) == CONTINUE
    assert scheduler.on_trial_result(None, OneTrial(0), result(3, 2.0)) == CONTINUE
    assert scheduler.on_trial_result(None, OneTrial(1), result(3, 3.0)) == STOP
    scheduler.on_trial_complete(None, OneTrial(2), result(4, math.inf, failed="no such layer"))
    scheduler.on_trial_complete(None, OneTrial(3), {})
    accuracy = Hyperband(Brackets(30, 3.0, 1), "held_out_accuracy")
    for number, (value, decision) in enumerate([(0.5, CONTINUE), (0.4, STOP), (0.6, CONTINUE)]):
        reported = result(3, 0.0)
        reported[RESULT].report.figures["held_out_accuracy"] = value
        assert accuracy.on_trial_result(None, OneTrial(number), reported) == decision


def best_found(searcher, scheduler, trials):
    """A search whose trials report the curve of their learning rate; returns their settings and tokens."""
    rates, read = [], 0
    for number in range(trials):
        values = values_of(searcher.suggest(str(number)))
        rates.append(math.log10(values["train.learning_rate"]))
        losses = curve(1.0 - abs(rates[-1] + 4.2))
        for index, loss in enumerate(losses.values()):
            step, read = index + 1, read + CHECKPOINT
            is_last = step == len(losses)
            decision = STOP if is_last else scheduler.on_trial_result(None, OneTrial(number), result(step, loss))
            if decision == STOP:
                scheduler.on_trial_complete(None, OneTrial(number), result(step, loss))
                searcher.on_trial_complete(str(number), result(step, loss))
                break
            searcher.on_trial_result(str(number), result(step, loss))
    return rates, read


def test_tpe_with_hyperband_goes_where_trials_are_good_and_repeats_itself():
    def search():
        searcher = TpeSearch(TpeSpec(startup_trials=8), 0, ONE, ["held_out_loss"], {})
        return best_found(searcher, Hyperband(Brackets(30, 3.0, 1), "held_out_loss"), 40)

    rates, read = search()
    assert sum(abs(rate + 4.2) < 0.2 for rate in rates[20:]) >= 8
    assert read < 0.7 * 40 * WHOLE
    assert search() == (rates, read)


def trials_of(gain, losses, tokens=WHOLE):
    for number, loss in enumerate(losses):
        gain.report(number, tokens, WHOLE, loss)
        gain.end(number)
    return gain.expected()


def test_nothing_is_expected_before_ten_trials():
    assert trials_of(Gain(), [2.0] * 9) is None
    assert trials_of(Gain(), [math.nan] * 30) is None


@pytest.mark.parametrize(("loss", "least", "most"), [
    (lambda: math.log(draw.random()), 0.9, 1.4),  # the distance of the best two of n is 1
    (lambda: 31 * draw.random(), 1.0, 3.5),  # it is 31 / (n + 1); where losses have a bound, the estimate is cautious
])  # fmt: skip
def test_the_expected_gain_is_that_of_random_draws(loss, least, most):
    """Of n exchangeable trials, the last is the best with probability 1/n; here n is the later half of 60 trials."""
    found = [trials_of(Gain(), [loss() for _ in range(60)]) for _ in range(400)]
    assert least < 31 * sum(found) / len(found) < most


def test_trials_that_were_stopped_early_cost_less():
    losses = [2.0 + (number * 7 % 20) / 100 for number in range(20)]
    assert trials_of(Gain(), losses, tokens=WHOLE / 3) == pytest.approx(3 * trials_of(Gain(), losses))


def test_a_search_ends_when_further_trials_gain_too_little():
    search = Search("p", "k", ["held_out_loss"], {}, "random", "none", None)
    settings = [{"train.seed": number} for number in range(500)]
    searcher = UntilGainIsSmall(InOrder(settings), 0.001, "held_out_loss", search)
    number = 0
    while isinstance(suggested := searcher.suggest(str(number)), dict):
        assert suggested[TOGETHER] == {"train.seed": number}
        searcher.on_trial_complete(str(number), result(9, draw.random()))
        number += 1
    assert 20 < number < 200
    assert search.expected_gain < 0.001 == search.min_gain


def test_trials_that_break_a_constraint_gain_nothing_and_cost_their_tokens():
    """As trials with bad values do, whose tokens count too."""

    def expected(constraints):
        search = Search("p", "k", ["held_out_loss"], {}, "random", "none", None, constraints=constraints)
        searcher = UntilGainIsSmall(
            InOrder([{"train.seed": number} for number in range(91)]), 0.0, "held_out_loss", search
        )
        for number in range(90):
            searcher.suggest(str(number))
            searcher.on_trial_complete(str(number), result(9, 2.0 + (number % 3) + number / 1000))
        searcher.suggest("last")
        return search.expected_gain

    assert expected(["held_out_loss <= 2.5"]) == pytest.approx(expected([]))
