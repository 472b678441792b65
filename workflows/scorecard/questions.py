"""Questions that a model is asked, with the facts that its replies must have."""

import json
from typing import Any

from models.chat import check_messages
from models.files import open_uri
from workflows.stage import StageFailed


def read_questions(uri: str) -> list[dict[str, Any]]:
    """The questions with their facts; raises StageFailed with file and line."""
    filesystem, path = open_uri(uri)
    with filesystem.open_input_stream(path) as stream:
        lines = stream.read().splitlines()
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            questions.append(_question(json.loads(line)))
        except ValueError as error:
            raise StageFailed(f"evaluate.questions: {uri}:{number}: {error}") from None
    if not questions:
        raise StageFailed(f"evaluate.questions: {uri} has no questions; leave the field out to ask none")
    return questions


def _question(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    question, facts = record.get("question"), record.get("facts")
    check_messages([{"role": "user", "content": question}])
    spelled = (
        isinstance(facts, list)
        and facts
        and all(
            isinstance(fact, list) and fact and all(isinstance(word, str) and word.strip() for word in fact)
            for fact in facts
        )
    )
    if not spelled:
        raise ValueError('`facts` must be a list of facts, each a list of spellings, as in [["45 days"]]')
    return {"question": question, "facts": facts}
