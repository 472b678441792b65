"""fastokens is used if it encodes like the tokenizer, and only then."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from models.base.load import load_tokenizer, resolve
from models.chat import quick_ids
from models.chat.quick_ids import QuickIds
from models.chat.renderer import renderer_of

LETTERS = "abc ABC .,!?'s 12 345 é ß 👍 日本 \n\t\u00a0"


@pytest.fixture
def backend() -> Any:
    return load_tokenizer(resolve("builtin:smollm2-135m-instruct")).backend_tokenizer


def some_texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choice(LETTERS) for _ in range(draw.randint(1, 40))) for _ in range(count)]


def test_ids_are_the_tokenizers_before_and_after_it_is_loaded(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_ids, "_LOADED_AFTER", 50)
    asked = []

    def own(texts: Sequence[str]) -> list[list[int]]:
        asked.append(len(texts))
        return [backend.encode(text, add_special_tokens=False).ids for text in texts]

    quick = QuickIds(backend, own)
    for seed in range(20):
        texts = some_texts(30, seed)
        assert quick.encode(texts) == [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert 2 < len(asked) < 12  # some at the start, then now and then, to compare


def test_it_is_not_used_where_it_encodes_differently(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_ids, "_LOADED_AFTER", 50)
    quick = QuickIds(backend, lambda texts: [[7] for _ in texts])
    for _ in range(5):
        assert quick.encode(some_texts(30)) == [[7]] * 30


def test_a_difference_found_later_fails_the_stage(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_ids, "_LOADED_AFTER", 50)
    is_odd = False

    def own(texts: Sequence[str]) -> list[list[int]]:
        return [[7] if is_odd else backend.encode(text, add_special_tokens=False).ids for text in texts]

    quick = QuickIds(backend, own)
    quick.encode(some_texts(60))
    is_odd = True
    with pytest.raises(AssertionError, match="fastokens encodes one of these texts differently"):
        quick.encode(some_texts(100))


def test_segments_are_encoded_as_whole_texts_are() -> None:
    tokenizer = load_tokenizer(resolve("builtin:smollm2-135m-instruct"))
    encoder = renderer_of(tokenizer).encoder
    draw = random.Random(0)
    for _ in range(100):
        parts = some_texts(8, draw.randrange(10**6))
        text = "".join(f"{part}{draw.choice(['<|im_start|>', '<|im_end|>', ''])}" for part in parts)
        whole, cut = encoder.whole(text), encoder.encode(text)
        assert cut.ids == whole.ids
        for place in range(len(text) + 1):
            if whole.before(place) and whole.ends[whole.before(place) - 1] == place:
                assert cut.before(place) == whole.before(place), (text, place)
