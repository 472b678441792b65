"""The judge's questions: a template filled with a conversation and replies, and the form that an answer must have.

prompt = read_prompt(spec)
prompt.pairwise(conversation, first_reply, second_reply)
"""

import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from models.chat.form import Conversation
from models.chat.plain_text import transcript
from models.errors import nearest
from models.files import open_uri, read_file
from workflows.spec import JudgeSpec
from workflows.stage import StageFailed
from workflows.store import without_secrets

_PLACE = re.compile(r"\{([a-z_]+)\}")
_PLACES = {
    "pairwise": ("criteria", "conversation", "first_reply", "second_reply"),
    "rubric": ("criteria", "conversation", "reply"),
}
_MAY_LACK = "criteria"  # a prompt may have its own


@dataclass(frozen=True)
class JudgePrompt:
    """A template whose places are all known."""

    template: str
    criteria: Mapping[str, str]

    def pairwise(self, asked: Conversation, first: str, second: str) -> str:
        """The question which of two replies to a conversation is better."""
        return self._filled(asked, {"first_reply": first, "second_reply": second})

    def rubric(self, asked: Conversation, reply: str) -> str:
        """The question how good one reply is."""
        return self._filled(asked, {"reply": reply})

    def _filled(self, asked: Conversation, values: Mapping[str, str]) -> str:
        criteria = "\n".join(f"- {name}: {meaning}" if meaning else f"- {name}" for name, meaning in self._lines())
        known = {"criteria": criteria, "conversation": transcript(asked.messages, asked.tools), **values}
        # In one pass, because a reply may contain the name of a place.
        return _PLACE.sub(lambda found: known[found[1]], self.template)

    def _lines(self) -> Sequence[tuple[str, str]]:
        return [(name, " ".join(meaning.split())) for name, meaning in self.criteria.items()]


def read_prompt(spec: JudgeSpec) -> JudgePrompt:
    """The prompt of the pipeline, or that of this project; raises StageFailed."""
    template = prompt_text(spec)
    wanted = _PLACES[spec.mode]
    shown = without_secrets(spec.prompt or "")
    found = _PLACE.findall(template)
    for name in found:
        if name not in wanted:
            near = nearest(name, wanted)
            hint = f"did you mean {{{near}}}?" if near else f"known: {', '.join(f'{{{place}}}' for place in wanted)}"
            raise StageFailed(
                f"evaluate.judge.prompt: {shown} has the place {{{name}}}, which {spec.mode} does not fill; {hint}"
            )
    if missing := [name for name in wanted if name not in found and name != _MAY_LACK]:
        raise StageFailed(
            f"evaluate.judge.prompt: {shown} lacks {' and '.join(f'{{{name}}}' for name in missing)}; write each "
            f"place where the {spec.mode} prompt shall have it"
        )
    return JudgePrompt(template, spec.criteria)


def prompt_text(spec: JudgeSpec) -> str:
    """The template as it stands in its file; raises StageFailed."""
    if spec.prompt is None:
        return (importlib.resources.files("workflows.judge") / "prompts" / f"{spec.mode}.txt").read_text("utf-8")
    return read_text("evaluate.judge.prompt", spec.prompt)


def read_text(field: str, uri: str) -> str:
    """A text file that the pipeline names; raises StageFailed with the field."""
    try:
        return read_file(*open_uri(uri, patient=False)).decode("utf-8-sig")
    except (OSError, pa.ArrowException) as error:
        raise StageFailed(f"{field}: cannot read {without_secrets(uri)}: {error}") from error
    except UnicodeDecodeError as error:
        raise StageFailed(f"{field}: {without_secrets(uri)} is not UTF-8 ({error}); save it as UTF-8") from None
