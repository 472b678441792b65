"""How far the statistics of a comparison can be trusted: simulated models whose true difference is known.

    OMP_NUM_THREADS=1 nice python benchmarks/verdict.py

Measures how often equal models pass as better, how often intervals cover the true difference (ours beside other
methods), McNemar's test on the published case of n = 220, the power of paired against unpaired tests, the power at
`smallest`, and the time of a large comparison. Prints Markdown tables, and one JSON object as the last line. About
15 minutes on two cores; `--draws 500` for a quick look.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from models.statistics.comparison import Comparison, compare
from models.statistics.gate import decide
from models.statistics.scores import ClusterSums, cluster_sums

SEED = 24
ALPHA = 0.05
SUITES = (20, 100, 300, 1000)
CLUSTERS = (20, 50, 200, 1000)
RESAMPLES = 999
# With more clusters, scipy's bootstraps take most of the time and differ little from the others.
MAX_BOOTSTRAPPED = 200
CHUNK = 250


class Items(NamedTuple):
    """The scores of two models on the same items."""

    first: Any
    second: Any
    clusters: Any
    weights: Any
    truth: float


# Sizes of clusters, by their number.
def single(draw: Any, count: int) -> Any:
    return np.ones(count, int)


def conversations(draw: Any, count: int) -> Any:
    return draw.geometric(1 / 5, count)


def unequal(draw: Any, count: int) -> Any:
    return np.where(np.arange(count) < max(1, count // 20), 30, 3)


def right_wrong(draw: Any, sizes: Any, differ: float, gain: float) -> Items:
    """Right and wrong: a share `differ` of items differs, and `gain` more of them favour the second model.

    Of clusters of several items, a third favours the first model, and a third, chosen by itself, the second.
    """
    labels = np.repeat(np.arange(len(sizes)), sizes)
    alone = sizes.max() == 1
    favours = np.ones((2, len(labels))) if alone else 3.0 * (draw.random((2, len(sizes))) < 1 / 3)[:, labels]
    up, down = favours * np.array([[differ + gain], [differ - gain]]) / 2
    value = draw.random(len(labels))
    same = draw.random(len(labels)) < 0.6
    ups, downs = value < up, (value >= up) & (value < up + down)
    first = np.where(ups | downs, downs, same).astype(float)
    second = np.where(ups | downs, ups, same).astype(float)
    return Items(first, second, labels, None, gain)


def smooth(draw: Any, sizes: Any, gain: float) -> Items:
    """Real values with a normal difference, half of which a conversation shares; weights like numbers of tokens."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    weights = np.ceil(draw.lognormal(3, 0.8, len(labels)))
    first = draw.gamma(2, 1, len(labels))
    shared = draw.normal(size=len(sizes))[labels]
    return Items(first, first + gain + 0.3 * (shared + draw.normal(size=len(labels))), labels, weights, gain)


def skewed(draw: Any, sizes: Any, gain: float) -> Items:
    """Losses with token weights: the difference is in proportion to the loss, so few items have most of it."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    weights = np.ceil(draw.lognormal(3, 0.8, len(labels)))
    first = draw.gamma(1, 1, len(labels))
    factor = draw.normal(gain, 0.2, len(sizes))[labels] + draw.normal(0, 0.3, len(labels))
    return Items(first, first * (1 + factor), labels, weights, gain)


def very_skewed(draw: Any, sizes: Any, gain: float) -> Items:
    """Most items are a little better, and a few much worse: differences from a lognormal distribution."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rest = draw.lognormal(0, 1, len(labels)) * np.exp(draw.normal(0, 0.3, len(sizes)))[labels]
    return Items(np.zeros(len(labels)), gain + np.exp(0.545) - rest, labels, None, gain)


Maker = Callable[[Any, int], Items]


def maker(values: Callable[..., Items], sizes: Callable[..., Any], **settings: float) -> Maker:
    return partial(_make, values, sizes, settings)


def _make(
    values: Callable[..., Items], sizes: Callable[..., Any], settings: dict[str, float], draw: Any, n: int
) -> Any:
    return values(draw, sizes(draw, n), **settings)


