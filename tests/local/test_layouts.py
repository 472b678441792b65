"""`prepare` with foreign layouts and key names, up to the corpus."""

import json

import pyarrow.dataset
import pytest

from workflows.stage import StageFailed


def rows_of(store, key):
    path = store.path("prepare", key, "corpus")
    parts = pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet", partitioning="hive")
    return sorted(parts.to_table().to_pylist(), key=lambda row: row["line"])


def lines_of(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"sources": [{"path": str(path)}], "held_out_share": 0.3}


def layouts(number):
    """Records, and the messages that they should become."""
    question = f"Hi {number}"
    system, asked, said = (
        {"role": role, "content": text}
        for role, text in [("system", "Sell."), ("user", question), ("assistant", "Hello.")]
    )
    history = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    rude = {"role": "assistant", "content": "Go."}
    sharegpt = [{"from": "human", "value": question}, {"from": "gpt", "value": "Hello."}]
    return [
        ({"query": question, "response": "Hello.", "history": [["Who?", "Me."]]}, [*history, asked, said]),
        ({"system": "Sell.", "conversations": sharegpt}, [system, asked, said]),
        ({"messages": json.dumps([asked, said])}, [asked, said]),
        ({"messages": [asked, {**rude, "weight": 0}, asked, said]}, [asked, {**rude, "train": False}, asked, said]),
        ({"messages": [asked, asked, said]}, [{**asked, "content": f"{question}\n\n{question}"}, said]),
    ]


def test_each_line_may_have_a_layout_of_its_own(run, tiny, tmp_path):
    read = [each for number in range(8) for each in layouts(number)]
    tiny["data"] = lines_of(tmp_path / "mixed.jsonl", [record for record, _ in read])
    done, store = run("prepare", tiny)
    rows = rows_of(store, done["prepare"].key)
    assert [json.loads(row["messages"]) for row in rows] == [messages for _, messages in read]
    assert sum(rows[3]["supervised"]) == sum(rows[2]["supervised"])  # the rude reply is not supervised


def test_names_of_keys_reach_new_tokenizers_and_mismatched_replies(run, tiny, tmp_path):
    records = [{"q": f"What is {n}?", "a": f"Ladder {n}", "good": str(n % 2 == 0)} for n in range(60)]
    data = lines_of(tmp_path / "judged.jsonl", records)
    tiny |= {"base_model": "new", "data": data | {"fields": {"prompt": "q", "completion": "a", "label": "good"}}}
    tiny["train"] |= {"objective": "kto", "adapter": None}
    tiny["new_model"] = {"vocabulary": 400, "hidden_size": 32}
    done, store = run("prepare", tiny)
    rows = rows_of(store, done["prepare"].key)
    assert [row["desirable"] for row in rows] == [n % 2 == 0 for n in range(60)]
    assert all(row["other_input_ids"] not in (None, row["input_ids"]) for row in rows)
    assert max(len(row["input_ids"]) for row in rows) < 30  # bytes alone would be longer, so the words were used


def test_knowledge_stands_in_the_prompt(run, tiny, tmp_path, capsys):
    talk = [{"role": "user", "content": "How tall is it?"}, {"role": "assistant", "content": "12 cm [1]."}]
    records = [{"messages": talk, "facts": [["Toy", "height", f"{n} cm"]]} for n in range(30)]
    tiny["data"] = lines_of(tmp_path / "known.jsonl", [*records, {"messages": talk}]) | {"knowledge": "facts"}
    done, store = run("prepare", tiny)
    assert "1 of 31 conversations have no 'facts' (data.knowledge)" in capsys.readouterr().out
    rows = rows_of(store, done["prepare"].key)
    known = {"role": "system", "content": "<sources>\n[1] Toy\nheight: 29 cm\n</sources>"}
    assert [json.loads(row["messages"]) for row in rows[29:]] == [[known, *talk], talk]
    assert sum(rows[29]["supervised"]) == sum(rows[30]["supervised"])  # the passages are not supervised
    tiny["data"]["knowledge"] = "fact"
    with pytest.raises(StageFailed, match=r"^data\.knowledge: none of 31 conversations has 'fact'; name a key"):
        run("prepare", tiny)
