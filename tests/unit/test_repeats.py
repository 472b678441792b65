"""Replies of a written corpus that repeat others: which are compared, and rows that are no longer trained on them."""

import copy
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
from lost_writes import Writes
from pydantic import ValidationError

from models.base.load import load_tokenizer
from workflows.corpus.encoding import Encoding
from workflows.corpus.lines import _SCHEMA
from workflows.corpus.revision.near_duplicates import NearDuplicates, replies_of
from workflows.corpus.revision.repeats import Repeats, revise_file
from workflows.corpus.revision.separation import _one_side
from workflows.corpus.rows import CorpusRow, number_of, reply_numbers, reply_of, table_of
from workflows.corpus.split import HELD_OUT, LEFT_OUT, TRAIN, all_sides
from workflows.runs.order import STAGES
from workflows.spec import DataSpec, PipelineSpec
from workflows.stage import StageFailed

LOCAL = pa.fs.LocalFileSystem()
Messages = list[dict[str, Any]]
# The last reply ends with a token that earlier ones do not have, so that a conversation is a tree.
TREE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' and loop.last and not "
    "add_generation_prompt %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def talk(number: int, turns: int = 4) -> Messages:
    roles = itertools.cycle(["user", "assistant"])
    return [{"role": next(roles), "content": f"Turn {turn} of {number}: café, {turn * 7}."} for turn in range(turns)]


TALKS: list[Messages] = [
    talk(1, turns=8),
    talk(2),
    [{"role": "system", "content": "Be brief."}, *talk(3, turns=6)],
    talk(4, turns=2),
    [*talk(5, turns=2), {"role": "user", "content": "And?"}, {"role": "assistant", "content": "No.", "train": False}],
]
REPEATED = {0: [1, 5], 2: [2], 3: [1], 4: [1]}
"""messages by the place of their conversation"""


def row_of(encoding: Encoding, messages: Messages, place: int) -> CorpusRow:
    line = json.dumps({"messages": messages}).encode()
    row = encoding.row(encoding.read(line, ""), line)
    return {**row, "source": 0, "line": place + 1, "language": "en", "flags": '["darn"]'}


def written(corpus: Path, rows: Sequence[CorpusRow]) -> str:
    folder = corpus / "split=train"
    folder.mkdir(parents=True)
    schema = pa.schema([field for field in _SCHEMA if field.name != "split"])
    pyarrow.parquet.write_table(table_of(rows, schema), folder / "a.parquet")
    return f"{folder}/a.parquet"


def rows_in(corpus: Path) -> dict[int, dict[str, Any]]:
    return {row["line"] - 1: row for row in all_sides(LOCAL, str(corpus)).to_table().to_pylist()}


def repeats_of(messages: dict[int, list[int]]) -> Repeats:
    numbers = [reply_numbers(number_of(0, place + 1), each) for place, found in messages.items() for each in found]
    return Repeats(np.array(numbers), [f"b.jsonl:{n}, message 3 (Jaccard index 0.90)" for n in range(len(numbers))])


@pytest.fixture
def encoding_with(tiny_llama: Path) -> Callable[..., Encoding]:
    def made(template: str | None = None, **data: Any) -> Encoding:
        tokenizer = load_tokenizer(tiny_llama)
        if template is not None:
            tokenizer.chat_template = template
        spec = DataSpec.model_validate({"sources": [{"path": "a.jsonl"}], **data})
        return Encoding(tokenizer, spec, "conversations")

    return made


