"""Mistakes in a pipeline file, all of them at once, each with its line and field."""

from dataclasses import dataclass

from models.errors import RayconteurError

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class SpecProblem:
    """One mistake: where it stands, which field, and what is wrong with it, in words."""

    where: str
    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.problem}" if self.field else f"{self.where}: {self.problem}"


class SpecError(RayconteurError):
    """A pipeline file that cannot be used; `problems` has every mistake in it."""

    def __init__(self, problems: list[SpecProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def dotted(location: Location) -> str:
    """`("data", "sources", 0, "path")` as `data.sources.0.path`."""
    return ".".join(str(part) for part in location)
