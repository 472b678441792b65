"""Near-duplicates in `prepare`: reported, kept on one side of the split, or set aside; and groups."""

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.fs
import pytest
import ray

from models.text.shingles import Shingles, similarity
from workflows.cluster.board import Board
from workflows.corpus.inspection.tally import read_inspection
from workflows.corpus.inspection.text import inspection_text
from workflows.corpus.revision.near_duplicates import find_near_duplicates, replies_of, text_of
from workflows.corpus.rows import number_of, place_of, reply_numbers, reply_of
from workflows.figures import PrepareFigures
from workflows.spec.data import Compared, DeduplicateSpec
from workflows.stage import StageFailed

Spec = dict[str, Any]
WORDS = [f"w{number}" for number in range(300)]


def conversations(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random conversations; every third one is the one before it with a few words replaced, twice in a row."""
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    for number in range(count):
        if number % 3:
            turns = [message["content"].split() for message in found[-1]["messages"]]
            for _ in range(draw.randrange(3)):
                turn = draw.choice(turns)
                turn[draw.randrange(len(turn))] = draw.choice(WORDS)
        else:
            turns = [draw.choices(WORDS, k=draw.randrange(5, 30)) for _ in range(4)]
        messages = [
            {"role": role, "content": " ".join(turn)}
            for role, turn in zip(itertools.cycle(["user", "assistant"]), turns, strict=False)
        ]
        found.append({"user": f"u{number // 2 % 20}", "messages": messages})
    return found


@pytest.fixture
def alike(tiny: Spec, tmp_path: Path) -> Spec:
    """A pipeline on 300 such conversations in two files."""
    everything = conversations(300)
    names = []
    for number, part in enumerate((everything[:120], everything[120:])):
        file = tmp_path / f"part{number}.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in part))
        names.append(str(file))
    tiny["data"] = {"sources": [{"path": name} for name in names], "held_out_share": 0.3}
    return tiny


def rows_of(store: Any, key: str) -> list[dict[str, Any]]:
    path = store.path("prepare", key, "corpus")
    parts = pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet", partitioning="hive")
    return [row for row in parts.to_table().to_pylist() if row["split"] in ("train", "held_out")]


def clusters_of(rows: list[dict[str, Any]], threshold: float = 0.8) -> list[set[int]]:
    """By all pairs: the numbers of the rows of each cluster."""
    numbers = [number_of(row["source"], row["line"]) for row in rows]
    return clusters_by_all_pairs(numbers, [text_of(json.loads(row["messages"])) for row in rows], threshold)


def clusters_by_all_pairs(numbers: list[int], texts: list[str], threshold: float = 0.8) -> list[set[int]]:
    shingles = Shingles.of(texts)
    clusters = [{place} for place in range(len(texts))]
    for one, other in itertools.combinations(range(len(texts)), 2):
        if similarity(shingles[one], shingles[other]) >= threshold and clusters[one] is not clusters[other]:
            clusters[one] |= clusters[other]
            for place in clusters[one]:
                clusters[place] = clusters[one]
    return [{numbers[place] for place in cluster} for cluster in {id(each): each for each in clusters}.values()]


def test_they_are_reported_and_nothing_changes(run: Callable[..., Any], alike: Spec) -> None:
    done, store = run("prepare", alike)
    found = PrepareFigures.from_json(done["prepare"].figures).near_duplicates
    assert found is not None
    rows = rows_of(store, done["prepare"].key)
    expected = [cluster for cluster in clusters_of(rows) if len(cluster) > 1]
    side = {number_of(row["source"], row["line"]): row["split"] for row in rows}
    both = [cluster for cluster in expected if len({side[number] for number in cluster}) == 2]
    assert len(rows) == 300
    assert found.clusters == len(expected) > 60
    assert found.conversations == sum(map(len, expected))
    assert found.on_both_sides == sum(side[number] == "held_out" for cluster in both for number in cluster) > 20


def test_split_keeps_them_on_one_side(run: Callable[..., Any], alike: Spec) -> None:
    alike["data"]["deduplicate"] = "split"
    done, store = run("prepare", alike)
    rows = rows_of(store, done["prepare"].key)
    side = {number_of(row["source"], row["line"]): row["split"] for row in rows}
    assert len(rows) == 300
    assert Counter(side.values())["held_out"] > 40
    for cluster in clusters_of(rows):
        assert len({side[number] for number in cluster}) == 1
    assert done["prepare"].figures["near_duplicates"]["on_both_sides"] == 0


def test_split_with_groups_keeps_both_together(run: Callable[..., Any], alike: Spec) -> None:
    alike["data"] |= {"deduplicate": "split", "group_by": "user", "held_out_share": 0.5}
    files = [Path(source["path"]) for source in alike["data"]["sources"]]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    for number, line in enumerate(lines):  # a user's conversations are alike among themselves, mostly
        line["user"] = f"u{number // 3 % 40 if number % 50 else 0}"
    first = Path(alike["data"]["sources"][0]["path"])
    first.write_text("".join(json.dumps(line) + "\n" for line in lines))
    alike["data"]["sources"] = [{"path": str(first)}]
    done, store = run("prepare", alike)
    rows = rows_of(store, done["prepare"].key)
    by_user: dict[str, set[str]] = {}
    for row in rows:
        by_user.setdefault(row["group"], set()).add(row["split"])
    side = {number_of(row["source"], row["line"]): row["split"] for row in rows}
    assert len(by_user) > 30
    assert all(len(sides) == 1 for sides in by_user.values())
    assert all(len({side[number] for number in cluster}) == 1 for cluster in clusters_of(rows))


def test_drop_keeps_the_longest_and_names_it(run: Callable[..., Any], alike: Spec) -> None:
    alike["data"]["deduplicate"] = {"action": "report", "threshold": 0.8}
    before, store = run("prepare", alike)
    everything = rows_of(store, before["prepare"].key)
    length = {number_of(row["source"], row["line"]): len(text_of(json.loads(row["messages"]))) for row in everything}
    alike["data"]["deduplicate"] = "drop"
    done, store = run("prepare", alike)
    kept = {number_of(row["source"], row["line"]) for row in rows_of(store, done["prepare"].key)}
    files = [source["path"] for source in alike["data"]["sources"]]
    clusters = clusters_of(everything)
    assert len(kept) == len(clusters)
    for cluster in clusters:
        [only] = kept & cluster
        assert length[only] == max(length[number] for number in cluster)
    with store.filesystem.open_input_stream(store.path("prepare", done["prepare"].key, "quarantine.jsonl")) as stream:
        records = [json.loads(line) for line in stream.read().decode().splitlines()]
    assert len(records) == 300 - len(clusters)
    kept_of = {number: min(kept & cluster) for cluster in clusters for number in cluster}
    for record in records:
        source, line = place_of(kept_of[number_of(files.index(record["file"]), record["line"])])
        assert f"near-duplicate of {files[source]}:{line} (Jaccard index " in record["reason"]
    assert done["prepare"].figures["left_out"] == len(records)


@pytest.fixture
def repeating(tiny: Spec, tmp_path: Path) -> Spec:
    """A pipeline on 120 conversations in two files: a third of the replies are another one with some words replaced,
    many are the same short one, and some conversations have a single reply.
    """
    draw = random.Random(2)
    replies: list[str] = []
    lines = []
    for number in range(120):
        messages = []
        for _ in range(1 if number % 6 == 0 else 3):
            said = draw.choices(WORDS, k=draw.randrange(10, 40))
            if replies and draw.random() < 0.35:
                said = draw.choice(replies).split()
                for _ in range(draw.randrange(3)):
                    said[draw.randrange(len(said))] = draw.choice(WORDS)
            replies.append(" ".join(said))
            asked = " ".join(draw.choices(WORDS, k=8))
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": replies[-1]}]
        if number % 3:
            messages += [{"role": "user", "content": "bye"}, {"role": "assistant", "content": "you are welcome bye"}]
        lines.append({"messages": messages})
    sources = []
    for number, part in enumerate((lines[:50], lines[50:])):
        file = tmp_path / f"replies{number}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in part))
        sources.append({"path": str(file)})
    tiny["data"] = {"sources": sources, "held_out_share": 0.3, "deduplicate": {"compare": "replies"}}
    return tiny


def repeated_in(rows: list[dict[str, Any]]) -> tuple[list[set[int]], dict[int, str]]:
    """By all pairs: the clusters of the replies, by their numbers, and the texts of all of them."""
    texts: dict[int, str] = {}
    for row in rows:
        for place, text in replies_of(json.loads(row["messages"])):
            texts[int(reply_numbers(number_of(row["source"], row["line"]), place))] = text
    found = clusters_by_all_pairs(list(texts), list(texts.values()))
    return [cluster for cluster in found if len(cluster) > 1], texts


def test_replies_alike_are_reported_with_what_they_repeat(
    run: Callable[..., Any], repeating: Spec, capsys: Any
) -> None:
    done, store = run("prepare", repeating)
    found = PrepareFigures.from_json(done["prepare"].figures).near_duplicates
    rows = rows_of(store, done["prepare"].key)
    clusters, texts = repeated_in(rows)
    held_out = {number_of(row["source"], row["line"]) for row in rows if row["split"] == "held_out"}
    is_held_out = {number: reply_of(number)[0] in held_out for number in texts}
    both = [cluster for cluster in clusters if len({is_held_out[number] for number in cluster}) == 2]
    members = [number for cluster in clusters for number in cluster]
    assert len(clusters) > 30
    assert found is not None
    assert (found.replies, found.clusters) == (len(members), len(clusters))
    assert found.conversations == len({reply_of(number)[0] for number in members})
    same = Counter(texts.values())
    assert found.exact == sum(same[texts[number]] > 1 for number in members) > 5
    assert found.on_both_sides == sum(is_held_out[number] for cluster in both for number in cluster) > 5
    assert f"{found.on_both_sides} held-out replies have a near-duplicate among those to train" in (
        capsys.readouterr().out.replace("\n", " ")
    )
    inspection = read_inspection(store, done["prepare"].key)
    assert inspection is not None
    total = inspection.total
    assert (total.near_duplicate_replies, total.exact_duplicate_replies) == (found.replies, found.exact)
    assert (total.near_duplicates, total.exact_duplicates) == (0, 0)
    assert "near-duplicate replies, for example:" in inspection_text(inspection)
    examples = [each for each in inspection.examples if each.fault == "near_duplicate_reply"]
    assert len(examples) == 10
    files = [source["path"] for source in repeating["data"]["sources"]]
    said = {
        f"{files[source]}:{line}, message {message}": f"assistant: {text}"
        for number, text in texts.items()
        for row, message in [reply_of(number)]
        for source, line in [place_of(row)]
    }
    for each in examples:
        assert each.text == said[each.place]
        assert each.other == said[each.of.partition(" (")[0]]


def test_of_replies_alike_the_longest_alone_is_trained_on(
    run: Callable[..., Any], repeating: Spec, tmp_path: Path
) -> None:
    """The corpus is that of lines with `train: false` on the others."""
    everything, store = run("prepare", repeating)
    clusters, texts = repeated_in(rows_of(store, everything["prepare"].key))
    kept = {min(cluster, key=lambda number: (-len(texts[number]), number)) for cluster in clusters}
    others = {reply_of(number) for cluster in clusters for number in cluster - kept}
    marked = {
        **repeating,
        "data": {**repeating["data"], "max_bad_share": 1.0, "deduplicate": "report", "sources": []},
    }
    for source, path in enumerate(each["path"] for each in repeating["data"]["sources"]):
        lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
        for line, record in enumerate(lines, 1):
            for place, message in enumerate(record["messages"]):
                if (number_of(source, line), place) in others:
                    message["train"] = False
        file = tmp_path / f"marked{source}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        marked["data"]["sources"].append({"path": str(file)})
    repeating["data"]["deduplicate"]["action"] = "drop"
    done, store = run("prepare", repeating)
    expected, _ = run("prepare", marked)
    names = ("input_ids", "supervised", "piece_lengths", "piece_parents", "num_tokens", "num_targets", "truncated",
             "num_messages", "tools", "language", "private", "flags")  # fmt: skip
    rows, theirs = (
        {(row["source"], row["line"]): row for row in rows_of(store, each["prepare"].key)}
        for each in (done, expected)
    )
    assert rows.keys() == theirs.keys()
    for place, row in rows.items():
        assert [row[name] for name in names] == [theirs[place][name] for name in names]
        assert json.loads(row["messages"]) == json.loads(theirs[place]["messages"])
    figures = PrepareFigures.from_json(done["prepare"].figures)
    assert figures.left_out == 120 - len(rows) > 2
    assert (figures.quarantined, figures.near_duplicates and figures.near_duplicates.on_both_sides) == (0, 0)
    original = r"message 1 is a near-duplicate of .*:\d+, message \d+ \(Jaccard index \d\.\d\d\)"
    reason = rf"data\.deduplicate: no other reply to train on is left; {original}"
    assert re.fullmatch(reason, figures.set_aside[0].example)


def test_conversations_with_replies_alike_come_on_one_side(run: Callable[..., Any], repeating: Spec) -> None:
    repeating["data"]["deduplicate"]["action"] = "split"
    for source in repeating["data"]["sources"]:  # fewer, so that not all of them are joined
        source["limit"] = 30
    done, store = run("prepare", repeating)
    rows = rows_of(store, done["prepare"].key)
    side = {number_of(row["source"], row["line"]): row["split"] for row in rows}
    clusters, _ = repeated_in(rows)
    joined = [{reply_of(number)[0] for number in cluster} for cluster in clusters]
    assert len([conversations for conversations in joined if len(conversations) > 1]) > 5
    assert all(len({side[number] for number in conversations}) == 1 for conversations in joined)
    assert len(rows) == 60
    assert len(set(side.values())) == 2


def test_short_texts_are_no_near_duplicates(run: Callable[..., Any], tiny: Spec, tmp_path: Path) -> None:
    file = tmp_path / "few.jsonl"
    texts = ("hi", "\U0001f600", "so what is new then")
    file.write_text("".join(json.dumps({"prompt": text, "completion": text}) + "\n" for text in texts))
    tiny["data"] = {"sources": [{"path": str(file)}], "deduplicate": "drop"}
    done, store = run("prepare", tiny)
    assert len(rows_of(store, done["prepare"].key)) == 3
    assert done["prepare"].figures["near_duplicates"]["conversations"] == 0


def test_a_key_of_group_by_that_some_lines_lack(run: Callable[..., Any], alike: Spec, capsys: Any) -> None:
    first = Path(alike["data"]["sources"][0]["path"])
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    for line in lines[::2]:
        del line["user"]
    first.write_text("".join(json.dumps(line) + "\n" for line in lines))
    alike["data"]["group_by"] = "user"
    run("prepare", alike)
    assert (
        "60 of 300 conversations have no 'user' (data.group_by) and are split by their text"
        in capsys.readouterr().out
    )
    alike["data"]["group_by"] = "usr"
    with pytest.raises(StageFailed, match=r"^data\.group_by: none of 300 conversations has 'usr'; name a key"):
        run("prepare", alike)


@pytest.mark.parametrize(("compare", "pipeline"), [("conversations", "alike"), ("replies", "repeating")])
def test_the_shares_of_keys_make_no_difference(
    cluster: None, run: Callable[..., Any], request: Any, compare: Compared, pipeline: str
) -> None:
    """As over many files and shares of keys on several nodes."""
    done, store = run("prepare", request.getfixturevalue(pipeline))
    path = store.path("prepare", done["prepare"].key, "corpus")
    files = pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet", partitioning="hive").files
    board = Board.remote()  # type: ignore[attr-defined]
    found = [
        find_near_duplicates(
            pyarrow.fs.LocalFileSystem(), files, DeduplicateSpec(compare=compare), board, bytes_of_a_share=size
        )
        for size in (64 << 20, 1 << 13)
    ]
    ray.kill(board)
    assert len(found[0].members) > 80
    for name in ("members", "kept", "similarity"):
        assert getattr(found[0], name).tolist() == getattr(found[1], name).tolist()