@pytest.mark.parametrize("template", [None, TREE])
@pytest.mark.parametrize(
    "data",
    [
        {},
        {"reasoning": "text"},
        {"max_length": 220},
        {"max_length": 220, "truncate": "left"},
        {"max_length": 220, "cut_replies": "drop"},
    ],
)
def test_a_row_becomes_that_of_a_line_whose_replies_are_not_trained_on(
    tmp_path: Path, encoding_with: Callable[..., Encoding], template: str | None, data: dict[str, Any]
) -> None:
    encoding = encoding_with(template, **data)
    talks = copy.deepcopy(TALKS)
    if "reasoning" in data:
        talks[0][5]["reasoning_content"] = talks[1][3]["reasoning_content"] = "Well."
    before = [row_of(encoding, messages, place) for place, messages in enumerate(talks)]
    file = written(tmp_path, before)
    revise_file(LOCAL, str(tmp_path), file, encoding, repeats_of(REPEATED))
    found = rows_in(tmp_path)
    assert ("piece_lengths" in before[1]) == (template is not None)
    assert before[0]["truncated"] == ("max_length" in data and data.get("truncate") != "left")
    for place in (0, 1, 2):
        marked = talks[place]
        for message in REPEATED.get(place, []):
            marked[message]["train"] = False
        expected = row_of(encoding, marked, place)
        assert json.loads(found[place].pop("messages")) == json.loads(expected.pop("messages"))
        assert found[place].pop("split") == TRAIN
        del expected["split"]
        assert found[place] == {**dict.fromkeys(found[place]), **expected}
        assert (found[place]["num_targets"] < before[place]["num_targets"]) == (place in REPEATED)
    lines = pyarrow.parquet.read_table(file, partitioning=None)["line"].to_pylist()
    assert lines == [1, 2, 3], "in the order that they had"


def test_a_conversation_without_another_reply_to_train_on_is_left_out(
    tmp_path: Path, encoding_with: Callable[..., Encoding]
) -> None:
    encoding = encoding_with()
    file = written(tmp_path, [row_of(encoding, messages, place) for place, messages in enumerate(TALKS)])
    revise_file(LOCAL, str(tmp_path), file, encoding, repeats_of(REPEATED))
    found = rows_in(tmp_path)
    assert [found[place]["split"] for place in range(5)] == [TRAIN] * 3 + [LEFT_OUT] * 2
    assert found[3]["reason"] == (
        "data.deduplicate: no other reply to train on is left; message 1 is a near-duplicate of b.jsonl:3, message 3 "
        "(Jaccard index 0.90)"
    )
    assert (found[3]["input_ids"], found[3]["num_targets"]) == (None, None)
    assert "train" not in found[3]["messages"]


