"""The one renderer: which tokens are supervised, in every kind of template."""

import pytest

from models.base import load_tokenizer
from models.chat import (
    ChatTemplateError,
    check_messages,
    encode_conversation,
    encode_prompt,
    end_token_ids,
)

TALK = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello! What is it?"},
    {"role": "user", "content": "A question"},
    {"role": "assistant", "content": "Ask\nit."},
    {"role": "user", "content": "No."},
    {"role": "assistant", "content": "Bye"},
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(params=["llama", "chatml", "gpt2"])
def dialect(request, tiny_llama, tiny_gpt2):
    """A tokenizer, and how its template writes a turn: what is not learned, what is, and what follows."""
    if request.param == "llama":
        head = "<|start_header_id|>{role}<|end_header_id|>\n\n"
        return load_tokenizer(tiny_llama), "<|begin_of_text|>", head, "{content}<|eot_id|>", ""
    if request.param == "chatml":
        return chatml(tiny_gpt2), "", "<|im_start|>{role}\n", "{content}<|im_end|>", "\n"
    return load_tokenizer(tiny_gpt2), "", "{Role}:", " {content}<|endoftext|>", "\n"


def by_hand(dialect, messages):
    """Ids and mask joined turn by turn, without the renderer."""
    tokenizer, begin, head, body, tail = dialect
    ids, mask = [], []

    def add(text, supervised):
        new = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(new)
        mask.extend([supervised] * len(new))

    add(begin, False)
    for message in messages:
        role = message["role"]
        add(head.format(role=role, Role=role.capitalize()), False)
        text = body.format(content=message["content"])
        if role != "assistant" and dialect[2] == "{Role}:":
            text = text.removesuffix("<|endoftext|>")
        add(text, role == "assistant")
        add(tail, False)
    return ids, mask


def test_exactly_the_assistant_turns_with_their_end_tokens_are_supervised(dialect):
    encoded = encode_conversation(dialect[0], TALK)
    assert (encoded.input_ids, encoded.supervised) == by_hand(dialect, TALK)
    learned = [token for token, supervised in zip(*by_hand(dialect, TALK), strict=True) if supervised]
    assert sum(token in end_token_ids(dialect[0]) for token in learned) == 3


def test_a_prompt_is_the_beginning_of_its_conversation(dialect):
    whole = encode_conversation(dialect[0], TALK)
    for turns in (1, 3, 5):
        prompt = encode_prompt(dialect[0], TALK[:turns])
        assert whole.input_ids[: len(prompt)] == prompt
        assert whole.supervised[len(prompt)]


def test_the_builtin_model_too():
    from models.base import resolve

    tokenizer = load_tokenizer(resolve("builtin:smollm2-135m-instruct"))
    encoded = encode_conversation(tokenizer, TALK)
    learned = [token for token, supervised in zip(encoded.input_ids, encoded.supervised, strict=True) if supervised]
    assert tokenizer.decode(learned) == "Hello! What is it?<|im_end|>Ask\nit.<|im_end|>Bye<|im_end|>"


def test_a_system_message_and_a_first_word_by_the_assistant(dialect):
    talk = [{"role": "system", "content": "Be kind."}, *TALK[1:2]]
    encoded = encode_conversation(dialect[0], talk)
    assert (encoded.input_ids, encoded.supervised) == by_hand(dialect, talk)
    first = encode_conversation(dialect[0], TALK[1:3])
    learned = [token for token, supervised in zip(first.input_ids, first.supervised, strict=True) if supervised]
    assert dialect[0].decode(learned, skip_special_tokens=True).strip() == "Hello! What is it?"


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny_gpt2):
    tokenizer = chatml(tiny_gpt2)
    tokenizer.chat_template = "{{ messages | length }} messages" + CHATML
    with pytest.raises(ChatTemplateError, match="changes message"):
        encode_conversation(tokenizer, TALK)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ChatTemplateError, match="refuses"):
        encode_prompt(tokenizer, TALK[:1])


@pytest.mark.parametrize(("messages", "words"), [
    ([], "non-empty list"),
    ("hi", "non-empty list"),
    ([{"content": "x"}], "has no role"),
    ([{"role": "bot", "content": "x"}], "unknown role 'bot'"),
    ([{"role": "user", "content": " "}], "no text"),
    ([{"role": "user", "content": None}], "no text"),
    ([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}], "take turns"),
    ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "only the first"),
])  # fmt: skip
def test_what_is_no_conversation_says_why(messages, words):
    with pytest.raises(ValueError, match=words):
        check_messages(messages)
