"""Constraints of a search (`tune.constraints`), such as `peak_memory_gb <= 20`. Imports no library."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_FORM = re.compile(r"\s*([\w.-]+)\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Constraint:
    """A bound on a figure of a trial's reports."""

    figure: str
    is_most: bool
    bound: float

    def is_broken(self, figures: Mapping[str, float]) -> bool:
        """Whether a report breaks it."""
        value = figures.get(self.figure, math.nan)
        return not (value <= self.bound if self.is_most else value >= self.bound)

    def __str__(self) -> str:
        return f"{self.figure} {'<=' if self.is_most else '>='} {self.bound:g}"


def parse_constraint(text: str) -> Constraint:
    """Parse a constraint; raises ValueError with the rule."""
    found = _FORM.fullmatch(text)
    try:
        if found is not None and math.isfinite(bound := float(found[3])):
            return Constraint(found[1], found[2] == "<=", bound)
    except ValueError:
        pass
    raise ValueError(f"got {text!r}; must be a figure, <= or >=, and a number, such as 'peak_memory_gb <= 20'")


def broken(constraints: Sequence[str], figures: Mapping[str, float]) -> str:
    """The first constraint that a report breaks, with its value; empty if it keeps all."""
    for constraint in map(parse_constraint, constraints):
        if constraint.is_broken(figures):
            value = figures.get(constraint.figure, math.nan)
            return f"{constraint.figure} was {value:.4g} (tune.constraints: {constraint})"
    return ""
