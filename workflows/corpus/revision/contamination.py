"""data.check_against: conversations of a written corpus that contain reference texts, by a task for each file.

index = read_references(reference_files(spec))                     # None without any reference
found = find_contamination(filesystem, files, index, board)        # files of the corpus
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import ray

from models.chat import Message
from models.chat.form import SYSTEM_ROLES
from models.errors import RayconteurError
from models.files import open_uri
from models.text.overlap import Overlap, OverlapIndex, excerpt
from models.text.texts import Texts
from workflows.corpus.conversations import parse_conversation
from workflows.corpus.files.formats import records
from workflows.corpus.files.sources import SourceFile, files_at
from workflows.corpus.reader import conversations_of
from workflows.corpus.revision.revise import Moves
from workflows.corpus.rows import place_of
from workflows.corpus.split import LEFT_OUT
from workflows.spec import PipelineSpec
from workflows.stage import StageFailed
from workflows.store import without_secrets

MAX_SHOWN = 10
"""conversations of each file whose text is kept"""
_TEXT_KEYS = ("question", "prompt", "text", "instruction", "input")


@dataclass(frozen=True)
class Contaminated:
    """A conversation that contains a reference text."""

    number: int
    """of its row"""

    reference: str
    """the file and line of the reference"""

    words: int
    """how many words they share"""

    share: float
    """these as a share of the reference's words"""

    shown: tuple[str, str, str] | None
    """the text before what they share, that, and the text after it; of the first ones of each file"""


def reference_files(spec: PipelineSpec) -> dict[str, str]:
    """The files of the texts to look for in a corpus, by their dotted fields."""
    questions = {} if spec.evaluate.questions is None else {"evaluate.questions": spec.evaluate.questions}
    return spec.data.check_against.by_field | questions


def read_references(named: Mapping[str, str]) -> OverlapIndex | None:
    """The texts of files, by their dotted fields; None if there are none.

    Raises StageFailed for a file that cannot be read, and for a line without a text.
    """
    names, texts = [], []
    for file in _found(named):
        for record in records(file):
            names.append(f"{file.path}:{record.number}")
            texts.append(_text_of(record, file))
    return OverlapIndex.of(Texts.of(texts), names) if names else None


def find_contamination(filesystem: Any, files: Sequence[str], index: OverlapIndex, board: Any) -> list[Contaminated]:
    """Each conversation with each of the references in it, by number; those with most words in common first."""
    rows = sum(pyarrow.parquet.read_metadata(file, filesystem=filesystem).num_rows for file in files)
    board.post.remote(total=rows)
    shared = ray.put(index)
    task = ray.remote(num_cpus=1)(_in_file)
    found = ray.get([task.remote(filesystem, file, shared, board) for file in files])
    return sorted((each for of_file in found for each in of_file), key=lambda each: (each.number, -each.words))


def without_contaminated(found: Sequence[Contaminated]) -> Moves:
    """All of them are left out; `found` is as `find_contamination` returns it."""
    first = {each.number: each for each in reversed(found)}
    reasons = {
        number: f"data.check_against: contains {each.reference} ({each.words} words of it, {each.share:.0%})"
        for number, each in sorted(first.items())
    }
    return Moves(np.array(list(reasons)), [LEFT_OUT] * len(reasons), list(reasons.values()))


def contamination_text(found: Sequence[Contaminated], paths: Sequence[str]) -> str:
    """How many conversations contain references, and the first of them. `paths`: by the number of each source."""
    source, line = place_of(found[0].number)
    conversations, references = len({each.number for each in found}), len({each.reference for each in found})
    shown = f": {found[0].shown[1]!r}" if found[0].shown else ""
    return (
        f"{conversations:,} conversations contain {references:,} of the texts of data.check_against and "
        f"evaluate.questions, such as {paths[source]}:{line}, which has {found[0].reference}{shown}"
    )


def _found(named: Mapping[str, str]) -> list[SourceFile]:
    found = []
    for field, uri in named.items():
        try:
            filesystem, path = open_uri(uri, patient=False)
            names = files_at(filesystem, path)
            found += [SourceFile(uri, name, None, fingerprint="", field=field) for name in names]
        except (OSError, pa.ArrowException, RayconteurError) as error:
            raise StageFailed(f"{field}: cannot read {without_secrets(uri)}: {error}") from error
        if not names:
            raise StageFailed(f"{field}: nothing found at {without_secrets(uri)}; give a file, folder or glob")
    return found


def _text_of(record: Any, file: SourceFile) -> list[str]:
    """The turns of a reference: a conversation's, or one text under a common key."""
    try:
        if record.unread:
            raise RayconteurError(record.unread)
        value = json.loads(record.text)
        if isinstance(value, str):
            return [value]
        keys = [key for key in _TEXT_KEYS if isinstance(value, dict) and isinstance(value.get(key), str)]
        if keys and not isinstance(value.get("messages"), list):
            return [value[keys[0]]]
        return _turns(parse_conversation(record.text).messages)
    except ValueError as error:
        raise StageFailed(
            f"{file.field}: {file.path}:{record.number}: no text to look for: {error}; a line is a conversation, or "
            f"an object with one of {', '.join(_TEXT_KEYS)}"
        ) from None


def _in_file(filesystem: Any, file: str, index: OverlapIndex, board: Any) -> list[Contaminated]:
    found: list[Contaminated] = []
    for numbers, conversations in conversations_of(filesystem, file):
        for place, reference, overlap, shown in _overlaps(index, conversations):
            kept = shown if len(found) < MAX_SHOWN else None
            found.append(Contaminated(int(numbers[place]), reference, overlap.words, overlap.share, kept))
        board.add.remote(done=len(conversations))
    return found


def _overlaps(
    index: OverlapIndex, conversations: Sequence[Sequence[Message]]
) -> Iterator[tuple[int, str, Overlap, tuple[str, str, str]]]:
    """The largest overlap of each conversation with each reference: of all its turns, or of the user's alone."""
    best: dict[tuple[int, int], tuple[Overlap, list[str]]] = {}
    for role in (None, "user"):
        turns = [_turns(messages, role) for messages in conversations]
        for overlap in index.find(Texts.of(turns)):
            known = best.get((overlap.text, overlap.reference))
            if known is None or overlap.words > known[0].words:
                best[overlap.text, overlap.reference] = (overlap, turns[overlap.text])
    for (place, _), (overlap, of_text) in sorted(best.items(), key=lambda item: item[0]):
        yield place, index.names[overlap.reference], overlap, excerpt(of_text, overlap)


def _turns(messages: Sequence[Message], role: str | None = None) -> list[str]:
    return [
        message["content"]
        for message in messages
        if (message["role"] not in SYSTEM_ROLES if role is None else message["role"] == role)
    ]
