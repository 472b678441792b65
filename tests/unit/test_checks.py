"""What is looked for in each conversation before it is encoded, on examples of every kind."""

import json
from collections.abc import Sequence
from typing import Any, get_args

import pytest

from models.chat import Conversation
from models.errors import RayconteurError
from models.text.private import KINDS
from workflows.corpus.checks import Checked, Checks
from workflows.corpus.example import Example
from workflows.corpus.revision.quotas import quotas
from workflows.corpus.user_code import UserCode
from workflows.corpus.user_filter import UserFilter
from workflows.spec.data import FiltersSpec, PrivateKind, PrivateSpec

CALL = {"type": "function", "function": {"name": "send", "arguments": {"to": ["ann@example.org"], "n": 1}}}


def said(*texts: str, **more: Any) -> Example:
    messages: list[Any] = [
        {"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(texts)
    ]
    messages[-1] |= more
    return Example(Conversation(messages))


def checked(
    *examples: Example,
    private: dict[str, Any] | None = None,
    filters: dict[str, Any] | None = None,
    words: Sequence[str] | None = None,
    keep: str | None = None,
) -> list[Checked]:
    code = UserCode({"keeps.py": keep.encode()}) if keep else UserCode()
    function = UserFilter("keeps:keep", code) if keep else None
    found = Checks.of(PrivateSpec(**private or {}), FiltersSpec(**filters or {}), words, function)
    return found.run(examples)


def test_the_kinds_of_the_spec_are_those_that_are_found() -> None:
    assert sorted(get_args(PrivateKind)) == sorted(KINDS)


def test_private_details_are_counted_and_stay_by_default() -> None:
    example = said("Mail ann@example.org", "I mail ann@example.org now.")
    (found,) = checked(example)
    assert json.loads(found.row["private"] or "") == {"email": 2}
    assert found.example is example
    assert found.left_out is None


def test_placeholders_replace_them_everywhere_and_the_same_one_for_the_same_detail() -> None:
    example = said(
        "Mail ann@example.org", "Not bob@example.org?", tool_calls=[CALL], reasoning_content="ann@example.org!"
    )
    pair = Example(example.conversation, said("Mail ann@example.org", "To bob@example.org").conversation)
    (found,) = checked(pair, private={"action": "replace"})
    first, reply = found.example.conversation.messages
    assert first["content"] == "Mail [EMAIL_1]"
    assert reply["content"] == "Not [EMAIL_2]?"
    assert reply["reasoning_content"] == "[EMAIL_1]!"
    assert reply["tool_calls"][0]["function"]["arguments"] == {"to": ["[EMAIL_1]"], "n": 1}
    assert found.example.other is not None
    assert [message["content"] for message in found.example.other.messages] == ["Mail [EMAIL_1]", "To [EMAIL_2]"]
    assert example.conversation.messages[0]["content"] == "Mail ann@example.org"


def test_own_patterns_are_found_and_one_that_is_too_slow_is_the_lines_fault() -> None:
    (found,) = checked(
        said("See TCK-123456.", "Yes."), private={"action": "drop", "patterns": {"ticket": r"TCK-\d{6}"}}
    )
    assert found.left_out == "data.private: has private details (1 ticket)"
    with pytest.raises(RayconteurError, match=r"data\.private\.patterns\.ticket: '\(' is no regular expression"):
        checked(said("a", "b"), private={"patterns": {"ticket": "("}})


def test_languages_are_found_and_others_are_left_out() -> None:
    english = said(
        "Could you tell me where the train station is, please?", "It is just around the corner, on the left."
    )
    german = said("Wo ist denn bitte der nächste Bahnhof?", "Gleich um die Ecke, auf der linken Seite.")
    short = said("ok", "ok")
    found = checked(english, german, short, filters={"languages": ["de", "und"]})
    assert [each.row["language"] for each in found] == ["en", "de", "und"]
    assert [each.left_out for each in found] == ["data.filters.languages: is en, and de, und are kept", None, None]


def test_limits_and_word_lists_name_the_field() -> None:
    long = said("one two three", "four five six seven eight")
    rude = said("you darn thing", "shut up")
    found = checked(
        long, rude, filters={"max_words": 7, "flagged": "drop", "word_list": "x"}, words=["darn", "shut up", "nice"]
    )
    assert found[0].left_out == "data.filters.max_words: 8 words, more than 7"
    assert found[1].left_out == "data.filters.word_list: has 'darn', 'shut up'"
    (kept,) = checked(rude, words=["darn"])
    assert kept.left_out is None
    assert json.loads(kept.row["flags"] or "") == ["darn"]


def test_a_users_function_decides_and_its_failure_is_the_lines_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("RAYCONTEUR_CACHE", str(tmp_path))
    keep = "def keep(talk):\n    return [True, False, 1 // 0][len(talk['messages']) // 2 - 1]\n"
    keep = keep.replace("[True, False, 1 // 0]", "[True, False, None]")
    found = checked(said("a", "b"), said("a", "b", "c", "d"), said(*"abcdef"), keep=keep)
    assert [each.left_out for each in found] == [None, "data.filter: keeps:keep returned False", None]
    assert "must return True or False" in str(found[2].error)


def test_what_is_left_out_has_the_first_reason_alone() -> None:
    example = said("Mail ann@example.org", "Yes, darn.")
    (found,) = checked(example, private={"action": "drop"}, filters={"flagged": "drop"}, words=["darn"])
    assert found.left_out == "data.private: has private details (1 email)"
    assert found.row["flags"] is None


@pytest.mark.parametrize(("counts", "shares", "expected"), [
    ({"en": 80, "de": 20}, {"en": 0.5}, {"en": 20}),
    ({"en": 10, "de": 10}, {"en": 0.5}, {}),
    ({"en": 100, "de": 100, "fr": 10}, {"en": 0.4, "de": 0.4}, {"en": 20, "de": 20}),
    # Of fewer in all, a language that was below its share is above it.
    ({"en": 900, "de": 60, "fr": 40}, {"en": 0.5, "de": 0.2}, {"en": 66, "de": 26}),
    ({"en": 5}, {"en": 0.5}, {"en": 0}),
    ({"en": 5}, {"fr": 0.5}, {}),
])  # fmt: skip
def test_quotas_leave_each_language_at_most_its_share(
    counts: dict[str, int], shares: dict[str, float], expected: dict[str, int]
) -> None:
    found = quotas(counts, shares)
    assert found == expected
    kept = {**counts, **found}
    assert all(kept.get(language, 0) <= share * sum(kept.values()) + 1 for language, share in shares.items())
