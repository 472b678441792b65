"""Figures of texts, limits on them, and word lists."""

import pytest

from models.text.quality import Figures, Limits, figures_of
from models.text.texts import Texts
from models.text.word_list import WordList

PLAIN = ["How do I get to the harbour from here?", "Take the tram to the old mill, then walk down the hill."]


def figures(*turns: str) -> Figures:
    return figures_of(Texts.of([turns]))[0]


def test_lengths() -> None:
    found = figures(*PLAIN)
    assert (found.turns, found.words, found.characters) == (2, 21, sum(map(len, PLAIN)))
    assert found.repetition == 0
    assert figures("你好，世界").words == 4


def test_repeated_lines_by_their_characters() -> None:
    assert figures("abcd\nabcd\n\nab", "abcd").repeated_lines == pytest.approx(8 / 14)
    assert figures("abcd", "abcde").repeated_lines == 0


def test_the_most_frequent_run_of_words_by_its_characters() -> None:
    # "ab c" four times are 12 of the 20 characters of all words; the runs that overlap count once.
    assert figures("ab c ab c ab c", "ab c zzzz zzzz").repeated_words == pytest.approx(12 / 20)
    assert figures("no no no no no").repeated_words == 1
    assert figures("would you like tea", "I would you like it").repeated_words == 0  # twice only
    assert figures("so it is here, so it is there, so it is so").repeated_words == pytest.approx(18 / 29)


def test_texts_do_not_add_up() -> None:
    alone = [figures(*turns) for turns in (["ab c ab c ab c"], PLAIN, ["ab c"], [])]
    assert figures_of(Texts.of([["ab c ab c ab c"], PLAIN, ["ab c"], []])) == alone
    assert figures_of(Texts.of([])) == []


@pytest.mark.parametrize(("text", "share"), [
    ("abc", 0), ("ab 12", 0.5), ("!?", 1), ("", 0), ("é1", 0.5), ("你好！", 1 / 3), ("কি", 0), ("a\u00a0b", 0),
])  # fmt: skip
def test_non_letters(text: str, share: float) -> None:
    assert figures(text).non_letters == pytest.approx(share)


def test_a_limit_names_its_field_and_both_numbers() -> None:
    found = figures(*PLAIN)
    assert Limits().reason(found) is None
    assert Limits(min_turns=2, max_turns=2, min_words=21, max_words=21).reason(found) is None
    assert Limits(min_words=1000).reason(found) == "data.filters.min_words: 21 words, fewer than 1,000"
    assert Limits(max_turns=1).reason(found) == "data.filters.max_turns: 2 turns, more than 1"
    assert Limits(max_characters=10).reason(found) == "data.filters.max_characters: 93 characters, more than 10"
    repeated = Limits(max_repetition=0.2).reason(figures("no no no no no"))
    assert repeated == "data.filters.max_repetition: a share of 1.00 is repeated lines or words, more than 0.2"
    assert Limits(max_non_letters=0.5).reason(figures("!!!")) == (
        "data.filters.max_non_letters: a share of 1.00 is no letters, more than 0.5"
    )


LIST = WordList.of(["Darn", "shut  up", "笨蛋", "바보", "c++", "f**k", "don't", "Straße", " ", ""])


@pytest.mark.parametrize(("text", "entries"), [
    ("DARN it, shut-up!", ["Darn", "shut  up"]), ("darned", []), ("shut the door up", []), ("你这笨蛋啊", ["笨蛋"]),
    ("바보야", ["바보"]), ("C++ is", ["c++"]), ("c is", []), ("F**K", ["f**k"]), ("f k", []), ("I don’t", ["don't"]),
    ("STRASSE", ["Straße"]), ("darn darn", ["Darn"]), ("", []),
])  # fmt: skip
def test_entries_of_a_word_list(text: str, entries: list[str]) -> None:
    assert LIST.find(Texts.of(["other", text])) == [[], entries]


def test_an_entry_is_found_over_two_turns_and_an_empty_list_finds_nothing() -> None:
    assert LIST.find(Texts.of([["shut", "up"]])) == [["shut  up"]]
    assert WordList.of([]).find(Texts.of(["a", "b"])) == [[], []]
