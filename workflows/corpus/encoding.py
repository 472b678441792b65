"""Convert a record of a file to a row of the corpus: its messages, its tokens, its side of the split."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.chat import Conversation, EncodedConversation, Message, common_prompt, encode_conversation
from models.chat.renderer import renderer_of
from workflows.corpus.conversations import group_of, parse_conversation, parse_judged, parse_pair
from workflows.corpus.errors import UnusableLine
from workflows.corpus.example import Example
from workflows.corpus.rows import CorpusRow
from workflows.corpus.split import side_of, split_key
from workflows.spec import DataSpec


@dataclass(frozen=True)
class Encoding:
    """The settings that decide how lines become rows."""

    tokenizer: Any
    data: DataSpec
    examples: str
    """the objective's kind of example: `conversations`, `pairs` or `judged`"""

    def __post_init__(self) -> None:
        renderer_of(self.tokenizer).encoder.expect_many()

    def read(self, text: bytes, mismatched: str) -> Example:
        """The messages of a line; raises RayconteurError with the reason if it has none of the objective's kind."""
        how = self.data.names, self.data.same_role, self.data.knowledge
        if self.examples == "conversations":
            return Example(self._thought(parse_conversation(text, *how)))
        if self.examples == "pairs":
            chosen, rejected = parse_pair(text, *how)
            return Example(self._thought(chosen), self._thought(rejected))
        judged, desirable = parse_judged(text, *how)
        judged = self._thought(judged)
        if not mismatched:
            raise UnusableLine("KTO's reference point needs another prompt and reply near this line; there is none")
        reply: Message = {"role": "assistant", "content": mismatched}
        return Example(judged, Conversation([*judged.messages[:-1], reply], judged.tools), desirable)

    def row(self, example: Example, text: bytes) -> CorpusRow:
        """A row of the corpus, of the line `text`; raises RayconteurError if nothing can be learned from it, and
        `models.chat.ReplyCut` if `data.cut_replies` is `fail` and a reply is cut.
        """
        conversation, other = example.conversation, example.other
        encoded = [self._encoded(each, other is not None) for each in (conversation, other) if each is not None]
        messages = json.dumps(conversation.messages, ensure_ascii=False)
        tools = None if conversation.tools is None else json.dumps(conversation.tools, ensure_ascii=False)
        key = messages if other is None else split_key(conversation.messages, is_pair=True)
        group = group_of(text, self.data.group_by) if self.data.group_by else None
        row: CorpusRow = {
            "desirable": example.desirable,
            "num_messages": len(conversation.messages),
            "messages": messages,
            "tools": tools,
            "group": group,
            "split": side_of(key if group is None else group, self.data.held_out_share),
        }
        return row | _tokens(encoded)

    def again(self, messages: str, tools: str | None) -> CorpusRow:
        """The columns of a row whose messages, as JSON, were changed; raises UnusableLine if nothing can be learned
        from it.
        """
        conversation = Conversation(json.loads(messages), None if tools is None else json.loads(tools))
        changed: CorpusRow = {"messages": messages}
        return changed | _tokens([self._encoded(conversation, last_reply_only=False)])

    def _thought(self, conversation: Conversation) -> Conversation:
        """The message with its reasoning handled as `data.reasoning` states."""
        if self.data.reasoning == "template":
            return conversation
        messages = [_without_reasoning(message, self.data.reasoning) for message in conversation.messages]
        return Conversation(messages, conversation.tools)

    def _encoded(self, conversation: Conversation, last_reply_only: bool) -> EncodedConversation:
        """The tokens within `data.max_length`; raises UnusableLine if they contain no reply."""
        data = self.data
        found = encode_conversation(
            self.tokenizer, conversation.messages, last_reply_only, conversation.tools,
            data.max_length, data.truncate, data.cut_replies,
        )  # fmt: skip
        if not any(found.supervised[1:]):
            turn = "last reply" if last_reply_only else "assistant turn"
            where = f"within the first {data.max_length} tokens (data.max_length)" if found.is_cut else "in it"
            raise UnusableLine(f"nothing to learn: no {turn} {where}")
        return found


def _tokens(encoded: Sequence[EncodedConversation]) -> CorpusRow:
    """The columns that have a row's tokens; `encoded` has one or two sequences."""
    first, *others = encoded
    row: CorpusRow = {
        "input_ids": first.input_ids,
        "supervised": first.supervised,
        "num_tokens": sum(len(each.input_ids) for each in encoded) - (common_prompt(first, *others) if others else 0),
        "num_targets": sum(sum(each.supervised[1:]) for each in encoded),
        "truncated": any(each.is_cut for each in encoded),
    }
    if others:
        row["other_input_ids"], row["other_supervised"] = others[0].input_ids, others[0].supervised
    if first.piece_lengths:
        row["piece_lengths"], row["piece_parents"] = first.piece_lengths, first.piece_parents
    return row


def _without_reasoning(message: Message, how: str) -> Message:
    if not (reasoning := message.get("reasoning_content")):
        return message
    kept: Any = {name: value for name, value in message.items() if name != "reasoning_content"}
    if how == "text":
        kept["content"] = f"<think>\n{reasoning}\n</think>\n\n{message['content']}".rstrip()
    return kept  # type: ignore[no-any-return]
