"""The entries of evaluate.lm_eval."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from workflows.spec.section import PositiveInt, Section


class LmEvalSpec(Section):
    """Tasks of lm-evaluation-harness that both models answer through the endpoint's code (docs/lm_eval.md)."""

    task: Annotated[str, Field(min_length=1)]
    """Name of a task, a group or a tag of lm-eval, such as ifeval; or a folder of tasks (its *.yaml) with the data
    and the functions that they name, as in `./tasks`: what has a slash is a folder. A relative path starts at the
    pipeline file's folder."""

    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Number of examples before each question; left out, the task decides."""

    limit: PositiveInt | None = None
    """Use only this number of items of each task, the first ones."""

    chat_template: bool = True
    """Whether prompts are chats, as users send them, with examples as earlier turns. False: plain texts, as for a
    base model."""

    golden: bool = False
    """Whether these tasks are golden: their scores may not get worse."""

    @field_validator("task")
    @classmethod
    def _is_no_file(cls, task: str) -> str:
        if task.endswith((".yaml", ".yml")):
            raise ValueError(f"got the file {task!r}; give its folder: a task's data and functions lie there too")
        return task

    @property
    def is_folder(self) -> bool:
        """Whether `task` is a folder of tasks."""
        return "/" in self.task

    @property
    def shown_name(self) -> str:
        """The name of the task, or of its folder."""
        return self.task.rstrip("/").rpartition("/")[2] or self.task


def _named_task(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


LmEvalEntry = Annotated[LmEvalSpec, BeforeValidator(_named_task)]
"""a section, or only the task"""
