"""Mistakes in a pipeline file, reported all at once, each with its line and field."""

from dataclasses import dataclass

from models.errors import RayconteurError

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class SpecProblem:
    """One mistake: its place, its field, and what is wrong."""

    where: str
    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.problem}" if self.field else f"{self.where}: {self.problem}"


class SpecError(RayconteurError):
    """An unusable pipeline file; `problems` lists every mistake in it."""

    def __init__(self, problems: list[SpecProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def dotted(location: Location) -> str:
    """Join a location: `("data", "sources", 0, "path")` becomes `data.sources.0.path`."""
    return ".".join(str(part) for part in location)
