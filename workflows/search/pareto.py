"""Pareto fronts: the points that no other dominates, for any number of metrics. A smaller value is better.

A point dominates another if it is at least as good in every metric and better in one; equal points do not.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

Item = TypeVar("Item")
Point = tuple[float, ...]


class ParetoFront(Generic[Item]):
    """A front to which points are added; each costs time in proportion to the front, not to all points."""

    def __init__(self, num_metrics: int) -> None:
        self._items: list[Item] = []
        self._points: Any = np.empty((0, num_metrics))

    def add(self, point: Point, item: Item) -> None:
        """Add a point, unless it is dominated; drops those that it dominates."""
        if _is_dominated(point, self._points):
            return
        stays = ~_dominated_by(point, self._points)
        if not stays.all():
            self._items = [item for item, stay in zip(self._items, stays, strict=True) if stay]
        self._points = np.vstack([self._points[stays], point])
        self._items.append(item)

    def joined(self, others: Iterable[tuple[Point, Item]]) -> list[Item]:
        """The items of the front of these points and all those added so far; adds none."""
        free = front([(point, item) for point, item in others if not _is_dominated(point, self._points)])
        stays = np.ones(len(self._items), dtype=bool)
        for point, _ in free:
            stays &= ~_dominated_by(point, self._points)
        mine = [item for item, stay in zip(self._items, stays, strict=True) if stay]
        return mine + [item for _, item in free]


def front(pairs: Sequence[tuple[Point, Item]]) -> list[tuple[Point, Item]]:
    """The points that no other dominates, sorted by the first metric, then by the next ones."""
    found: list[tuple[Point, Item]] = []
    points = np.empty((len(pairs), max((len(point) for point, _ in pairs), default=0)))
    for point, item in sorted(pairs, key=lambda pair: pair[0]):  # no later point dominates an earlier one
        if len(point) <= 2:  # the last one is the best in the last metric so far
            is_free = not found or found[-1][0][-1] > point[-1] or found[-1][0] == point
        else:
            is_free = not _is_dominated(point, points[: len(found)])
        if is_free:
            points[len(found)] = point
            found.append((point, item))
    return found


def _is_dominated(point: Point, by: Any) -> bool:
    return bool(((by <= point).all(axis=1) & (by < point).any(axis=1)).any())


def _dominated_by(point: Point, points: Any) -> Any:
    """(N,) whether `point` dominates each of these."""
    return (points >= point).all(axis=1) & (points > point).any(axis=1)