@pytest.mark.parametrize(
    "repeated", [REPEATED, {place: [1, 3, 5, 7][: len(TALKS[place]) // 2] for place in (1, 3, 4)}]
)
def test_an_attempt_after_a_lost_one_comes_to_the_same(
    tmp_path: Path,
    encoding_with: Callable[..., Encoding],
    monkeypatch: pytest.MonkeyPatch,
    repeated: dict[int, list[int]],
) -> None:
    encoding = encoding_with()
    places = sorted({*repeated, 0} if repeated is REPEATED else repeated)
    rows = [row_of(encoding, TALKS[place], place) for place in places]
    written(tmp_path / "corpus", rows)
    writes = Writes()

    def attempt(folder: Path) -> None:
        revise_file(LOCAL, str(folder), f"{folder}/split=train/a.parquet", encoding, repeats_of(repeated))

    whole = shutil.copytree(tmp_path / "corpus", tmp_path / "whole")
    monkeypatch.setattr(pyarrow.parquet, "write_table", writes)
    attempt(whole)
    expected = rows_in(whole)
    assert sorted(expected) == places
    attempt(whole)  # its end was not known before the worker was lost
    assert rows_in(whole) == expected
    for lost_at in range(1, writes.count + 1):
        copied = shutil.copytree(tmp_path / "corpus", tmp_path / f"lost{lost_at}")
        monkeypatch.setattr(pyarrow.parquet, "write_table", Writes(lost_at))
        try:
            attempt(copied)
            attempt(copied)
        except ConnectionError:
            monkeypatch.setattr(pyarrow.parquet, "write_table", Writes())
            attempt(copied)
        assert rows_in(copied) == expected


def test_which_replies_are_compared_and_by_what() -> None:
    ten = "one two three four five six seven eight nine ten"
    call = {"type": "function", "id": "c1", "function": {"name": "price_of", "arguments": {"b": 2, "a": "lamp"}}}
    messages: Any = [
        {"role": "system", "content": ten},
        {"role": "user", "content": ten},
        {"role": "assistant", "content": ten},
        {"role": "assistant", "content": ten.removesuffix(" ten")},
        {"role": "assistant", "content": ten, "train": False},
        {"role": "assistant", "content": "我叫小明我住在北京。"},
        {"role": "assistant", "content": "我叫小明我住在北京了。"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "assistant", "content": ten, "reasoning_content": "Well, a lamp.", "tool_calls": [call]},
    ]
    found = dict(replies_of(messages))
    assert list(found) == [2, 6, 8]
    assert found[2] == ten
    assert found[8] == f'Well, a lamp.\n{ten}\n{{"arguments": {{"a": "lamp", "b": 2}}, "name": "price_of"}}'


def test_replies_have_numbers_in_the_order_of_sources_lines_and_messages() -> None:
    places = [(0, 1, 0), (0, 1, 16_383), (0, 2, 3), (7, 2**33 - 1, 1), (65_535, 2**33 - 1, 16_383)]
    rows = np.array([number_of(source, line) for source, line, _ in places])
    messages = np.array([message for *_, message in places])
    numbers = reply_numbers(rows, messages)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == sorted(set(numbers.tolist()))
    assert [each.tolist() for each in reply_of(numbers)] == [rows.tolist(), messages.tolist()]
    for source, line, message, what in (
        (65_536, 1, 1, "65,536 files"),
        (1, 2**33, 1, "8,589,934,592 lines of a file"),
        (1, 1, 16_384, "16,384 messages of a conversation"),
    ):
        with pytest.raises(StageFailed, match=rf"data\.deduplicate\.compare: replies numbers up to {what}, and"):
            reply_numbers(np.array([number_of(source, line)]), np.array([message]))


def test_conversations_that_a_reply_joins_come_on_one_side(tmp_path: Path) -> None:
    """Lines 2 and 4 have a reply in common, 4 and 6 another, and all of 10 to 15 a third."""
    sides = {HELD_OUT: [2, 3, 6, 10], TRAIN: [1, 4, 5, *range(11, 16)]}
    for side, lines in sides.items():
        (tmp_path / f"split={side}").mkdir()
        columns = {"source": pa.array([0] * len(lines), pa.int32()), "line": pa.array(lines, pa.int64())}
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / f"split={side}" / "a.parquet")

    def numbers(*places: tuple[int, int]) -> Any:
        return reply_numbers(np.array([number_of(0, line) for line, _ in places]), np.array([m for _, m in places]))

    many = [(line, 1) for line in range(10, 16)]
    members = numbers((2, 1), (3, 1), (3, 3), (4, 1), (4, 3), (6, 3), *many)
    kept = numbers((4, 1), (3, 1), (3, 1), (4, 1), (6, 3), (6, 3), *[(12, 1)] * 6)
    found = NearDuplicates(members, kept, np.ones(len(members)), "replies")
    moves = _one_side(all_sides(LOCAL, str(tmp_path)), found, has_groups=False)
    assert moves.numbers.tolist() == [number_of(0, line) for line in (2, 4, 6, *range(10, 16))]
    assert moves.splits == [HELD_OUT] * 3 + [TRAIN] * 6, "more than all that are held out are trained on"


@pytest.mark.parametrize("objective", ["dpo", "orpo", "simpo", "kto"])
def test_replies_are_not_compared_where_a_line_is_about_one_reply(objective: str) -> None:
    values = {
        "name": "tiny", "base_model": "random:tiny-llama", "train": {"objective": objective},
        "data": {"sources": [{"path": "a.jsonl"}], "deduplicate": {"compare": "replies"}},
    }  # fmt: skip
    with pytest.raises(
        ValidationError, match=rf"compare: replies is for conversations, .* {objective}, .* compare con"
    ):
        PipelineSpec.model_validate(values)
    PipelineSpec.model_validate({**values, "train": {"objective": "sft"}})


def test_only_with_compare_replies_a_corpus_has_another_key(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    prepare = next(stage for stage in STAGES if stage.name == "prepare")

    def settings(**data: Any) -> Any:
        sources = [{"path": str(tmp_path / "a.jsonl")}]
        values = {"name": "tiny", "base_model": "random:tiny-llama", "data": {"sources": sources, **data}}
        return prepare.settings(PipelineSpec.model_validate(values))["data"]

    assert "deduplicate" not in settings()
    assert settings(deduplicate="drop")["deduplicate"] == {
        "action": "drop", "threshold": 0.8, "compare": "conversations",
    }  # fmt: skip
    # "replies" stood for all replies of a conversation together.
    assert settings(deduplicate={"compare": "replies"})["deduplicate"]["compare"] == "single replies"
