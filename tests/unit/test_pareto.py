"""Pareto fronts of any number of metrics, found at once and point by point."""

import itertools
import random

import pytest

from workflows.search.pareto import ParetoFront, front


def by_definition(points):
    def beats(one, other):
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    return [index for index, point in enumerate(points) if not any(beats(other, point) for other in points)]


@pytest.mark.parametrize(("metrics", "seed"), [*itertools.product((1, 2, 3, 5), range(5))])
def test_fronts_are_those_of_the_definition(metrics, seed):
    draw = random.Random(seed)
    points = [tuple(float(draw.randrange(8)) for _ in range(metrics)) for _ in range(60)]
    pairs = [(point, index) for index, point in enumerate(points)]
    wanted = by_definition(points)
    at_once = front(pairs)
    assert sorted(index for _, index in at_once) == wanted
    assert [point for point, _ in at_once] == sorted(point for point, _ in at_once)
    grown = ParetoFront(metrics)
    for number, pair in enumerate(pairs):
        grown.add(*pair)
        assert sorted(grown.joined([])) == by_definition(points[: number + 1])
    others = [(tuple(value - 1.0 for value in point), 100 + index) for point, index in pairs[:5]]
    both = by_definition([*points, *(point for point, _ in others)])
    assert sorted(grown.joined(others)) == [index if index < 60 else index + 40 for index in both]
    assert sorted(grown.joined([])) == wanted, "joined adds nothing"


def test_no_points_have_no_front():
    assert front([]) == []
    assert ParetoFront(2).joined([]) == []
