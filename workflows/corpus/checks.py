"""What is looked for in each conversation before it is encoded, and which conversations that leaves out.

checks = Checks.of(data.private, data.filters, words, keep)     # in each process that prepares data
for found in checks.run(examples):                 # of one block of lines
    found.example, found.left_out, found.row

In this order: private details, the language, limits of length and repetition, the word list, the user's function.
Near-duplicates, reference texts and the shares of languages need the whole corpus (workflows/corpus/revision/).
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.text.language import languages_of
from models.text.private import PatternTooSlow, PrivateDetails, replaced
from models.text.private_numbers import REGIONS
from models.text.quality import Limits, figures_of
from models.text.texts import Texts
from models.text.word_list import WordList
from workflows.corpus.errors import UnusableLine
from workflows.corpus.example import Example
from workflows.corpus.rows import CorpusRow
from workflows.corpus.user_filter import UserFilter
from workflows.spec.data import FiltersSpec, PrivateSpec

_MAX_SHOWN = 5


@dataclass
class Checked:
    """A conversation, and what was found in it."""

    example: Example
    """with placeholders for private details, where these are replaced"""

    row: CorpusRow
    """the columns of the corpus that say what was found"""

    left_out: str | None = None
    """why the conversation is left out: the field, and what it has"""

    error: UnusableLine | PatternTooSlow | None = None
    """why the line cannot be used"""


@dataclass(frozen=True)
class Checks:
    """The settings of `data` that look at one conversation at a time, made ready."""

    private: PrivateDetails
    private_action: str
    filters: FiltersSpec
    limits: Limits | None
    word_list: WordList | None
    keep: UserFilter | None

    @classmethod
    def of(
        cls, private: PrivateSpec, filters: FiltersSpec, words: Sequence[str] | None, keep: UserFilter | None
    ) -> "Checks":
        """Raises RayconteurError for patterns and regions that cannot be used. `words`: of the word list."""
        limits = Limits(**{name: getattr(filters, name) for name in _LIMITS})
        return cls(
            private=private_details(private),
            private_action=private.action,
            filters=filters,
            limits=None if limits == Limits() else limits,
            word_list=None if words is None else WordList.of(words),
            keep=keep,
        )

    def run(self, examples: Sequence[Example]) -> list[Checked]:
        """What is found in each; raises StageFailed where the user's function cannot be imported."""
        found = [Checked(example, _empty()) for example in examples]
        steps: list[Callable[[Sequence[Checked]], None]] = [self._private, self._languages]
        steps += [self._limits] if self.limits else []
        steps += [self._words] if self.word_list else []
        steps += [self._kept] if self.keep else []
        for step in steps:
            # What is left out or broken is not looked at again, so its reason is the first one.
            step([each for each in found if each.left_out is None and each.error is None])
        return found

    def _private(self, found: Sequence[Checked]) -> None:
        for each in found:
            texts = list(each.example.texts())
            try:
                details = self.private.find_in_conversation(texts)
            except PatternTooSlow as error:
                each.error = error
                continue
            if not any(details):
                continue
            counts = Counter(detail.kind for of_text in details for detail in of_text)
            each.row["private"] = json.dumps(counts)
            if self.private_action == "drop":
                shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
                each.left_out = f"data.private: has private details ({shown})"
            elif self.private_action == "replace":
                each.example = each.example.with_texts(replaced(texts, details))

    def _languages(self, found: Sequence[Checked]) -> None:
        kept = self.filters.languages
        for each, (language, _) in zip(found, languages_of(map(_prose, found)), strict=True):
            each.row["language"] = language
            if kept is not None and language not in kept:
                each.left_out = f"data.filters.languages: is {language}, and {', '.join(kept)} are kept"

    def _limits(self, found: Sequence[Checked]) -> None:
        assert self.limits is not None
        for each, figures in zip(found, figures_of(_texts(found)), strict=True):
            each.left_out = self.limits.reason(figures)

    def _words(self, found: Sequence[Checked]) -> None:
        assert self.word_list is not None
        for each, words in zip(found, self.word_list.find(_texts(found)), strict=True):
            if not words:
                continue
            each.row["flags"] = json.dumps(words, ensure_ascii=False)
            if self.filters.flagged == "drop":
                shown = ", ".join(map(repr, words[:_MAX_SHOWN]))
                each.left_out = f"data.filters.word_list: has {shown}{' ...' if words[_MAX_SHOWN:] else ''}"

    def _kept(self, found: Sequence[Checked]) -> None:
        assert self.keep is not None
        for each in found:
            conversation = each.example.conversation
            try:
                each.left_out = self.keep.reason(conversation.messages, conversation.tools)
            except UnusableLine as error:
                each.error = error


_LIMITS = ("min_turns", "max_turns", "min_words", "max_words", "max_repetition", "max_non_letters")


def private_details(settings: PrivateSpec) -> PrivateDetails:
    """What finds the details of `data.private`; raises RayconteurError for what cannot be used."""
    return PrivateDetails(settings.patterns, settings.kinds, settings.regions or REGIONS)


def _empty() -> CorpusRow:
    return {"language": None, "private": None, "flags": None}


def _prose(checked: Checked) -> str:
    return "\n".join(checked.example.turns())


def _texts(found: Sequence[Checked]) -> Texts:
    return Texts.of(each.example.turns() for each in found)
