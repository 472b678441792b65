"""Overlaps of texts with reference texts: what is found, where it stands, what it costs."""

import pickle
import random
import unicodedata

import numpy as np
import pytest

from models.text.overlap import MIN_WORDS, SIZE, OverlapIndex, excerpt
from models.text.places import places
from models.text.run_index import RunHashes, RunIndex
from models.text.shingles import WordRuns, words
from models.text.texts import Texts

LONG = "My uncle bought me a gift card in your shop last May. For how long can it be used?"
SHORT = "What is the name of your loyalty scheme?"
TINY = "Do you repair?"
INDEX = OverlapIndex.of(Texts.of([LONG, SHORT, TINY]), ["q.jsonl:1", "q.jsonl:2", "q.jsonl:3"])


def found(*turns: str) -> list[tuple[int, int, str]]:
    """Reference, words, and the text of each overlap."""
    return [(each.reference, each.words, excerpt(turns, each)[1]) for each in INDEX.find(Texts.of([turns]))]


def test_the_references_have_the_lengths_that_these_tests_need() -> None:
    assert [len(words(text)) for text in (LONG, SHORT, TINY)] == [19, 8, 3]
    assert (SIZE, MIN_WORDS) == (13, 7)


@pytest.mark.parametrize("before", ["", "Hello, I have one. "])
def test_word_for_word_with_other_case_and_punctuation(before: str) -> None:
    assert found("Hi", f"{before}{LONG} Thanks!") == [(0, 19, LONG.rstrip("?"))]
    assert found(f"{before}{LONG.upper().replace('.', ' -- ')}\n")[0][:2] == (0, 19)
    assert found(before + SHORT.lower()) == [(1, 8, "what is the name of your loyalty scheme")]


def test_split_over_two_turns() -> None:
    first, second = LONG[:30], LONG[30:]
    assert found(f"Hello. {first}", f"{second} Thanks") == [(0, 19, f"{first}\n{second}".rstrip("?"))]
    assert found("What is the name", "of your loyalty scheme") == [(1, 8, "What is the name\nof your loyalty scheme")]
    # With a reply between, no part is long enough.
    assert found("What is the name", "Go on.", "of your loyalty scheme") == []


def test_13_words_of_a_longer_reference_are_enough_and_12_are_not() -> None:
    part = " ".join(LONG.split()[2:15])
    assert found(f"She said {part} and more") == [(0, 13, part)]
    assert found(f"She said {part.rpartition(' ')[0]} and more") == []


def test_a_shorter_reference_must_be_there_as_a_whole() -> None:
    assert found("What is the name of your loyalty card?") == []
    assert found("How is your loyalty scheme called?") == []


def test_a_reference_below_the_minimum_must_be_a_whole_turn() -> None:
    assert found("Hello.", "do you REPAIR") == [(2, 3, "do you REPAIR")]
    assert found("Tell me, do you repair tents?") == []
    assert found("Do you", "repair?") == []


def test_two_parts_with_a_few_words_between_are_one_overlap() -> None:
    text = f"{' '.join(LONG.split()[:13])} oh well {' '.join(LONG.split()[5:])}"
    [overlap] = INDEX.find(Texts.of([text]))
    assert (overlap.words, overlap.share) == (27, 1.0)
    assert excerpt(text, overlap) == ("", text.rstrip("?"), "?")
    far = f"{LONG} {'well ' * SIZE}{LONG}"
    assert [each.words for each in INDEX.find(Texts.of([far]))] == [19, 19]


def test_many_texts_at_once_are_numbered() -> None:
    texts = Texts.of(["nothing", [], [LONG, SHORT], "", ["a", TINY]])
    assert [(each.text, each.reference) for each in INDEX.find(texts)] == [(2, 0), (2, 1), (4, 2)]
    assert INDEX.find(Texts.of([])) == []


