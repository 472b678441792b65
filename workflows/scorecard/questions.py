"""Questions for a model, with the facts that its replies must contain."""

import json
from dataclasses import dataclass
from functools import partial

from models.chat import Message, check_messages
from workflows.json_lines import JsonRecord, json_lines_at, value_of
from workflows.stage import StageFailed
from workflows.store import without_secrets
from workflows.suites.suite import Turn


@dataclass(frozen=True)
class Question:
    """A question with its facts."""

    text: str
    facts: list[list[str]]
    """the accepted spellings of each fact"""
    place: str
    """file:line"""


@dataclass(frozen=True)
class Prompt:
    """A prompt for both models."""

    messages: list[Message]
    tools: str | None = None
    """as JSON"""
    question: Question | None = None
    """None for a held-out conversation up to its last reply"""
    reference: str = ""
    """for a held-out conversation, its last reply"""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The prompt as the one turn of an item."""
        return (Turn(tuple(self.messages), json.loads(self.tools) if self.tools else None),)


def read_questions(uri: str) -> list[Question]:
    """The questions with their facts; raises StageFailed with file and line."""
    field = "evaluate.questions"
    questions = [line.read(partial(_question, place=line.place)) for line in json_lines_at(field, uri)]
    if not questions:
        raise StageFailed(f"{field}: {without_secrets(uri)} has no questions; leave the field out to ask none")
    return questions


def _question(record: JsonRecord, place: str) -> Question:
    question, facts = value_of(record, "question"), value_of(record, "facts")
    check_messages([{"role": "user", "content": question}])
    if not isinstance(facts, list) or not facts or not all(map(_is_fact, facts)):
        raise ValueError('`facts` must be a list of facts, each a list of spellings, as in [["45 days"]]')
    return Question(str(question), facts, place)


def _is_fact(fact: object) -> bool:
    return isinstance(fact, list) and fact != [] and all(isinstance(word, str) and word.strip() for word in fact)
