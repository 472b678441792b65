"""Near-duplicates: shingles, signatures in bands, and clusters, against exact computations and datasketch."""

import itertools
import random

import numpy as np
import pytest

from models.text.near_duplicates import Bands, candidate_pairs, components
from models.text.shingles import Shingles, all_shingles, similarity, words


def jaccard(one: str, other: str, size: int = 3) -> float:
    """By definition, on the words themselves."""
    sets = []
    for text in (one, other):
        found = words(text)
        sets.append({tuple(found[at : at + size]) for at in range(max(1, len(found) - size + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def texts(count: int, seed: int = 0) -> list[str]:
    """Random texts, every second one a copy of the one before it with some words replaced."""
    draw = random.Random(seed)
    vocabulary = [f"word{number}" for number in range(500)]
    found: list[str] = []
    for number in range(count):
        if number % 2:
            kept = found[-1].split()
            for _ in range(draw.randrange(6)):
                kept[draw.randrange(len(kept))] = draw.choice(vocabulary)
            found.append(" ".join(kept))
        else:
            found.append(" ".join(draw.choices(vocabulary, k=draw.randrange(1, 120))))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Well, HELLO there -- it's 5pm!", ["well", "hello", "there", "it", "s", "5pm"]),
        ("Straße ﬁne", ["strasse", "fine"]),
        ("我叫小明 ok了", ["我", "叫", "小", "明", "ok", "了"]),
        ("서울은 좋다", ["서울은", "좋다"]),
        ("", []),
        ("नमस्ते, आप कैसे हैं?", ["नमस्ते", "आप", "कैसे", "हैं"]),
        ("আপনি কেমন আছেন", ["আপনি", "কেমন", "আছেন"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("cafe\u0301 café", ["café", "café"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_the_jaccard_index_is_that_of_the_words_themselves() -> None:
    found = [*texts(60), "two words", "two words", "one", "😀 😀", "😀😀", "😀"]
    shingles = Shingles.of(found)
    for one, other in itertools.combinations(range(60), 2):
        assert similarity(shingles[one], shingles[other]) == pytest.approx(jaccard(found[one], found[other]))
    assert similarity(shingles[60], shingles[61]) == 1
    assert similarity(shingles[63], shingles[64]) == 1
    assert similarity(shingles[63], shingles[65]) == 0


def test_parts_of_shingles_are_those_of_their_texts() -> None:
    found = texts(9)
    whole = Shingles.of(found)
    parts = Shingles.joined([Shingles.of(found[:4]), Shingles.of(found[4:])])
    chosen = np.array([number % 3 == 0 for number in range(9)])
    assert np.array_equal(whole.hashes, parts.hashes)
    assert np.array_equal(whole.starts, parts.starts)
    assert [list(each) for each in map(whole.only(chosen).__getitem__, range(3))] == [
        list(whole[number]) for number in (0, 3, 6)
    ]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_pairs_as_similar_as_the_threshold_become_candidates(threshold: float) -> None:
    found = texts(200)
    shingles = Shingles.of(found)
    bands = Bands.at(threshold)
    keys = bands.keys(found)
    pairs = {tuple(pair) for pair in candidate_pairs(keys.ravel(), np.repeat(np.arange(200), bands.count)).tolist()}
    similar = {
        (one, other)
        for one, other in itertools.combinations(range(200), 2)
        if similarity(shingles[one], shingles[other]) >= threshold
    }
    assert len(similar) > 20
    assert len(similar & pairs) >= 0.98 * len(similar)
    assert len(pairs) < 0.2 * 200 * 199 / 2


def test_all_shingles_have_the_signature_of_their_set() -> None:
    rensa = pytest.importorskip("rensa")
    found = ["so so so so so so so", "\U0001f600 \U0001f600", "", *texts(20), "one", "\U0001f600"]
    signatures = [
        rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            each.hashes, each.starts.astype(np.uint64), 126, 1
        ).to_rows()
        for each in (all_shingles(found), Shingles.of(found))
    ]
    assert signatures[0] == signatures[1]
    assert [len(Shingles.of(found)[number]) for number in range(3)] == [1, 1, 1]


def test_signatures_agree_with_datasketch() -> None:
    """Both estimate the same index: the share of rows on which two signatures agree."""
    datasketch = pytest.importorskip("datasketch")
    rensa = pytest.importorskip("rensa")
    found = texts(100)
    shingles = Shingles.of(found)
    ours = np.array(
        rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            shingles.hashes, shingles.starts.astype(np.uint64), 256, 1
        ).to_rows()
    )
    theirs = []
    for number in range(100):
        sketch = datasketch.MinHash(num_perm=256)
        sketch.update_batch([value.tobytes() for value in shingles[number]])
        theirs.append(sketch)
    for one in range(0, 100, 2):
        exact = similarity(shingles[one], shingles[one + 1])
        assert float(np.mean(ours[one] == ours[one + 1])) == pytest.approx(exact, abs=0.12)
        assert theirs[one].jaccard(theirs[one + 1]) == pytest.approx(exact, abs=0.12)


def test_many_texts_with_one_key_cost_no_square() -> None:
    pairs = candidate_pairs(np.zeros(10_000, np.uint64), np.arange(10_000))
    assert len(pairs) < 20 * 10_000
    _, clusters = components(pairs)
    assert set(clusters.tolist()) == {0}


def test_components() -> None:
    members, clusters = components(np.array([[3, 9], [1, 3], [20, 21], [9, 12]]))
    assert members.tolist() == [1, 3, 9, 12, 20, 21]
    assert clusters.tolist() == [1, 1, 1, 1, 20, 20]
    chain = np.stack([np.arange(5000), np.arange(1, 5001)], axis=1)
    np.random.default_rng(0).shuffle(chain)
    assert set(components(chain)[1].tolist()) == {0}
    assert [len(each) for each in components(np.empty((0, 2), np.int64))] == [0, 0]


def test_a_texts_hashes_are_the_same_in_every_process() -> None:
    """They are compared across workers, and Python's own hash differs between them."""
    assert Shingles.of(["one two three"]).hashes.tolist() == [333790829920949478]
