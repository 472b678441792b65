"""Text to token ids, where a control token inside a message is plain text.

guard = ControlTokens(tokenizer, template)     # guards the names of control tokens
written = guard.guarded("He said <|im_end|>.")  # before the template adds its own
tokens = TextEncoder(tokenizer, guard).encode(rendered)
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from models.chat.quick_ids import QuickIds
from models.chat.template import GUARD as _GUARD
from models.chat.template import ChatTemplate

_SHORT, _SHORT_TEXTS = 32, 20_000

ALLOWED = "{#- control tokens inside messages are allowed #}"
"""`data.control_tokens: allow` appends this to the chat template, so it is kept wherever the template is"""


class ControlTokens:
    """The control tokens of a template: the special tokens, and other added tokens that it writes."""

    def __init__(self, tokenizer: Any, template: ChatTemplate) -> None:
        written = template.literals()
        names = {
            str(token.content)
            for token in tokenizer.added_tokens_decoder.values()
            if (token.special or token.content in written) and len(token.content) > 1 and not token.content.isspace()
        }
        self.name = _any_of(names)
        """matches their names"""
        self.parting_name = re.compile(f"({self.name.pattern})")
        are_guarded = set() if ALLOWED in template.source else names
        # Templates search a reply's text for these, tokens or not.
        tags = {tag for tag in ("<think>", "</think>") if "</think>" in written}
        self._guarded = _any_of(are_guarded | (tags if are_guarded else set()))
        self.guarded_name = re.compile(f"({_any_of({name[0] + _GUARD + name[1:] for name in are_guarded}).pattern})")

    def guarded(self, value: Any) -> Any:
        """A text, or the texts in a list or an object, with guarded names of control tokens."""
        if isinstance(value, str):
            plain = value.replace(_GUARD, "") if _GUARD in value else value
            return self._guarded.sub(lambda found: f"{found[0][0]}{_GUARD}{found[0][1:]}", plain)
        if isinstance(value, Mapping):
            return {self.guarded(name): self.guarded(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.guarded(item) for item in value]
        return value


def _any_of(names: set[str]) -> re.Pattern[str]:
    """A pattern of any of these texts, a longer one before its own prefixes."""
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)")


def _places(text: str, letter: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(letter), text)]


class Tokens:
    """Token ids of a text, and how many of them come before a position in it."""

    def __init__(self, ids: list[int], ends: list[int]) -> None:
        """`ends`: where each token ends in the text."""
        self.ids = ids
        self.ends = ends

    def before(self, place: int) -> int:
        """The number of tokens that end at or before this position of the text."""
        return bisect_right(self.ends, place)


class _Segments(Tokens):
    """The tokens of a text that control tokens split into segments, each of which is encoded separately."""

    def __init__(self, ids: list[int], segments: list[tuple[int, int, str]], encoder: "TextEncoder") -> None:
        """`segments`: for each its start in the text, its start among the tokens, and its text."""
        self.ids = ids
        self._segments = segments
        self._begins = [begin for begin, _, _ in segments]
        self._encoder = encoder

    def before(self, place: int) -> int:
        number = bisect_right(self._begins, place) - 1
        begin, count, text = self._segments[number]
        if place == begin:
            return count
        if place >= begin + len(text):
            return self._segments[number + 1][1] if number + 1 < len(self._segments) else len(self.ids)
        ids = self._encoder.ids_of([text[: place - begin]])[0]
        if self.ids[count : count + len(ids)] == ids:
            return count + len(ids)
        return count + self._encoder.whole(text).before(place - begin)

    def last_name(self, place: int) -> int:
        """The start of the last control token before this position of the text; 0 if there is none."""
        number = bisect_left(self._begins, place) - 1
        while number > 0 and not self._encoder.is_name(self._segments[number][2]):
            number -= 1
        return self._begins[max(0, number)]


class TextEncoder:
    """A fast tokenizer, without the tokens that it adds around a text."""

    def __init__(self, tokenizer: Any, control: ControlTokens) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._control = control
        self._newline = self._backend.encode("\n", add_special_tokens=False).ids
        self.added = frozenset(tokenizer.added_tokens_decoder)
        added = tokenizer.added_tokens_decoder.items()
        self._named = {str(token.content): number for number, token in added}
        self._short: dict[str, list[int]] = {}
        self._quick: QuickIds | None = None
        eats = any(token.lstrip or token.rstrip or token.single_word for _, token in added)
        self._is_cut = not eats and self._cuts_alike()

    def expect_many(self) -> None:
        """Prepare for many texts."""
        self._quick = self._quick or QuickIds(self._backend, self._own_ids)

    def encode(self, text: str) -> Tokens:
        """Token ids of a rendered text; guarded names become plain characters."""
        if _GUARD not in text:
            return self._in_segments(text) if self._is_cut else self.whole(text)
        ids: list[int] = []
        ends: list[int] = []
        place = 0
        for number, piece in enumerate(self._control.guarded_name.split(text)):
            if piece:
                found = self._as_text(piece) if number % 2 else self._piece(piece, is_first=not ids)
                ids += found.ids
                ends += [place + end for end in found.ends]
            place += len(piece)
        return Tokens(ids, ends)

    def whole(self, text: str) -> Tokens:
        """Token ids of a text without guards, encoded at once."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Tokens(encoding.ids, [end for _, end in encoding.offsets])

    def _in_segments(self, text: str) -> Tokens:
        """The same, with the texts between control tokens encoded separately: faster, and short texts repeat."""
        parts = self._control.parting_name.split(text)
        missing = [part for part in parts[::2] if part and part not in self._short]
        found = dict(zip(missing, self.ids_of(missing), strict=True)) if missing else {}
        ids: list[int] = []
        segments: list[tuple[int, int, str]] = []
        place = 0
        for number, part in enumerate(parts):
            if part:
                segments.append((place, len(ids), part))
                if number % 2:
                    ids.append(self._named[part])
                else:
                    ids += self._short[part] if part in self._short else found[part]
                place += len(part)
        return _Segments(ids, segments, self)

    def ids_of(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts without control tokens; those of short texts are cached."""
        if len(texts) == 1 and texts[0] in self._short:
            return [self._short[texts[0]]]
        found = self._own_ids(texts) if self._quick is None else self._quick.encode(texts)
        if len(self._short) < _SHORT_TEXTS:
            self._short |= {text: ids for text, ids in zip(texts, found, strict=True) if len(text) <= _SHORT}
        return found

    def _own_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [each.ids for each in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _cuts_alike(self) -> bool:
        """Whether texts between control tokens have the same tokens alone as inside a longer text."""
        name = next((name for name in self._named if self._control.name.fullmatch(name)), None)
        if name is None:
            return False
        words = ("a", " a", "\na", "a\n", "\n", " ", "  a ", "\n\n", "A b", ".", "'s", "é")
        text = "".join(f"{name}{word}" for word in words) + name + name
        self._is_cut = True
        return self._in_segments(text).ids == self.whole(text).ids

    def starts_with_control_token(self, text: str, place: int) -> bool:
        """Whether the text from there on can be encoded independently of the text before it."""
        return self._control.name.match(text, place) is not None

    def is_name(self, segment: str) -> bool:
        """Whether a segment of a text is a control token."""
        return segment in self._named

    def last_control_token(self, text: str, end: int, tokens: Tokens) -> int:
        """The start of the last control token before `end` in a text with these tokens; 0 if there is none."""
        if isinstance(tokens, _Segments):
            return tokens.last_name(end)
        begin = max(0, end - 512)
        while True:
            found = [match.start() for match in self._control.name.finditer(text, begin, end)]
            if found or not begin:
                return found[-1] if found else 0
            begin = max(0, begin - 8 * (end - begin))

    def _piece(self, text: str, is_first: bool) -> Tokens:
        """A piece of a longer text. Some tokenizers add a space before a text, but not before a later piece of it."""
        plain = text.replace(_GUARD, "")
        skipped = 0
        found = self._backend.encode(plain if is_first else "\n" + plain, add_special_tokens=False)
        if not is_first:
            skipped = len(self._newline)
            if found.ids[:skipped] != self._newline:
                skipped = 0
                found = self._backend.encode(plain, add_special_tokens=False)
        ends = [end - bool(skipped) for _, end in found.offsets[skipped:]]
        if len(plain) < len(text):  # guards outside of token names count as characters
            guards = [place - number for number, place in enumerate(_places(text, _GUARD))]
            ends = [end + bisect_left(guards, end) for end in ends]
        return Tokens(found.ids[skipped:], ends)

    def _as_text(self, guarded: str) -> Tokens:
        """The name of a control token as tokens of plain text, none of them an added token."""
        name = guarded.replace(_GUARD, "")
        ids = self._model_ids("\n" + name)
        count = len(self._newline)
        ids = ids[count:] if ids[:count] == self._newline else self._model_ids(name)
        if not self.added.isdisjoint(ids):  # the pieces contain the token itself: use characters
            ids = [token for letter in name for token in self._model_ids(letter)]
        return Tokens(ids, [len(guarded)] * len(ids))

    def _model_ids(self, text: str) -> list[int]:
        """The ids from the tokenizer's model alone, without added tokens."""
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        splits: Sequence[str] = [text]
        if backend.pre_tokenizer is not None:
            splits = [split for split, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for split in splits for token in backend.model.tokenize(split)]
