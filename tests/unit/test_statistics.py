"""Comparisons of two models: the test, its interval, and what a gate decides of them."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from models.statistics.comparison import compare
from models.statistics.gate import decide, holm, is_no_worse
from models.statistics.interval import interval
from models.statistics.scores import UnusableScores


def scores(only_first, only_second, same, alike=1.0):
    """Right and wrong of both models, from the numbers of items that differ and of those that do not."""
    first = [1.0] * only_first + [0.0] * only_second + [alike] * same
    second = [0.0] * only_first + [1.0] * only_second + [alike] * same
    return np.array(first), np.array(second)


def conversations(draw, count, gain=0.0, size=6):
    """Real-valued scores whose differences are alike within each of `count` clusters."""
    clusters = np.repeat(np.arange(count), size)
    first = draw.normal(size=count * size)
    second = first + gain + draw.normal(size=count)[clusters] + 0.3 * draw.normal(size=count * size)
    return first, second, clusters


def flat(comparison):
    return [comparison.difference, comparison.low, comparison.high, comparison.p_value, comparison.smallest]


@pytest.mark.parametrize(("only_first", "only_second", "same"), [
    (0, 6, 10), (3, 15, 200), (40, 60, 100), (60, 40, 100), (5, 5, 5), (1, 0, 30), (0, 7, 0),
])  # fmt: skip
def test_right_or_wrong_is_mcnemars_exact_test(only_first, only_second, same):
    found = compare(*scores(only_first, only_second, same))
    assert found.p_value == pytest.approx(binomtest(only_first, only_first + only_second).pvalue, rel=1e-12)
    assert "McNemar" in found.method


# Pull request 3868 of EleutherAI/lm-evaluation-harness, n = 220: p = 0.080 of its unpaired z test, p = 0.008 of the
# paired one. It publishes no counts; these have both p-values (`python benchmarks/verdict.py` finds them).
@pytest.mark.parametrize(("both", "only_first", "only_second"), [(110, 12, 30), (50, 10, 27), (205, 0, 8), (7, 0, 8)])
def test_220_items_of_a_published_case_show_the_difference(both, only_first, only_second):
    first, second = scores(only_first, only_second, 220 - only_first - only_second)
    first[only_first + only_second + both :] = second[only_first + only_second + both :] = 0
    unpaired = abs(second.mean() - first.mean()) / math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 220)
    assert math.erfc(unpaired / math.sqrt(2)) == pytest.approx(0.080, abs=5e-4)
    found = compare(first, second)
    assert round(found.p_value, 3) == 0.008
    assert found.low > 0
    assert found.difference == pytest.approx((only_second - only_first) / 220)


def test_few_clusters_are_tested_with_all_patterns_of_signs():
    differences = np.array([3.0, 1.0, 4.0, -1.0, 5.0, 9.0, 2.0])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1)
    expected = np.mean(np.abs(differences @ signs) >= abs(differences.sum()))
    assert compare(np.zeros(7), differences).p_value == pytest.approx(expected)


def test_drawn_patterns_agree_with_all_of_them():
    # Fourteen clusters are drawn; the sum of all, by hand.
    differences = np.random.default_rng(3).normal(0.5, 1, 14)
    signs = 1 - 2 * (np.arange(2**14)[:, None] >> np.arange(14) & 1)
    expected = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    found = compare(np.zeros(14), differences)
    assert "patterns" in found.method
    assert found.p_value == pytest.approx(expected, abs=4 * math.sqrt(expected / 9_999))


@pytest.mark.parametrize(("count", "spread"), [(8, 0.0), (20, 0.0), (60, 0.0), (20, 1.0)])
def test_the_interval_covers_the_true_difference(count, spread):
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        first, second, clusters = conversations(draw, count, gain=0.4, size=3)
        found = compare(first, second, clusters, np.exp(spread * draw.normal(size=len(first))))
        covered += found.low <= 0.4 <= found.high
    assert 0.925 <= covered / 400 <= 0.975


def test_the_interval_of_two_to_five_clusters_covers():
    draw = np.random.default_rng(14)
    covered = 0
    for number in range(800):
        clusters = np.repeat(np.arange(2 + number % 4), 3)
        size = draw.gamma(1, 1, len(clusters))
        gains = size * (0.2 + draw.normal(0, 0.2, 5)[clusters] + 0.3 * draw.normal(size=len(clusters)))
        found = compare(size, size + gains, clusters, np.exp(draw.normal(size=len(clusters))))
        covered += found.low <= 0.2 <= found.high
    assert 0.925 <= covered / 800 <= 0.985


def test_the_interval_covers_when_few_items_differ():
    draw = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        kinds = draw.choice(3, 40, p=[0.01, 0.04, 0.95])
        found = compare((kinds == 0) * 1.0, (kinds == 1) * 1.0)
        covered += found.low <= 0.03 <= found.high
    assert covered / 400 >= 0.95


def test_interval_and_p_value_never_contradict_each_other():
    draw = np.random.default_rng(3)
    decided = 0
    for count in range(2, 42):
        for differ in (0.3, 0.9):
            kinds = draw.choice(3, count, p=[differ / 4, 3 * differ / 4, 1 - differ])
            clusters = draw.integers(0, count, count) if count % 2 else None
            found = compare((kinds == 0) * 1.0, (kinds == 1) * 1.0, clusters)
            assert (found.p_value <= 0.05) == (found.low > 0 or found.high < 0)
            assert found.low <= found.difference <= found.high
            decided += found.p_value <= 0.05
    assert 10 < decided < 70


# Exact p-values so near 0.05 that the interval's drawn patterns are on its other side.
@pytest.mark.parametrize(("only_first", "only_second", "same"), [
    (6, 16, 10), (8, 19, 30), (10, 22, 0), (4, 13, 0), (12, 25, 30), (18, 33, 30), (33, 18, 30),
])  # fmt: skip
def test_next_to_the_limit_the_p_value_decides(only_first, only_second, same):
    found = compare(*scores(only_first, only_second, same))
    assert 0.046 < found.p_value < 0.053
    assert (found.p_value <= 0.05) == (found.low > 0 or found.high < 0)


def test_what_is_alike_in_a_cluster_widens_the_interval():
    first, second, clusters = conversations(np.random.default_rng(4), 30)
    alone, together = compare(first, second), compare(first, second, clusters)
    assert together.high - together.low > 1.8 * (alone.high - alone.low)
    assert together.smallest > 1.8 * alone.smallest
    assert (alone.items, alone.clusters, together.items, together.clusters) == (180, 180, 180, 30)


def test_items_said_twice_show_no_more_than_once():
    first, second = scores(4, 14, 22)
    once, twice = compare(first, second), compare(np.tile(first, 2), np.tile(second, 2), [*range(40), *range(40)])
    assert twice.p_value == once.p_value
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert compare(np.tile(first, 2), np.tile(second, 2)).p_value < once.p_value / 5


def test_weights_are_of_the_mean():
    draw = np.random.default_rng(5)
    tokens, first, second = draw.integers(1, 50, 30), draw.gamma(2, 1, 30), draw.gamma(2, 1, 30)
    found = compare(first, second, weights=tokens)
    assert found.first == pytest.approx((first * tokens).sum() / tokens.sum())
    assert found.difference == pytest.approx(((second - first) * tokens).sum() / tokens.sum())
    # Tokens one by one, in the clusters of their items, and another unit of the weights: all the same.
    repeated = compare(np.repeat(first, tokens), np.repeat(second, tokens), np.repeat(np.arange(30), tokens))
    assert flat(repeated) == pytest.approx(flat(found))
    assert flat(compare(first, second, weights=tokens / 7)) == pytest.approx(flat(found))


def test_an_item_without_weight_counts_for_nothing():
    first, second = scores(2, 9, 9)
    with_it = compare([*first, 1], [*second, 0], [*range(21)], [*[1] * 20, 0])
    assert (with_it.items, with_it.clusters) == (20, 20)
    assert flat(with_it) == flat(compare(first, second))


def test_the_order_of_items_and_names_of_clusters_do_not_matter():
    draw = np.random.default_rng(6)
    first, second, clusters = conversations(draw, 25, gain=0.3)
    order = draw.permutation(len(first))
    names = [f"talk {number * 7 % 25}" for number in clusters[order]]
    found = compare(first, second, clusters)
    assert flat(compare(first[order], second[order], names)) == pytest.approx(flat(found))
    assert flat(compare(first[order], second[order])) == pytest.approx(flat(compare(first, second)))


def test_the_models_in_the_other_order_have_the_opposite_difference():
    first, second, clusters = conversations(np.random.default_rng(7), 25, gain=0.3)
    found, other = compare(first, second, clusters), compare(second, first, clusters)
    assert (other.difference, other.low, other.high) == pytest.approx((-found.difference, -found.high, -found.low))
    assert (other.p_value, other.smallest) == pytest.approx((found.p_value, found.smallest))
    turned = compare(second, first, clusters, lower_is_better=True)
    assert (turned.gain, *turned.gain_interval) == pytest.approx((found.gain, *found.gain_interval))


def test_the_scale_of_the_scores_does_not_matter():
    first, second, clusters = conversations(np.random.default_rng(8), 25, gain=0.3)
    found, other = compare(first, second, clusters), compare(1e-6 * first, 1e-6 * second, clusters)
    assert other.p_value == found.p_value
    assert other.low == pytest.approx(1e-6 * found.low)


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_without_any_item_that_differs_few_items_promise_little(alike):
    few, many = (compare(*scores(0, 0, count, alike)) for count in (10, 1000))
    assert few.p_value == many.p_value == 1
    assert few.low == -few.high
    assert few.high > 0.2 > 0.01 > many.high > 0
    assert few.smallest > 0.5 > 0.02 > many.smallest > 0
    assert not is_no_worse(few, 0.02)
    assert is_no_worse(many, 0.02)


def test_equal_real_values_leave_room_for_others():
    losses = np.linspace(1, 3, 10)
    found = compare(losses, losses)
    assert found.p_value == 1
    assert -2 < found.low < -0.1
    assert (compare([0.5] * 10, [0.5] * 10).low, compare([0.5] * 10, [0.5] * 10).high) == (0, 0)


def test_rounding_is_no_difference():
    first, second = np.full(20, 0.3) - 0.1, np.full(20, 0.2)
    assert (first != second).all()
    found = compare(first, second)
    assert (found.p_value, found.difference) == (1, 0)


def test_a_difference_that_all_items_share_is_shown():
    found = compare(np.arange(12.0), np.arange(12.0) + 0.5)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))
    assert found.p_value == pytest.approx(2 / 2**12)


def test_one_cluster_shows_nothing():
    found = compare([0.0] * 50, [1.0] * 50, ["talk"] * 50)
    assert flat(found) == [1, -math.inf, math.inf, 1, math.inf]
    assert not is_no_worse(found, 0.5)


@pytest.mark.parametrize("count", range(2, 11))
def test_few_clusters_have_an_interval_and_five_decide_nothing(count):
    found = compare(np.zeros(count), 1 + 0.1 * np.arange(count))
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)
    assert found.low < found.difference < found.high
    assert found.p_value == pytest.approx(2 / 2**count)
    assert (found.low > 0) == (count >= 6) == math.isfinite(found.smallest)


def test_a_difference_as_large_as_the_smallest_is_mostly_found():
    draw = np.random.default_rng(9)
    size = np.median([compare(*conversations(draw, 20)).smallest for _ in range(20)])
    for gain, least, most in ((size, 0.7, 0.9), (size / 2, 0.1, 0.45)):
        found = [compare(*conversations(draw, 20, gain)).p_value <= 0.05 for _ in range(300)]
        assert least <= np.mean(found) <= most


def test_more_confidence_makes_a_wider_interval():
    values = conversations(np.random.default_rng(10), 40)
    widths = [found.high - found.low for found in (compare(*values, confidence=level) for level in (0.8, 0.95, 0.99))]
    assert widths[0] < 0.75 * widths[1] < 0.75 * widths[2]
    first, second = scores(0, 6, 30)
    assert compare(first, second).low > 0
    assert compare(first, second, confidence=0.99).low < 0


@pytest.mark.parametrize(("settings", "message"), [
    ({"first": [], "second": []}, r"^first: no item; "),
    ({"second": [1.0, 0.0]}, r"^second: 2 items, and 3 scores; give one for each item"),
    ({"second": [1.0, math.nan, 0.0]}, r"^second: item 1 \(from 0\) is nan; a score must be a finite number"),
    ({"first": [math.inf, 1.0, 0.0]}, r"^first: item 0 \(from 0\) is inf; "),
    ({"first": ["good", "bad", "good"]}, r"^first: not a list of numbers; "),
    ({"first": [[1.0], [0.0], [1.0]]}, r"^first: 2 dimensions; "),
    ({"clusters": ["a", "b"]}, r"^clusters: 2 items, and 3 scores; "),
    ({"clusters": ["a", None, "b"]}, r"^clusters: item 1 \(from 0\) has no label; "),
    ({"clusters": [["a"], ["b"], ["c"]]}, r"^clusters: a label is a list or mapping; "),
    ({"weights": [1.0]}, r"^weights: 1 items, and 3 scores; "),
    ({"weights": [1.0, -2.0, 1.0]}, r"^weights: item 1 \(from 0\) has -2\.0; a weight must be at least 0"),
    ({"weights": [0.0, 0.0, 0.0]}, r"^weights: all are 0; "),
    ({"confidence": 95}, r"^confidence: 95; it must be from 0\.5 to 0\.999"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(settings, message):
    with pytest.raises(UnusableScores, match=message):
        compare(**{"first": [1.0, 0.0, 1.0], "second": [1.0, 1.0, 1.0]} | settings)


def test_the_interval_of_right_and_wrong_is_wilsons():
    draw = np.random.default_rng(11)
    found = interval((draw.random(2000) < 0.8) * 1.0)
    wilson = binomtest(round(2000 * found.mean), 2000).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx(tuple(wilson), abs=2e-5)
    assert (found.items, found.clusters) == (2000, 2000)


def test_the_interval_of_one_model_has_room_where_all_items_are_right():
    found = interval(np.ones(20))
    assert (found.mean, found.high) == (1, 1)
    assert 0.75 < found.low < 0.9
    # Twenty items of four conversations say as much as four.
    assert interval(np.ones(20), np.arange(20) % 4).low == pytest.approx(interval(np.ones(4)).low)
    assert (interval(np.ones(20), [0] * 20).low, interval(np.ones(20), [0] * 20).high) == (0, 1)


@pytest.mark.parametrize("right", [True, False])
def test_the_interval_of_one_model_covers_its_mean(right):
    draw = np.random.default_rng(12)
    clusters = np.repeat(np.arange(25), 4)
    covered = 0
    for _ in range(400):
        own = draw.beta(3, 1, 25)[clusters]
        values = (draw.random(100) < own) * 1.0 if right else own + 0.1 * draw.normal(size=100)
        found = interval(values, clusters)
        covered += found.low <= 0.75 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_the_interval_of_few_clusters_is_finite_and_of_one_is_not():
    assert math.isfinite(interval([1.0, 2.5, 3.0]).low)
    assert (interval([1.5]).low, interval([1.5]).high) == (-math.inf, math.inf)


def test_holm_as_worked_out_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, and never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1, 1]
    assert holm([]).tolist() == []
    for wrong in ([0.1, 1.2], [math.nan], [[0.1]]):
        with pytest.raises(UnusableScores, match=r"^p_values: "):
            holm(wrong)


def comparisons(*counts):
    return [compare(*scores(only_first, only_second, 30)) for only_first, only_second in counts]


def test_a_model_is_better_if_it_is_in_one_suite_and_worse_in_none():
    equal, better, worse = (5, 5), (2, 20), (20, 2)
    assert decide(comparisons(equal, better, equal)).better == (False, True, False)
    assert decide(comparisons(equal, better)).passed
    assert not decide(comparisons(equal, equal)).passed
    found = decide(comparisons(better, worse))
    assert (found.better, found.worse, found.passed) == ((True, False), (False, True), False)


def test_of_many_suites_one_must_show_more():
    alone, among = decide(comparisons((3, 12))), decide(comparisons((3, 12), *[(5, 5)] * 9))
    assert alone.passed
    assert not among.passed
    assert among.adjusted[0] == pytest.approx(10 * alone.adjusted[0])


def test_suites_are_decided_at_one_confidence():
    with pytest.raises(UnusableScores, match=r"^comparisons: 2 confidences; "):
        decide([compare(*scores(1, 5, 9)), compare(*scores(1, 5, 9), confidence=0.9)])
    with pytest.raises(UnusableScores, match=r"^comparisons: 0 confidences; "):
        decide([])


def test_no_worse_is_shown_by_the_whole_interval():
    found = compare(*scores(20, 20, 960))
    assert -0.02 < found.low < -0.01
    assert is_no_worse(found, 0.02)
    assert not is_no_worse(found, 0.01)
    # Too few items: no evidence of a loss is no evidence of none.
    assert not is_no_worse(compare(*scores(2, 2, 16)), 0.02)
    with pytest.raises(UnusableScores, match=r"^margin: -0\.1; it must be at least 0"):
        is_no_worse(found, -0.1)


def test_of_losses_less_is_better():
    draw = np.random.default_rng(13)
    first = draw.gamma(2, 1, 40)
    found = compare(first, first - 0.2 + 0.1 * draw.normal(size=40), lower_is_better=True)
    assert found.high < 0 < found.gain
    assert decide([found]).passed
    assert is_no_worse(found, 0)
    assert not is_no_worse(compare(first, first + 0.2, lower_is_better=True), 0.1)
