"""`prepare` on a real Ray cluster: file formats, layouts, quarantine, split."""

import bz2
import csv
import json
import lzma

import datasets
import pyarrow.dataset
import pytest
from conftest import sums

from workflows.corpus.files import text as file_text
from workflows.stage import StageFailed

ALPACA = {"instruction": "Say hello", "input": "in French", "output": "Bonjour!"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}


def rows_of(store, key, split):
    path = store.path("prepare", key, "corpus", f"split={split}")
    return pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet").to_table().to_pylist()


def test_bad_lines_are_set_aside_with_file_line_and_reason(run, tiny, tmp_path):
    mixed = tmp_path / "mixed.jsonl"
    bad = {
        2: ("{broken", "not JSON"),
        4: (json.dumps({"messages": [{"role": "robot", "content": "x"}]}), "unknown role 'robot'"),
        5: (json.dumps({"messages": [{"role": "user", "content": "only a question"}]}), "nothing to learn"),
        7: (json.dumps({"text": "no layout"}), "unknown layout"),
    }
    good = {1: ALPACA, 3: SHAREGPT, 6: {"messages": [*ALPACA_MESSAGES]}}
    lines = [bad[n][0] if n in bad else json.dumps(good[n]) for n in range(1, 8)]
    mixed.write_text("\n".join(lines) + "\n")
    tiny["data"]["sources"].append({"path": str(mixed)})
    tiny["data"]["max_bad_share"] = 0.1
    done, store = run("prepare", tiny)
    figures = done["prepare"].figures
    assert figures["conversations"] + figures["held_out_conversations"] == 123
    assert figures["quarantined"] == 4
    with store.filesystem.open_input_stream(store.path("prepare", done["prepare"].key, "quarantine.jsonl")) as stream:
        records = {record["line"]: record for record in map(json.loads, stream.read().decode().splitlines())}
    assert sorted(records) == sorted(bad)
    for line, (text, reason) in bad.items():
        assert records[line]["file"] == str(mixed)
        assert reason in records[line]["reason"]
        assert records[line]["text"] == text
    told = {group["line"]: group for group in figures["set_aside"]}
    assert sorted(told) == sorted(bad)
    assert all(bad[line][1] in group["example"] and group["count"] == 1 for line, group in told.items())


ALPACA_MESSAGES = [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you!"}]


def test_too_many_bad_lines_fail_with_the_numbers(run, tiny, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n" * 10)
    tiny["data"]["sources"].append({"path": str(broken)})
    with pytest.raises(StageFailed, match=r"data\.max_bad_share: 10 of 130 lines ") as raised:
        run("prepare", tiny)
    assert f"10 x {broken}:1: not JSON" in str(raised.value)
    assert "quarantine.jsonl" in str(raised.value)


def test_a_new_models_tokenizer_does_not_stand_before_the_reason(run, tiny, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n" * 10)
    tiny |= {"base_model": "new", "data": {"sources": [{"path": str(broken)}]}}
    with pytest.raises(StageFailed, match=r"(?s)none of 10 lines can be used.*10 x .*broken\.jsonl:1: not JSON"):
        run("prepare", tiny)


def test_the_split_is_the_conversations_own(run, tiny):
    done, store = run("prepare", tiny)
    key = done["prepare"].key
    train = {row["messages"] for row in rows_of(store, key, "train")}
    held_out = {row["messages"] for row in rows_of(store, key, "held_out")}
    assert train
    assert held_out
    assert not train & held_out
    # With fewer lines of the same file, every conversation stays on its side of the split.
    tiny["data"]["sources"][0]["limit"] = 60
    fewer, _ = run("prepare", tiny)
    assert {row["messages"] for row in rows_of(store, fewer["prepare"].key, "held_out")} <= held_out
    assert {row["messages"] for row in rows_of(store, fewer["prepare"].key, "train")} <= train


def test_a_truncated_file_is_named(run, tiny, sums_file):
    sums_file.write_bytes(sums_file.read_bytes()[:-200])
    with pytest.raises(StageFailed, match=r"sums\.jsonl\.gz:\d+: the file breaks off"):
        run("prepare", tiny)


def test_a_reply_that_must_not_be_cut_ends_the_stage_by_name(run, tiny):
    tiny["data"] |= {"cut_replies": "fail", "max_length": 16}
    with pytest.raises(StageFailed, match=r"^data\.cut_replies: .*jsonl\S*:\d+: a reply ends at token \d+, beyond"):
        run("prepare", tiny)


def test_files_without_lines_are_reported(run, tiny, sums_file):
    sums_file.write_bytes(b"")
    with pytest.raises(StageFailed, match=r"^data\.sources: no lines in "):
        run("prepare", tiny)


def test_the_same_conversations_in_all_forms_have_the_same_ids(run, tiny, tmp_path):
    records = sums(200)
    records[7]["messages"][0]["content"] = 'Is 1 "2"?\n\u00e9\U0001f600, 2024-01-02, 007 {[}'
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    forms = {
        "lines.jsonl": lines.encode(),
        "line.json": json.dumps(records).encode(),
        "pretty.json": json.dumps(records, indent=2).encode(),
        "wide.jsonl": lines.encode("utf-16"),
        "named_as_gzip.jsonl.gz": bz2.compress(lines.encode()),
        "packed.json.xz": lzma.compress(json.dumps(records, indent=1).encode()),
    }
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["messages"])
        writer.writerows([json.dumps(record["messages"])] for record in records)
    saved = datasets.Dataset.from_list(records)
    saved.to_parquet(tmp_path / "table.parquet")
    saved.save_to_disk(tmp_path / "saved")
    sources = [*forms, "table.csv", "table.parquet", "saved"]
    tiny["data"]["sources"] = [{"path": str(tmp_path / name)} for name in sources]
    done, store = run("prepare", tiny)
    assert done["prepare"].figures["set_aside"] == []
    read = [{} for _ in sources]
    for split in ("train", "held_out"):
        for row in rows_of(store, done["prepare"].key, split):
            read[row["source"]][row["line"]] = (split, row["input_ids"], row["supervised"])
    told = [[rows[line] for line in sorted(rows)] for rows in read]
    assert [len(rows) for rows in told] == [200] * len(sources)
    assert [name for name, rows in zip(sources, told, strict=True) if rows != told[0]] == []


def test_a_long_line_is_set_aside_without_losing_a_worker(run, tiny, tmp_path):
    long = tmp_path / "long.jsonl"
    lines = [json.dumps(record).encode() for record in sums(3)]
    long.write_bytes(b"\n".join([*lines[:2], b'{"messages": "' + b"x" * file_text.MAX_BYTES + b'"}', lines[2]]))
    tiny["data"]["sources"].append({"path": str(long)})
    done, _ = run("prepare", tiny)
    figures = done["prepare"].figures
    assert figures["conversations"] + figures["held_out_conversations"] == 123
    assert [(group["line"], group["example"]) for group in figures["set_aside"]] == [(3, file_text.TOO_LONG)]
