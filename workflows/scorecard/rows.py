"""The rows that the workers of an evaluation get: conversations, given replies, prompts, and requests of lm-eval."""

import json
from collections.abc import Sequence

import pyarrow as pa

from models.chat import Message
from models.chat.plain_text import said_text
from workflows.corpus.rows import CorpusRow
from workflows.scorecard.questions import Prompt
from workflows.scorecard.suite_scores import SuitePrompt, is_given_reply
from workflows.scorecard.worker import SCORED_SCHEMA, ScoredRow

# Prompts are answered together, in a batch that an engine keeps full as replies end.
_BATCH_SIZES = 16, 256
_BATCHES_OF_A_WORKER = 4


def held_out_prompt(row: CorpusRow) -> Prompt:
    """A held-out conversation up to its last assistant turn, and that turn as the real reply."""
    messages: list[Message] = json.loads(row["messages"])
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return Prompt(messages[: max(last, 1)], row["tools"], reference=said_text(messages[last]))


def as_scored(table: pa.Table) -> pa.Table:
    """Rows of the corpus in the form of rows to score."""
    columns = {"question": pa.array([-1] * len(table), pa.int32())}
    for field in SCORED_SCHEMA:
        if field.name in table.column_names:
            columns[field.name] = table[field.name].cast(field.type)
        columns.setdefault(field.name, pa.nulls(len(table), field.type))
    return pa.table(columns).select(SCORED_SCHEMA.names)


def rows_of_given_replies(asked: Sequence[Prompt | SuitePrompt]) -> list[ScoredRow]:
    """A row for each given reply, whose loss is computed."""
    return [
        {"question": number, "model": None, "turns": _turns(prompt)}
        for number, prompt in enumerate(asked)
        if is_given_reply(prompt)
    ]


def rows_to_answer(asked: Sequence[Prompt | SuitePrompt], model: str, max_new_tokens: int) -> list[ScoredRow]:
    """A row for each prompt that a model answers."""
    return [
        {
            "question": number,
            "model": model,
            "turns": _turns(prompt),
            "max_new_tokens": prompt.max_new_tokens if isinstance(prompt, SuitePrompt) else max_new_tokens,
        }
        for number, prompt in enumerate(asked)
        if not is_given_reply(prompt)
    ]


def row_of_request(request: str, model: str) -> ScoredRow:
    """A request of lm-eval; one that only scores generates nothing."""
    return {
        "question": -1,
        "model": model,
        "request": request,
        "max_new_tokens": int(json.loads(request)["body"].get("max_tokens") or 0),
    }


def batch_size(num_rows: int, num_workers: int) -> int:
    """How many rows a worker gets at once."""
    smallest, largest = _BATCH_SIZES
    return min(max(-(-num_rows // (num_workers * _BATCHES_OF_A_WORKER)), smallest), largest)


def _turns(prompt: Prompt | SuitePrompt) -> str:
    turns = [
        {"messages": turn.messages, "tools": turn.tools, "brings_knowledge": turn.brings_knowledge}
        for turn in prompt.turns
    ]
    return json.dumps(turns)