EQUAL = {
    "right or wrong, independent": (maker(right_wrong, single, differ=0.2, gain=0), 1),
    "right or wrong, conversations": (maker(right_wrong, conversations, differ=0.2, gain=0), 5),
    "real values, conversations, weights": (maker(smooth, conversations, gain=0), 5),
    "skewed real values, conversations, weights": (maker(skewed, conversations, gain=0), 5),
    "equal in the mean alone: most a little better, a few much worse": (maker(very_skewed, single, gain=0), 1),
}
COVERAGE = {
    "right or wrong, 5 % differ, 3 points": maker(right_wrong, single, differ=0.05, gain=0.03),
    "right or wrong, 20 % differ, 5 points": maker(right_wrong, single, differ=0.2, gain=0.05),
    "right or wrong, 20 % differ, 5 points, conversations": maker(right_wrong, conversations, differ=0.2, gain=0.05),
    "right or wrong, very unequal clusters": maker(right_wrong, unequal, differ=0.2, gain=0.05),
    "real values, conversations, weights": maker(smooth, conversations, gain=0.1),
    "real values, very unequal clusters, weights": maker(smooth, unequal, gain=0.1),
    "skewed real values, conversations, weights": maker(skewed, conversations, gain=-0.1),
    "most a little better, a few much worse": maker(very_skewed, single, gain=0.5),
}


def compared(items: Items) -> Comparison:
    return compare(items.first, items.second, items.clusters, items.weights, confidence=1 - ALPHA)


def contradicts(low: float, high: float, p_value: float) -> bool:
    return (p_value <= ALPHA) != (low > 0 or high < 0)


