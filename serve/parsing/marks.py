"""Control tokens as single characters, so that output can be parsed as text without confusing text and control
tokens: `<tool_call>` in pieces is text, and the token of that name is one character that does not occur in text.

marks = Marks(tokenizer)
marks.of("<tool_call>\\n")          # "\\ud800\\n", if the tokenizer has this token
decoder = MarkedDecoder(tokenizer, marks)
decoder.push(token_id)             # text, with the tokens that `of` has seen as their characters
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from serve.parsing.decoder import REPLACEMENT, TokenDecoder

# UTF-16 surrogates: decoded text never contains one.
_FIRST, _LAST = 0xD800, 0xDFFF


class Marks:
    """The control tokens that occur in a template's text; other added tokens are text or nothing."""

    def __init__(self, tokenizer: Any) -> None:
        added = {
            str(token.content): token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if len(token.content) > 1 and not token.content.isspace()
        }
        longest_first = sorted(added, key=len, reverse=True)
        self._added = added
        self._names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._chars: dict[int, str] = {}
        self._tokens: dict[str, tuple[int, str]] = {}

    def of(self, text: str) -> str:
        """`text`, with every control token replaced by its character."""
        return self._names.sub(lambda found: self._char(found[0]), text)

    def char(self, token_id: int) -> str | None:
        """The character of a token that `of` has seen."""
        return self._chars.get(token_id)

    def token_id(self, char: str) -> int | None:
        """The token of a character; None for a text character."""
        return self._tokens[char][0] if is_mark(char) else None

    def shown(self, marked: str) -> str:
        """The visible text: without special tokens, and with the names of other ones."""
        return "".join(self._shown_char(char) if is_mark(char) else char for char in marked)

    def names(self, marked: str) -> str:
        """The text with the names of control tokens, as the template wrote it."""
        return "".join(self._tokens[char][1] if is_mark(char) else char for char in marked)

    def in_json(self, text: str) -> str:
        """JSON without marks: a control token inside a JSON string becomes its name."""
        if not any(map(is_mark, text)):
            return text
        names = {char: json.dumps(name, ensure_ascii=False)[1:-1] for char, (_, name) in self._tokens.items()}
        return "".join(names.get(char, REPLACEMENT) if is_mark(char) else char for char in text)

    def _shown_char(self, char: str) -> str:
        token_id, name = self._tokens[char]
        return "" if token_id in self._special else name

    def _char(self, name: str) -> str:
        token_id = self._added[name]
        if token_id not in self._chars:
            code = _FIRST + len(self._chars)
            if code > _LAST:
                return name
            self._chars[token_id] = chr(code)
            self._tokens[chr(code)] = (token_id, name)
        return self._chars[token_id]


def is_mark(char: str) -> bool:
    """Whether a character stands for a control token."""
    return chr(_FIRST) <= char <= chr(_LAST)


class MarkedDecoder:
    """The text of a growing list of tokens, like TokenDecoder, with marks for control tokens."""

    def __init__(self, tokenizer: Any, marks: Marks | None) -> None:
        self._decoder = TokenDecoder(tokenizer)
        self._marks = marks

    def push(self, token_id: int) -> str:
        """The text that is complete with `token_id`."""
        mark = self._marks.char(token_id) if self._marks else None
        if mark is None:
            return self._decoder.push(token_id)
        return self._decoder.cut() + mark

    def finish(self) -> str:
        """The rest at the end, without an incomplete character."""
        return self._decoder.finish()


def marked_text(tokenizer: Any, marks: Marks, token_ids: Iterable[int]) -> str:
    """The text of tokens, including special ones without a mark."""
    text, plain = "", []
    for token_id in token_ids:
        mark = marks.char(token_id)
        if mark is None:
            plain.append(token_id)
            continue
        text += tokenizer.decode(plain, clean_up_tokenization_spaces=False) + mark
        plain = []
    return text + str(tokenizer.decode(plain, clean_up_tokenization_spaces=False))
