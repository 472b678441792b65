"""Messages to token ids and a supervision mask: the one renderer for training, evaluation and serving.

encoded = encode_conversation(tokenizer, messages)   # training and scoring
prompt_ids = encode_prompt(tokenizer, messages)      # evaluation and serving
"""

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from models.chat.form import SYSTEM_ROLES
from models.chat.kinds import rounds_of
from models.chat.messages import ROLES, Conversation, Message, MessageError, check_messages
from models.chat.renderer import Prepared, Renderer, renderer_of
from models.chat.samples import Encoder, Sample, encoder_of
from models.chat.template import RESERVED, ChatTemplateError
from models.chat.tree import SampleTree
from models.chat.written_calls import one_call_each, with_short_ids
from models.errors import RayconteurError

__all__ = [
    "RESERVED", "ROLES", "ChatTemplateError", "Conversation", "EncodedConversation", "Message", "MessageError",
    "ReplyCut", "check_messages",
    "common_prompt", "encode_conversation", "encode_prompt", "end_token_ids", "ensure_chat_template",
]  # fmt: skip

# For tokenizers without a chat template (GPT-2): speaker names, and a reply ends with the end-of-text token.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].capitalize() }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a conversation; `supervised[i]` says whether token i is trained on.

    If it is a tree (models/chat/samples.py), `input_ids` are those of its pieces one after the other: piece n has
    `piece_lengths[n]` tokens and continues the earlier piece `piece_parents[n]`, or starts the conversation if that
    is -1. Both are empty if it is one sequence.
    """

    input_ids: list[int]
    supervised: list[bool]
    piece_lengths: list[int] = field(default_factory=list)
    piece_parents: list[int] = field(default_factory=list)
    is_cut: bool = False
    """whether `max_length` truncated it"""


def common_prompt(one: EncodedConversation, other: EncodedConversation) -> int:
    """The number of leading tokens that both share, before the first supervised one of either."""
    tokens = zip(one.input_ids, one.supervised, other.input_ids, other.supervised, strict=False)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[2] and not pair[1] and not pair[3], tokens)
    return sum(1 for _ in alike)


def ensure_chat_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the default one, so that it is saved with the model.

    It starts with the tokenizer's `bos` token if the tokenizer's texts do. Returns whether a template was missing.
    """
    if tokenizer.chat_template:
        return False
    starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{ bos_token }}" if starts else "") + DEFAULT_CHAT_TEMPLATE
    return True


