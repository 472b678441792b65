"""Most stream events are written without pydantic; they are equal to what pydantic would write."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from serve.replies.chat_reply import ChatReply
from serve.replies.completion import Reply, ReplyOptions, _sent
from serve.replies.generation import Piece
from serve.replies.text_reply import TextReply

TEXTS = ["a", "", "\0", "\n\t\r\b\f\x01\x1f\x7f", '"\\/', "ä€😀\u2028\ufeff", "</script>", "data: x\n\n"]


@pytest.mark.parametrize("kind", [ChatReply, TextReply])
@pytest.mark.parametrize("with_logprobs", [False, True])
@pytest.mark.parametrize("index", [0, 3])
def test_a_plain_event_is_the_same_by_either_way(kind: type[Reply], with_logprobs: bool, index: int) -> None:
    generations: list[Any] = [SimpleNamespace(prompt_text=None)] * 4
    reply = kind(generations, ReplyOptions('a "model"', 4, with_logprobs))
    for text in TEXTS:
        event = reply._plain(index, text)
        assert event == _sent(reply._event(index, Piece(text)))
        choice = json.loads(event.removeprefix("data: "))["choices"][0]
        assert choice.get("text", choice.get("delta", {}).get("content")) == text
        assert choice["index"] == index
