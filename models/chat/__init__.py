"""Messages to token ids and a supervision mask: the one renderer for training, evaluation and serving.

encoded = encode_conversation(tokenizer, messages)   # training and scoring
prompt_ids = encode_prompt(tokenizer, messages)      # evaluation and serving
"""

import itertools
from dataclasses import dataclass
from typing import Any

import jinja2

from models.chat.messages import ROLES, Conversation, Message, check_messages

__all__ = ["ROLES", "Conversation", "Message", "check_messages"]  # and what stands below

# For tokenizers that bring no chat template (GPT-2): speaker names, a reply ends with the end-of-text token.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].capitalize() }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a whole conversation; `supervised[i]` says that token i is to be learned."""

    input_ids: list[int]
    supervised: list[bool]


def common_prompt(one: EncodedConversation, other: EncodedConversation) -> int:
    """How many tokens both begin with alike, before the first one of either that is supervised."""
    tokens = zip(one.input_ids, one.supervised, other.input_ids, other.supervised, strict=False)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[2] and not pair[1] and not pair[3], tokens)
    return sum(1 for _ in alike)


class ChatTemplateError(ValueError):
    """The tokenizer's chat template cannot render these messages."""


def ensure_chat_template(tokenizer: Any) -> None:
    """Give a tokenizer without a chat template the default one, so that it is saved with the model."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE


def render_text(
    tokenizer: Any, messages: list[Message], add_generation_prompt: bool = False, tools: list[Any] | None = None
) -> str:
    """The chat template's text of `messages`; raises ChatTemplateError with the template's own words.

    White space around a message's text is left out: tokenizers merge it with the template's own, and what is learned
    would begin in another token than what is generated.
    """
    trimmed = [{**message, "content": message["content"].strip()} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            trimmed, tokenize=False, add_generation_prompt=add_generation_prompt, tools=tools
        )
    except (jinja2.exceptions.TemplateError, TypeError, ValueError) as error:
        raise ChatTemplateError(f"the chat template refuses these messages: {error}") from error
    assert isinstance(text, str)
    return text


def encode_prompt(tokenizer: Any, messages: list[Message], tools: list[Any] | None = None) -> list[int]:
    """Token ids of `messages` followed by the template's opening of an assistant turn.

    `tools` are what a model may call, in OpenAI's form, for templates that tell it of them.
    """
    text = render_text(tokenizer, messages, add_generation_prompt=True, tools=tools)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_conversation(
    tokenizer: Any, messages: list[Message], last_reply_only: bool = False
) -> EncodedConversation:
    """Token ids of `messages`, supervised exactly at the assistant turns with their end-of-turn tokens.

    With `last_reply_only` the last assistant turn alone is supervised.

    Works with any template in which the text of the first n messages is the beginning of the text of all
    messages; another template raises ChatTemplateError. The tokenizer must be a fast one (it maps tokens to
    characters).
    """
    text = render_text(tokenizer, messages)
    spans = [
        _assistant_span(tokenizer, messages, index, text)
        for index, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    supervised = []
    remaining = iter(spans[-1:] if last_reply_only else spans)
    span = next(remaining, None)
    for start, end in encoding["offset_mapping"]:
        while span is not None and start >= span[1]:
            span = next(remaining, None)
        supervised.append(span is not None and end > span[0] and end > start)
    return EncodedConversation(list(encoding["input_ids"]), supervised)


def end_token_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that end an assistant turn: the tokenizer's end token and the one that the template writes."""
    probe: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    encoded = encode_conversation(tokenizer, probe)
    last = max(index for index, supervised in enumerate(encoded.supervised) if supervised)
    ends = {tokenizer.eos_token_id, encoded.input_ids[last]} & {None, *tokenizer.all_special_ids}
    return frozenset(token for token in ends if token is not None)


def _assistant_span(tokenizer: Any, messages: list[Message], index: int, text: str) -> tuple[int, int]:
    """Character range of the assistant turn `index` in `text`, from its first word past its end-of-turn token."""
    until = render_text(tokenizer, messages[: index + 1])
    if not text.startswith(until):
        raise ChatTemplateError(f"the chat template changes message {index} when later messages follow it")
    end = _turn_end(tokenizer, until)
    if index == 0:
        return _opening_start(tokenizer, messages[0]["content"].strip(), until[:end]), end
    before = render_text(tokenizer, messages[:index], add_generation_prompt=True)
    if not text.startswith(before):
        raise ChatTemplateError(f"the chat template opens message {index} otherwise than a generated reply")
    return len(before), end


def _opening_start(tokenizer: Any, content: str, text: str) -> int:
    """Where `content` begins in `text`, which ends with it and perhaps with an end-of-turn token.

    Looked for from the end: a template may write the same words before it.
    """
    ends = [token for token in tokenizer.all_special_tokens if text.endswith(token)]
    start = text.rfind(content, 0, len(text) - max((len(token) for token in ends), default=0))
    if start < 0:
        raise ChatTemplateError("the chat template changes the text of message 0")
    return start


def _turn_end(tokenizer: Any, text: str) -> int:
    """Where a turn at the end of `text` ends: after its special token, without white space that follows it."""
    stripped = text.rstrip()
    if any(stripped.endswith(token) for token in tokenizer.all_special_tokens):
        return len(stripped)
    return len(text)
