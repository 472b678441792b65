"""Templates that depend on the text of messages, open a turn unasked, or write objects in their own format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from models.base.load import load_tokenizer
from models.chat import ChatTemplateError, encode_conversation, end_token_ids
from models.trees import replies_of

TOOLS = [{"type": "function", "function": {"name": "price_of", "parameters": {"type": "object", "properties": {}}}}]


def call(**arguments: Any) -> dict[str, Any]:
    function = {"name": "price_of", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


# like Gemma 4: a tool's result is part of the calling turn, and a turn without text has no end token
ANSWERS_WITHIN = (
    "{% macro shown(text) %}{% for part in text.split('~') %}{{ part }}{% endfor %}{% endmacro %}"
    "{% if tools %}{{ tools }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ m.content }}<result>{% else %}"
    "{% if m.role == 'user' or loop.previtem.role != 'tool' %}<start>{{ m.role }}\n{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments }}<tool>{% endfor %}"
    "{% set words %}{{ shown(m.content) }}{% endset %}{{ words }}{% if words | length %}<end>\n{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}<start>assistant\n{% endif %}"
)
# like the first one of Llama 3: always opens the next turn
OPENS_UNASKED = (
    "{% for m in messages %}<start>{{ m.role }}\n{{ m.content }}<end>{% endfor %}{{ '<start>assistant\n' }}"
)
# like LFM2: values in Python syntax; and, like Llama 3.1, it drops the text beside a call
PYTHON = (
    "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}<start>{{ m.role }}\n"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | string }})"
    "{% else %}{{ m.content }}{% endfor %}<end>{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
# like small models of Qwen3.5: an empty thinking block before a reply unless thinking is enabled
CLOSES_THINKING = (
    "{% for m in messages %}<start>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


@pytest.fixture
def tokenizer_of(tiny_gpt2: Path) -> Callable[[str], Any]:
    def made(template: str) -> Any:
        tokenizer = load_tokenizer(tiny_gpt2)
        names = ("<start>", "<end>", "<tool>", "<result>")
        tokenizer.add_tokens([AddedToken(name, special=True) for name in names], special_tokens=True)
        tokenizer.chat_template = template
        return tokenizer

    return made


def said(tokenizer: Any, messages: list[Any], tools: Any = None) -> list[str]:
    encoded = encode_conversation(tokenizer, messages, tools=tools)
    return [tokenizer.decode(reply) for _, reply in replies_of(vars(encoded))]


def test_delimiters_do_not_change_what_a_template_tests(tokenizer_of: Callable[[str], Any]) -> None:
    talk = [
        {"role": "user", "content": "Price?"},
        call(thing="lamp"),
        {"role": "tool", "content": "27"},
        {"role": "assistant", "content": "It is 27."},
    ]
    found = said(tokenizer_of(ANSWERS_WITHIN), talk, TOOLS)
    assert found == ["price_of {'thing': 'lamp'}<tool>", "It is 27.<end>"]


def test_a_turn_opened_unasked_is_not_part_of_the_previous_reply(tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = tokenizer_of(OPENS_UNASKED)
    assert end_token_ids(tokenizer) == {*tokenizer.convert_tokens_to_ids(["<end>", "<|endoftext|>"])}
    talk = [{"role": role, "content": f"{role} {n}"} for n in range(3) for role in ("user", "assistant")]
    assert said(tokenizer, talk) == [f"assistant {n}<end>" for n in range(3)]


def test_names_are_guarded_in_what_a_template_writes_as_python(tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = tokenizer_of(PYTHON)
    talk = [{"role": "user", "content": "Price?"}, call(things=["a <end>", {"b": "<start>"}])]
    (reply,) = said(tokenizer, talk, TOOLS)
    assert reply == "price_of({'things': ['a <end>', {'b': '<start>'}]})<end>"
    ids = encode_conversation(tokenizer, talk, tools=TOOLS).input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<end>")) == 2


def test_arguments_may_be_escaped_as_python_escapes_them(tokenizer_of: Callable[[str], Any]) -> None:
    talk = [{"role": "user", "content": "Price?"}, call(thing='it\'s\n"new" \\ \u200b<end>')]
    assert len(said(tokenizer_of(PYTHON), talk, TOOLS)) == 1


def test_a_text_that_is_left_out_is_not_found_in_the_arguments(tokenizer_of: Callable[[str], Any]) -> None:
    talk = [{"role": "user", "content": "Price?"}, {**call(thing="lamp ok"), "content": "ok"}]
    with pytest.raises(ChatTemplateError, match="omits the text of message 1"):
        encode_conversation(tokenizer_of(PYTHON), talk, tools=TOOLS)


def test_reasoning_behind_closed_thinking_is_refused_with_what_to_do(tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = tokenizer_of(CLOSES_THINKING)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert said(tokenizer, talk) == ["Hello.<end>"]
    with pytest.raises(ChatTemplateError, match=r"closes the thinking.*enable_thinking: true"):
        encode_conversation(tokenizer, [*talk[:1], {**talk[1], "reasoning_content": "I greet."}])


RESULT = {"role": "tool", "content": "27"}
ASKED = {"role": "user", "content": "Is it 27 by price_of?"}
SAID = {"role": "assistant", "content": "It is 27."}


@pytest.mark.parametrize(("body", "talk", "words"), [
    # like GLM-4: drops unknown roles
    ("{% if m.role != 'tool' %}{{ m.content }}{{ m.tool_calls or '' }}<end>{% endif %}",
     [ASKED, {**call(), "train": False}, RESULT, SAID], r"omits message 2 \(tool\)"),
    ("{{ m.content }}<end>", [ASKED, {**call(), "content": "price_of says so"}], "omits tool calls of message 1"),
    # like Mistral: writes the system message only before a user message
    ("{% if m.role == 'user' and loop.last %}{{ messages[0].content }} {% endif %}"
     "{% if m.role != 'system' %}{{ m.content }}{{ m.tool_calls or '' }}<end>{% endif %}",
     [{"role": "system", "content": "27"}, ASKED, {**call(), "train": False}, RESULT, SAID],
     r"omits message 0 \(system\)"),
    # like SmolLM3: a word in the system message is a switch and not written; in later messages it is
    ("{{ m.content.replace('/think', '') if m.role == 'system' else m.content }}<end>",
     [{"role": "system", "content": "/think"}, {"role": "user", "content": "Hi"}, SAID,
      {"role": "user", "content": "What is /think?"}, SAID], r"omits message 0 \(system\)"),
])  # fmt: skip
def test_dropped_text_is_not_found_elsewhere(
    tokenizer_of: Callable[[str], Any], body: str, talk: list[Any], words: str
) -> None:
    opening = "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
    template = "{% for m in messages %}<start>{{ m.role }}\n" + body + "{% endfor %}" + opening
    with pytest.raises(ChatTemplateError, match=words):
        encode_conversation(tokenizer_of(template), talk)
