"""Near-duplicates in `prepare`: reported, kept on one side of the split, or set aside; and groups."""

import itertools
import json
import random
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
from workflows.corpus.revision.near_duplicates import find_near_duplicates, text_of
from workflows.corpus.rows import number_of, place_of
from workflows.figures import PrepareFigures
from workflows.spec.data import DeduplicateSpec
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
    shingles = Shingles.of([text_of(json.loads(row["messages"]), "conversations") for row in rows])
    clusters = [{place} for place in range(len(rows))]
    for one, other in itertools.combinations(range(len(rows)), 2):
        if similarity(shingles[one], shingles[other]) >= threshold and clusters[one] is not clusters[other]:
            clusters[one] |= clusters[other]
            for place in clusters[one]:
                clusters[place] = clusters[one]
    numbers = [number_of(row["source"], row["line"]) for row in rows]
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
    length = {
        number_of(row["source"], row["line"]): len(text_of(json.loads(row["messages"]), "conversations"))
        for row in everything
    }
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


def test_replies_alone_can_be_compared(run: Callable[..., Any], tiny: Spec, tmp_path: Path) -> None:
    draw = random.Random(1)
    lines = []
    for number in range(40):
        asked, said = (" ".join(draw.choices(WORDS, k=20)) for _ in range(2))
        said = said if number % 2 else "we are open from nine to five on all days but sunday"
        lines.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
    file = tmp_path / "replies.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny["data"] = {"sources": [{"path": str(file)}], "deduplicate": {"action": "drop", "compare": "replies"}}
    done, store = run("prepare", tiny)
    assert len(rows_of(store, done["prepare"].key)) == 21


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


def test_the_shares_of_keys_make_no_difference(cluster: None, run: Callable[..., Any], alike: Spec) -> None:
    """As over many files and shares of keys on several nodes."""
    done, store = run("prepare", alike)
    path = store.path("prepare", done["prepare"].key, "corpus")
    files = pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet", partitioning="hive").files
    board = Board.remote()  # type: ignore[attr-defined]
    found = [
        find_near_duplicates(pyarrow.fs.LocalFileSystem(), files, DeduplicateSpec(), board, bytes_of_a_share=size)
        for size in (64 << 20, 1 << 13)
    ]
    ray.kill(board)
    assert len(found[0].members) > 100
    for name in ("members", "kept", "similarity"):
        assert getattr(found[0], name).tolist() == getattr(found[1], name).tolist()
