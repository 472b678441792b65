"""Documents as passages, and the passages that a question is about."""

from pathlib import Path

import pytest

from models.chat.knowledge import Passage
from models.text.shingles import word_count
from serve.knowledge.documents import read_documents
from serve.knowledge.retrieval import PASSAGES_FILE, Knowledge, read_passages, terms, write_passages
from workflows.endpoint.knowledge import read_knowledge, served_knowledge
from workflows.endpoint.status import deployment_key
from workflows.spec import PipelineSpec
from workflows.spec.paths import local_paths, with_paths
from workflows.stage import StageFailed
from workflows.store import Store

needs_bm25s = pytest.mark.skipif(
    __import__("importlib").util.find_spec("bm25s") is None, reason="needs bm25s: run make install"
)
RULES = "# Shop\n\n## Returns\nGoods can be returned within 45 days.\n\n## Dogs\nDogs are welcome.\n"


def test_documents_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "de").mkdir()
    (tmp_path / "rules.md").write_text(RULES)
    (tmp_path / "de" / "hunde.TXT").write_text("\ufeffHunde sind willkommen.\n")
    (tmp_path / "facts.jsonl").write_text('["Toy", "height", "12 cm"]\n\n"A text."\n["Toy", "colour", "red"]\n')
    (tmp_path / ".hidden.md").write_text("Hidden.")
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "empty.txt").write_text(" \n---\n")
    assert read_documents(str(tmp_path), 120) == [
        Passage("de/hunde.TXT", "Hunde sind willkommen."),
        Passage("Toy", "height: 12 cm\ncolour: red"),
        Passage("facts.jsonl", "A text."),
        Passage("rules.md", "# Shop\n\n## Returns\nGoods can be returned within 45 days."),
        Passage("rules.md", "## Dogs\nDogs are welcome."),
    ]
    assert read_documents(str(tmp_path / "de" / "hunde.TXT"), 120)[0].name == "hunde.TXT"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One two.\n\nThree four.\n\nFive six.", ["One two.\n\nThree four.", "Five six."]),
        ("One two three. Four five? Six.", ["One two three.", "Four five? Six."]),
        ("one two three four five six", ["one two three four", "five six"]),
        ("一二三。四五六。", ["一二三。", "四五六。"]),
        ("一二三四五六", ["一二三四", "五六"]),
    ],
)
def test_long_texts_are_cut_at_the_best_place(tmp_path: Path, text: str, pieces: list[str]) -> None:
    (tmp_path / "a.txt").write_text(text)
    found = [passage.text for passage in read_documents(str(tmp_path), 4)]
    assert found == pieces
    assert all(word_count(piece) <= 4 for piece in found)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"\xff\xfe", "a.txt is not UTF-8: "),
        ("a.jsonl", b'"a"\n{"name": "b"}', "a.jsonl:2.text is null; it must be a text"),
        ("a.jsonl", b'{"text": ', "a.jsonl:1 is not JSON: "),
        ("a.jsonl", b'["a", "b"]', "a.jsonl:1 is a list of 2; a passage is"),
        ("a.pdf", b"", "there is no .txt, .md or .jsonl file with a text in it"),
    ],
)
def test_documents_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageFailed) as error:
        read_knowledge(spec_of(tmp_path).serve.knowledge)  # type: ignore[arg-type]
    assert str(error.value).startswith(f"serve.knowledge.path: {tmp_path}: {reason}")


def test_terms() -> None:
    assert terms("Returned, RETURNS!") == ["return", "return"]
    assert terms("开门时间 is 十") == ["开门", "门时", "时间", "is", "十"]


@needs_bm25s
def test_passages_that_a_question_is_about() -> None:
    passages = [
        Passage("", "Goods can be returned within 45 days."),
        Passage("", "Dogs are welcome in the shop."),
        Passage("Lantern", "It costs 63 euros."),
        Passage("", "恋恋笔记本的导演是尼克·卡索维茨。"),
    ]
    returns, dogs, lantern, film = passages
    knowledge = Knowledge(passages, most=2, min_share=0.25)
    assert knowledge.find(["Is a return possible?"]) == [returns]
    assert knowledge.find(["Does the dog return?"])[:2] == [dogs, returns]
    assert knowledge.find(["I saw a lantern.", "And dogs?"]) == [dogs, lantern]
    assert knowledge.find(["导演是谁？"]) == [film]
    assert knowledge.find(["xyzzy"]) == knowledge.find(["?!"]) == knowledge.find([]) == []
    assert Knowledge(passages, 1, 0.25).find(["I saw a lantern.", "And dogs?"]) == [dogs]
    assert Knowledge(passages, 2, 0.9).find(["I saw a lantern.", "And dogs?"]) == [dogs]
    assert Knowledge(passages[:1], 4, 0.25).find(["Goods?"]) == [returns]  # a single passage


def spec_of(folder: Path, **knowledge: object) -> PipelineSpec:
    given = {"path": str(folder), **knowledge}
    return PipelineSpec.model_validate(
        {
            "name": "shop",
            "base_model": "tiny:llama",
            "data": {"sources": [{"path": "talks.jsonl"}]},
            "serve": {"knowledge": given},
        }
    )


def test_passages_travel_through_the_store(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    file = tmp_path / "rules" / "rules.md"
    file.write_text(RULES)
    spec, store = spec_of(tmp_path / "rules", passages=2), Store(str(tmp_path / "store"))
    served = served_knowledge(spec.serve, store)
    assert served is not None
    assert (served.max_passages, served.min_share) == (2, 0.25)
    passages = read_passages(Path(served.folder))
    assert passages == read_documents(str(tmp_path / "rules"), 120)
    assert (Path(served.folder) / PASSAGES_FILE).read_bytes() == write_passages(passages)
    assert served_knowledge(spec.model_copy(update={"serve": type(spec.serve)()}).serve, store) is None

    key = deployment_key(spec, "release")
    assert deployment_key(spec, "release") == key
    file.write_text(RULES.replace("45", "46"))
    assert deployment_key(spec, "release") != key  # the endpoint is replaced
    assert served_knowledge(spec.serve, store) != served  # and the older one keeps what it reads


def test_the_folder_is_a_path_of_the_pipeline(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert local_paths(spec)["serve.knowledge.path"] == str(tmp_path)
    moved = with_paths(spec, {"serve.knowledge.path": "files/3/rules"})
    assert moved.serve.knowledge is not None
    assert moved.serve.knowledge.path == "files/3/rules"
    assert "knowledge" not in type(spec.serve)().result_fields()  # keys of older deployments stay valid