# Equal models.
def equal_chunk(kind: str, chunk: int, draws: int) -> Any:
    """(draws, 3 + 2 S) of families of suites: passed, contradictions, unclustered pass; each suite better, worse."""
    make, per_cluster = EQUAL[kind]
    draw = np.random.default_rng([SEED, list(EQUAL).index(kind), chunk])
    rows = []
    for _ in range(draws):
        suites = [make(draw, size // per_cluster) for size in SUITES]
        found = [compared(items) for items in suites]
        shown = [(each.p_value <= ALPHA) * np.sign(each.gain) for each in found]
        wrong = sum(contradicts(each.low, each.high, each.p_value) for each in found)
        last = suites[-1]
        t_test = stats.ttest_1samp(last.second - last.first, 0)
        alone = t_test.pvalue <= ALPHA and t_test.statistic > 0
        rows.append([decide(found).passed, wrong, alone, *(s > 0 for s in shown), *(s < 0 for s in shown)])
    return np.array(rows, float)


def equal_models(pool: Any, draws: int) -> dict[str, Any]:
    heads = " | ".join(f"{size:,} items" for size in SUITES)
    print(f"\nEqual models, {draws:,} draws: share found better, in %\n")
    print(f"| scores | four suites together (`decide`) | {heads} | {SUITES[-1]:,} items, clusters ignored |")
    print("|---|---|" + "---|" * (len(SUITES) + 1))
    results = {}
    for kind in EQUAL:
        rows = np.concatenate([*chunks(pool, equal_chunk, kind, draws)])
        passed, _, alone, *shown = rows.mean(axis=0)
        better = shown[: len(SUITES)]
        print(
            f"| {kind} | {passed:.1%} | " + " | ".join(f"{each:.1%}" for each in [*better, alone]) + " |", flush=True
        )
        results[kind] = {
            "passed": passed, "better": better, "worse": shown[len(SUITES) :], "unclustered": alone,
            "contradictions": int(rows[:, 1].sum()),
        }  # fmt: skip
    return results


def chunks(pool: Any, work: Callable[..., Any], key: Any, draws: int) -> Iterator[Any]:
    sizes = [min(CHUNK, draws - start) for start in range(0, draws, CHUNK)]
    jobs = [pool.submit(work, key, number, size) for number, size in enumerate(sizes)]
    for job in jobs:
        yield job.result()


# Coverage.
def bootstraps(sums: ClusterSums, draw: Any) -> list[tuple[float, float]]:
    """The percentile and BCa intervals (scipy) and the bootstrap-t, of whole clusters."""

    def ratio(one: Any, other: Any, axis: int = -1) -> Any:
        return one.sum(axis) / other.sum(axis)

    settings = {"paired": True, "vectorized": True, "rng": draw, "confidence_level": 1 - ALPHA}
    pairs = (sums.sums, sums.weights)
    found = stats.bootstrap(pairs, ratio, n_resamples=RESAMPLES, method="percentile", **settings)
    again = stats.bootstrap(pairs, ratio, n_resamples=0, bootstrap_result=found, method="BCa", **settings)
    counts = draw.multinomial(len(sums.sums), np.full(len(sums.sums), 1 / len(sums.sums)), RESAMPLES).astype(float)
    means = counts @ sums.sums / (counts @ sums.weights)
    squares = counts @ sums.sums**2 - 2 * means * (counts @ (sums.sums * sums.weights))
    errors = np.sqrt(np.maximum(squares + means**2 * (counts @ sums.weights**2), 0)) / (counts @ sums.weights)
    ratios = np.divide(means - sums.mean, errors, out=np.zeros(RESAMPLES), where=errors > 1e-12)
    rest = sums.sums - sums.mean * sums.weights
    low, high = (
        sums.mean - np.quantile(ratios, [1 - ALPHA / 2, ALPHA / 2]) * np.sqrt(rest @ rest) / sums.weights.sum()
    )
    return [tuple(found.confidence_interval), tuple(again.confidence_interval), (low, high)]


METHODS = ("ours", "t by cluster", "percentile", "BCa", "bootstrap-t")


def coverage_chunk(key: tuple[str, int], chunk: int, draws: int) -> Any:
    """(draws, 2, 5 or 2) of each method: does it cover the truth; does it contradict the p-value."""
    warnings.simplefilter("ignore")  # of scipy, for intervals of one point
    case, count = key
    draw = np.random.default_rng([SEED, list(COVERAGE).index(case), count, chunk])
    rows = []
    for _ in range(draws):
        items = COVERAGE[case](draw, count)
        found = compared(items)
        sums = cluster_sums(items.second - items.first, items.clusters, items.weights)
        ends = [(found.low, found.high), sums.t_interval(1 - ALPHA)]
        ends += bootstraps(sums, draw) if count <= MAX_BOOTSTRAPPED else []
        covers = [low - 1e-12 <= items.truth <= high + 1e-12 for low, high in ends]
        rows.append([covers, [contradicts(low, high, found.p_value) for low, high in ends]])
    return np.array(rows, float)


def coverage(pool: Any, draws: int) -> dict[str, Any]:
    print(
        f"\nCoverage of 95 % intervals, {draws:,} draws; in brackets the share that contradicts the p-value, in %\n"
    )
    print("| differences | clusters | " + " | ".join(METHODS) + " |")
    print("|---|---|" + "---|" * len(METHODS))
    results: dict[str, Any] = {}
    for case in COVERAGE:
        for count in CLUSTERS:
            rows = np.concatenate([*chunks(pool, coverage_chunk, (case, count), draws)])
            covers, wrong = rows.mean(axis=0)
            cells = [f"{one:.1%} ({other:.1%})".replace("%", "") for one, other in zip(covers, wrong, strict=True)]
            cells += [""] * (len(METHODS) - len(cells))
            print(f"| {case} | {count:,} | " + " | ".join(cells) + " |", flush=True)
            results[f"{case}, {count}"] = {"covers": covers.tolist(), "contradicts": wrong.tolist()}
    return results


# Power: the counts of items that only the first model has right, and only the second.
def mcnemar(only_first: Any, only_second: Any) -> Any:
    differ = only_first + only_second
    return np.minimum(1, 2 * stats.binom.cdf(np.minimum(only_first, only_second), differ, 0.5))


def unpaired(both: Any, only_first: Any, only_second: Any, n: int) -> Any:
    """The two-sample z test of lm-evaluation-harness, with its standard errors (n - 1)."""
    shares = np.array([both + only_first, both + only_second]) / n
    error = np.sqrt((shares * (1 - shares)).sum(axis=0) / (n - 1))
    return 2 * stats.norm.sf(
        np.divide(np.abs(shares[1] - shares[0]), error, out=np.zeros(len(error)), where=error > 0)
    )


def power(draws: int) -> list[dict[str, float]]:
    """Found in % of cases, at 60 % right of the first model."""
    print(f"\nPower: share of {draws:,} draws with p <= 0.05, in %; paired / unpaired\n")
    print("| difference | items that differ | " + " | ".join(f"n = {n:,}" for n in (30, 100, 300, 1000)) + " |")
    print("|---|---|---|---|---|---|")
    draw = np.random.default_rng([SEED, 7])
    results = []
    for gain in (0.02, 0.05, 0.1, 0.2):
        for differ in (0.1, 0.2, 0.3):
            if gain > differ:
                continue
            cells = []
            for n in (30, 100, 300, 1000):
                down, up = (differ - gain) / 2, (differ + gain) / 2
                both = 0.6 - down
                counts = draw.multinomial(n, [both, down, up, 1 - both - differ], draws).T
                paired = float((mcnemar(counts[1], counts[2]) <= ALPHA).mean())
                without = float((unpaired(*counts[:3], n) <= ALPHA).mean())
                cells.append(f"{100 * paired:.0f} / {100 * without:.0f}")
                results.append({"gain": gain, "differ": differ, "n": n, "paired": paired, "unpaired": without})
            print(f"| {100 * gain:.0f} points | {differ:.0%} | " + " | ".join(cells) + " |", flush=True)
    return results


def published() -> dict[str, Any]:
    """The case of n = 220 in EleutherAI/lm-evaluation-harness, pull request 3868.

    It publishes n and both p-values, 0.080 and 0.008, not the counts. These are all counts that give both.
    """
    n, found = 220, []
    for differ in range(1, n + 1):
        for only_first in range(differ // 2 + 1):
            only_second = differ - only_first
            p_value = float(mcnemar(only_first, only_second))
            if round(p_value, 3) != 0.008:
                continue
            both = np.arange(n - differ + 1)
            others = unpaired(both, only_first, only_second, n)
            found += [(int(k), only_first, only_second) for k in both[np.round(others, 3) == 0.08]]
    print("\nn = 220, p = 0.080 unpaired and 0.008 paired: " + ", ".join(f"{b}+{x}:{y}" for b, x, y in found))
    both, only_first, only_second = max(found, key=lambda counts: (counts[1] + counts[2], counts[0]))
    comparison = compare(*from_counts(n, both, only_first, only_second))
    print(comparison)
    p_values = {f"{b}+{x}:{y}": compare(*from_counts(n, b, x, y)).p_value for b, x, y in found}
    return {"n": n, "counts": [both, only_first, only_second], "paired": comparison.p_value, "all": p_values}


def from_counts(n: int, both: int, only_first: int, only_second: int) -> tuple[Any, Any]:
    """Scores with these numbers of items that both models have right, or only one of them."""
    first = np.zeros(n)
    second = np.zeros(n)
    first[: both + only_first] = 1
    second[:both] = 1
    second[both + only_first : both + only_first + only_second] = 1
    return first, second


def smallest(draws: int) -> list[dict[str, float]]:
    """The power at the smallest difference that `compare` names, of independent right and wrong."""
    print("\n| items | that differ | smallest, points | found there, in % |\n|---|---|---|---|")
    draw = np.random.default_rng([SEED, 8])
    results = []
    for n in (30, 100, 300, 1000):
        for differ in (0.1, 0.3):
            pilots = [compared(right_wrong(draw, np.ones(n, int), differ, 0)).smallest for _ in range(100)]
            gain = float(np.median(pilots))
            total = max(differ, gain)
            counts = draw.multinomial(n, [(total - gain) / 2, (total + gain) / 2, 1 - total], draws).T
            found = float((mcnemar(counts[0], counts[1]) <= ALPHA).mean())
            print(f"| {n:,} | {differ:.0%} | {100 * gain:.1f} | {100 * found:.0f} |", flush=True)
            results.append({"n": n, "differ": differ, "smallest": gain, "power": found})
    return results


def speed() -> float:
    draw = np.random.default_rng([SEED, 9])
    first = draw.normal(size=50_000)
    second, labels = first + draw.normal(size=50_000), draw.integers(0, 20_000, 50_000)
    start = time.perf_counter()
    compare(first, second, labels)
    took = time.perf_counter() - start
    print(f"\n50,000 items in 20,000 clusters: {took:.2f} s", flush=True)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10_000, help="of equal models; a tenth of them for the coverage")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    start = time.perf_counter()
    results: dict[str, Any] = {
        "published": published(), "speed_s": speed(), "power": power(asked.draws), "smallest": smallest(asked.draws),
    }  # fmt: skip
    with ProcessPoolExecutor(asked.processes) as pool:
        results["equal_models"] = equal_models(pool, asked.draws)
        results["coverage"] = coverage(pool, asked.draws // 10)
    results["minutes"] = (time.perf_counter() - start) / 60
    print(json.dumps(results))


if __name__ == "__main__":
    main()
