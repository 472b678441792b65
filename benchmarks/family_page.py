"""The page that families.py writes, docs/families.md, and its lines on the screen."""

import importlib.metadata
from typing import Any

from family_list import Family
from family_packages import source_of
from family_talks import CELLS

COLUMNS = [*CELLS, "tools at the endpoint", "ends where it should"]
_HEAD = """# Families of chat models

Training and serving tested with the chat models that people fine-tune: each with its published tokenizer and chat
template, on conversations of each kind and on random ones. In training, each reply must follow exactly the token ids
that the endpoint puts before it, and consist of the reply and its end token. The reference is transformers'
`apply_chat_template`, for the messages before a reply and with it, and a list of each family's end tokens.
Conversations are packed as in a training step and read back from the packed rows.

    python benchmarks/families.py --write docs/families.md

- **exact**: the same token ids, for every reply of the conversation. If a template changes an earlier turn once later
  ones follow (it drops thinking, ends the last turn differently, moves the system message), each reply has its own
  history; the common part is computed once (`docs/training.md`).
- **exact, one call a turn**: the template allows one call per turn, so several calls become several turns, each
  followed by its result, in training as at the endpoint.
- **refused**: an error; the number refers to the message below. The template does not write this, so the model was
  not trained on it either. Nothing is dropped silently.
- **tools at the endpoint**: the endpoint parses a call in the template's format as a call, with unchanged arguments.
- **ends where it should**: the endpoint ends a reply at the end tokens of the model's `generation_config.json`, its
  tokenizer and its template, and no reply contains one.
- **random**: conversations of one to five rounds with any of: a system message, a second one later, role
  `developer`, reasoning, calls with and without text or a list of tools, several calls in one turn, several turns of
  calls, a first message by the assistant, replies that are not supervised; unusual words, names of control tokens,
  all kinds of white space, emoji, other scripts. The number of exact ones, and how many of their replies the endpoint
  parses differently.
"""

_DESIGN = """
## What differs from transformers by design

- White space around a message's text is removed, in training and at the endpoint: tokenizers merge it with the
  template's own, so the first supervised token would differ from the first generated one.
- The name of a control token in a message is plain text (`data.control_tokens`). transformers has
  `sanitize_control_tokens=True` for this, which leaves the name visible to the template: Qwen3's, for example, cuts a
  reply at a `</think>` that the user asked for. Here the template does not see it.
- If a template opens thinking in the prompt but writes earlier replies without it (DeepSeek R1), the reasoning,
  `</think>` and an empty line come before the reply.
- If a template refuses system messages (Gemma 2), they come before the first user message, after it an empty line.
- If a reply ends only with the first token of the next turn (GLM), it is trained with that token.
- A template must write the whole text of a reply; text that it drops is an error.
- The date in templates (`strftime_now`) is the 31st of January 2026 in this test, as set by `data.template_date`.

## What the endpoint parses differently

A reply with text and calls is one string, and some templates write two different replies as the same string. The
endpoint then parses a generated string as one of them:

- LFM2.5 writes string arguments between single quotes without the escapes that Python requires.
- Qwen3.5 and GLM-4.5 write them without quotes, between tags: a string that contains the closing tag ends there, and
  white space at its end cannot be distinguished from the template's own.
- SentencePiece tokenizers (Llama 2, Mistral, Gemma) have one token for a space and for the letter \u2581; this is not
  counted here.
- gpt-oss writes text beside a call as thinking, and it is parsed as `reasoning_content`; not counted either.
"""


def line(family: Family, found: Any) -> str:
    """A family's outcome as a line for the terminal."""
    cells = ", ".join(f"{name}: {status}" for name, (status, _) in found.cells.items())
    refused = sum(found.refusals.values())
    return (
        f"{family.name}: {found.exact:,} random conversations exact, {len(found.differences)} different, {refused} "
        f"refused, {found.misread} of {found.replies:,} replies read otherwise; {cells}; {found.seconds} s"
    )


def page(families: list[Family], results: dict[str, Any]) -> str:
    """docs/families.md."""
    sentences: dict[str, int] = {}
    rows = [_row(family, results[family.name], sentences) for family in families]
    head = ["family", *COLUMNS, "random"]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]
    refused = [f"{number}. {sentence}" for sentence, number in sentences.items()]
    sources = [f"| {family.name} | {source_of(family)} | {family.note} |" for family in families]
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "tokenizers", "jinja2")
    )
    parts = [
        _HEAD, "", *table, "", "## Sentences", "", *refused, "", "## Random conversations that are refused", "",
        "Sampled in addition to the exact ones: each message, and its number. `needlessly` marks what transformers "
        "would write nevertheless: SmolLM3's template takes `/think` out of a system message.",
        "", *_refusals(families, results),
        _DESIGN, "## Sources", "",
        "Installed by npm and pip; this repository contains none of them. `near` means that the family's own "
        "tokenizer is in no package, and the nearest one was used, with the family's control tokens added.", "",
        f"With {versions}.", "", "| family | tokenizer and template | |", "|---|---|---|", *sources, "",
    ]  # fmt: skip
    return "\n".join(parts)


def _row(family: Family, found: Any, sentences: dict[str, int]) -> str:
    cells = []
    for column in COLUMNS:
        status, sentence = found.cells[column]
        if sentence:
            sentences.setdefault(sentence, len(sentences) + 1)
        cells.append(f"{status} ({sentences[sentence]})" if sentence else status)
    different = f", {len(found.differences)} **different**" if found.differences else ""
    misread = f", {found.misread} of {found.replies:,} replies" if found.misread else ""
    return f"| {family.name} | " + " | ".join([*cells, f"{found.exact:,}{different}{misread}"]) + " |"


def _refusals(families: list[Family], results: dict[str, Any]) -> list[str]:
    counted: dict[str, list[str]] = {}
    for family in families:
        for sentence, count in results[family.name].refusals.items():
            counted.setdefault(sentence, []).append(f"{family.name} {count}")
    return [f"- {sentence}: {', '.join(names)}" for sentence, names in counted.items()]