def test_the_excerpt_has_the_text_around() -> None:
    text = "é" * 50 + f" {SHORT} " + "z" * 50
    [overlap] = INDEX.find(Texts.of([text]))
    assert excerpt(text, overlap, 5) == ("éééé ", SHORT.rstrip("?"), "? zzz")


def test_references_without_words_and_an_index_of_nothing() -> None:
    assert OverlapIndex.of(Texts.of(["", "?!"]), ["a", "b"]).find(Texts.of(["?!", "", "a b"])) == []
    assert OverlapIndex.of(Texts.of([]), []).find(Texts.of([LONG])) == []


def test_chinese_by_characters() -> None:
    question = "你们商店的会员计划叫什么名字"
    index = OverlapIndex.of(Texts.of([question]), ["q:1"])
    text = ["您好！", f"请问，{question}？谢谢"]
    [overlap] = index.find(Texts.of([text]))
    assert excerpt(text, overlap, 3) == ("请问，", question, "？谢谢")
    assert index.find(Texts.of(["你们商店在哪里"])) == []


def test_an_index_travels_and_takes_few_bytes_a_word() -> None:
    draw = random.Random(0)
    references = [" ".join(str(draw.random()) for _ in range(100)) for _ in range(100)]
    index = OverlapIndex.of(Texts.of(references), [""] * 100)
    count = int(index.words.sum())
    assert len(pickle.dumps(index)) < 16 * count
    again = pickle.loads(pickle.dumps(index))
    assert [each.reference for each in again.find(Texts.of(references))] == list(range(100))


def test_runs_are_those_of_plain_python() -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.choice("abcd") for _ in range(draw.randrange(40))) for _ in range(30)]
    known = [" ".join(draw.choice("abcd") for _ in range(draw.choice([3, 5]))) for _ in range(10)]
    hashes = RunHashes(WordRuns.of(known))
    lengths = np.array([len(text.split()) for text in known])
    index = RunIndex.of({n: hashes.only(n, lengths == n) for n in (3, 5)})
    split = WordRuns.of(texts)
    runs = index.find(split)
    got = set(zip(runs.starts.tolist(), runs.owners.tolist(), strict=True))
    expected = set()
    for number, text in enumerate(texts):
        for start in range(len(text.split())):
            for owner, run in enumerate(known):
                if text.split()[start : start + len(run.split())] == run.split():
                    expected.add((int(split.starts[number]) + start, owner))
    assert got == expected
    assert expected


def test_a_run_of_many_owners_is_kept_for_the_first_ones() -> None:
    index = OverlapIndex.of(Texts.of([LONG] * 40), [""] * 40)
    assert [each.reference for each in index.find(Texts.of([LONG]))] == list(range(16))


@pytest.mark.parametrize("text", [
    "Well, hello there_you!", "Ünïcode: straße, İstanbul", "e\u0301te\u0301 e\u0301", "ﬁne ①② ㎏", "你好，世界 ok",
    "তোমার আগ্রহগুলো কি", "한국어 \u1112\u1161\u11ab", "", "😀 a\u00a0b", "𝔸𝔹 c",
])  # fmt: skip
def test_places_are_those_of_the_words(text: str) -> None:
    spans = places(text)
    assert len(spans) == len(words(text))
    for word, (start, end) in zip(words(text), spans, strict=True):
        # A ligature or a circled number is whole: what stands there may have more than the word.
        assert word in unicodedata.normalize("NFKC", text[start:end]).casefold()


def test_places_of_random_texts() -> None:
    draw = random.Random(2)
    pool = "aA1_ ,.\nßéİıſﬀ①㎏ﷺ中あア한ก่ক়\u0301\u0302e\u00a0\u0345ΣςÅ½𝔸"
    for _ in range(3000):
        text = "".join(draw.choice(pool) for _ in range(draw.randrange(14)))
        spans = places(text)
        assert len(spans) == len(words(text))
        assert all(0 <= start < end <= len(text) for start, end in spans)
