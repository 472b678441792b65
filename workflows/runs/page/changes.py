"""What differs between runs: settings and figures.

changes_of([flat(before.spec), flat(now.spec)])     # the fields whose values differ
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workflows.progress import figure
from workflows.store import Artifact


@dataclass(frozen=True)
class Change:
    """A name with its value in each run; empty where a run has none."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs have different values."""
        return len(set(self.values)) > 1


def table_of(columns: Sequence[Mapping[str, str]]) -> list[Change]:
    """Every name of any run, in the order of the runs that have it."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [Change(name, tuple(column.get(name, "") for column in columns)) for name in names]


def changes_of(columns: Sequence[Mapping[str, str]]) -> list[Change]:
    """The names whose values differ."""
    return [change for change in table_of(columns) if change.differs]


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Settings by their dotted names, as words, without those that are null; a list's sections by their numbers, as
    `data.sources.0.path`.
    """
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            value = {str(number): each for number, each in enumerate(value)}
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def figures_of(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """The numbers that the stages measured, as words, by stage and name."""
    return {
        f"{stage}: {name.replace('_', ' ')}": figure(value)
        for stage, artifact in artifacts.items()
        for name, value in artifact.figures.items()
        if isinstance(value, int | float)
    }