def encode_prompt(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: list[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    continues: bool = False,
    opens: bool = True,
) -> list[int]:
    """Token ids of `messages`, followed by the template's opening of an assistant turn if `opens`.

    `tools` are the functions that the model may call, in OpenAI's form; `template_kwargs` are further variables of
    the template. With `continues` the last message, an assistant's, stays open after its text, including white space
    at its end. Raises ChatTemplateError.
    """
    renderer = renderer_of(tokenizer)
    prepared = renderer.prepared(_as_taken(renderer, messages))
    if not continues:
        return renderer.encoder.encode(renderer.prompt(prepared, tools, template_kwargs, opens)).ids
    said = messages[-1]["content"]
    text = renderer.begun(prepared, tools, template_kwargs) + said[len(said.rstrip()) :]
    return renderer.encoder.encode(text).ids


def end_token_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that end an assistant's turn: the tokenizer's end token, those in the model's
    generation_config.json, and those that the template writes at the end of a reply or a call. Raises
    ChatTemplateError.
    """
    return renderer_of(tokenizer).end_ids


def encode_conversation(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    last_reply_only: bool = False,
    tools: list[Any] | None = None,
    max_length: int | None = None,
    truncate: Literal["right", "left"] = "right",
    cut_replies: Literal["cut", "drop", "fail"] = "cut",
) -> EncodedConversation:
    """Token ids of a conversation, supervised exactly at its replies and their end tokens.

    The tokens before a reply are `encode_prompt` of the messages before it. A reply with `train: False` is not
    supervised; with `last_reply_only` only the last one is. A sequence has at most `max_length` tokens: it is
    truncated at its end, or with `truncate="left"` each reply that does not fit follows fewer turns; `cut_replies`
    decides about a truncated reply. Raises ChatTemplateError, and ReplyCut with `cut_replies="fail"`.
    """
    if max_length is not None and (short := _shortened(messages, max_length)) is not messages:
        # Far more text than fits: the rest does not matter if the beginning fills `max_length`.
        found = encode_conversation(
            tokenizer, short, last_reply_only and short[-1]["role"] == "assistant", tools, None, truncate
        )
        if len(found.input_ids) > 2 * max_length or not found.input_ids:
            messages = short
    renderer, encoder = renderer_of(tokenizer), encoder_of(tokenizer)
    messages = _as_taken(renderer, messages)
    prepared, guarded = renderer.prepared(messages), renderer.guarded_tools(tools)
    replies = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    learned = [number for number in replies[-1 if last_reply_only else 0 :] if messages[number].get("train", True)]
    if not learned:
        return EncodedConversation([], [])
    base, samples = encoder.samples(prepared, guarded, learned)
    if max_length is not None and truncate == "left":
        base, samples = _from_the_left(encoder, prepared, guarded, learned, base, samples, max_length)
    return _as_tree(base, samples, max_length, cut_replies)


def _as_taken(renderer: Renderer, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The messages in the form that the template supports: one system text if it has no developer role, that text
    before the first question's if it has no system role, and its forms of calls (models/chat/written_calls.py).
    """
    if any("tool_calls" in message for message in messages):
        if renderer.probes.has_short_ids:
            messages = with_short_ids(messages)
        if not renderer.probes.takes_several_calls:
            messages = one_call_each(messages)
    head = list(itertools.takewhile(lambda message: message["role"] in SYSTEM_ROLES, messages))
    if not head:
        return messages
    rest = messages[len(head) :]
    if len(head) > 1 and not renderer.probes.knows_developers:
        head = [{**head[0], "content": _joined(head)}]
    if not renderer.probes.knows_systems and rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": _joined([*head, rest[0]])}, *rest[1:]]
    return [*head, *rest]


def _joined(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(message["content"].strip() for message in messages)


class ReplyCut(RayconteurError):
    """`max_length` would truncate a reply, and `cut_replies` is `fail`."""


def _from_the_left(
    encoder: Encoder, messages: Prepared, tools: Any, learned: Sequence[int], base: list[int],
    samples: list[Sample], max_length: int,
) -> tuple[list[int], list[Sample]]:  # fmt: skip
    """The samples; those that are too long lose as few of their earliest turns as possible."""
    fitting = []
    head, rounds = rounds_of(messages)
    for number, sample in zip(learned, samples, strict=True):
        starts = [numbers[0] for numbers in rounds if numbers[0] <= number]

        def after(place: int, number: int = number, starts: list[int] = starts) -> Sample:
            part = [messages[kept] for kept in (*head, *range(starts[place], number + 1))]
            return encoder.samples(part, tools, [len(part) - 1])[1][0]

        if sample.end > max_length and len(starts) > 1:
            place = bisect.bisect_left(range(1, len(starts) - 1), True, key=lambda n: after(n).end <= max_length)
            part = [messages[kept] for kept in (*head, *range(starts[1 + place], number + 1))]
            own, (cut,) = encoder.samples(part, tools, [len(part) - 1])
            fitting.append(Sample(0, own[: cut.shared] + cut.rest, cut.begin, cut.end))
        else:
            fitting.append(Sample(0, base[: sample.shared] + sample.rest, sample.begin, sample.end))
    return [], fitting


def _as_tree(base: list[int], samples: list[Sample], max_length: int | None, cut_replies: str) -> EncodedConversation:
    most = max_length or max(len(base), *(sample.shared + len(sample.rest) for sample in samples))
    too_long = [sample for sample in samples if sample.end > most]
    if too_long and cut_replies == "fail":
        raise ReplyCut(f"a reply ends at token {too_long[0].end}, beyond data.max_length {most}")
    learned = [sample for sample in samples if sample.begin < most and (sample.end <= most or cut_replies == "cut")]
    if not any(sample.rest for sample in samples):
        ids = base[:most]
        supervised = [False] * len(ids)
        for sample in learned:
            end = min(sample.end, most)
            supervised[sample.begin : end] = [True] * (end - sample.begin)
        return EncodedConversation(ids, supervised, [], [], len(base) > most)
    tree, shared = SampleTree(), most
    for sample in learned:
        shared = min(shared, sample.shared)
        tree.add((base[: sample.shared] + sample.rest)[:most], shared, sample.begin, sample.end)
        shared = sample.shared
    pieces, marks, parents = tree.pieces()
    lengths = [len(piece) for piece in pieces] if len(pieces) > 1 else []
    return EncodedConversation(
        list(itertools.chain(*pieces)),
        list(itertools.chain(*marks)),
        lengths,
        parents if lengths else [],
        bool(too_long),
    )


def _shortened(messages: Sequence[Mapping[str, Any]], max_length: int) -> Sequence[Mapping[str, Any]]:
    """The messages up to the first one that is far longer than `max_length` tokens, and the beginning of that one."""
    most = 64 * max_length
    for number, message in enumerate(messages):
        if len(message["content"]) > most:
            return [*messages[:number], {**message, "content": message["content"][:most]}]
    return messages
