"""The page that families.py writes, docs/families.md, and its lines on the screen."""

import importlib.metadata
from typing import Any

from family_list import Family
from family_packages import source_of
from family_talks import CELLS

COLUMNS = [*CELLS, "tools at the endpoint", "ends where it should"]
_HEAD = """# Families of chat models

How the chat models that people fine-tune come through training and serving: each with its tokenizer and chat
template as published, on conversations of each kind and on random ones. Every reply must be learned after exactly the
token ids that the endpoint reads before it, and be the reply and the token that ends it. What is expected comes from
transformers' own `apply_chat_template`, for the messages before a reply and with it, and from a list of the tokens
that end each family's replies; conversations are packed as in a training step and read off the packed rows.

    python benchmarks/families.py --write docs/families.md

- **exact**: the same token ids, for every reply of the conversation. Where a template writes an earlier turn
  otherwise once later ones follow (thinking is dropped, the last turn has another end, the system's text moves), each
  reply has its own history; what they have in common is read once (`docs/training.md`).
- **exact, one call a turn**: the template takes one call in a turn, so several become turns of their own, each with
  its answer behind it, in training as at the endpoint.
- **refused**: an error with a sentence, whose number stands behind; the sentences are below. The template has no
  place for it, so the model was never trained on it either: nothing is dropped unsaid.
- **tools at the endpoint**: a call that is written as the template writes it is read back as a call, its arguments as
  they were.
- **ends where it should**: the tokens at which the endpoint ends a reply are those of the model's
  `generation_config.json`, of its tokenizer and of its template, and no reply has one within it.
- **random**: conversations of one to five rounds with any of: a system text, one later in the conversation, role
  `developer`, reasoning, calls with and without words or a list of tools, several in one turn and several turns of
  them, a first message of the assistant's, replies that are not learned; texts of odd words, names of control tokens,
  white space of all kinds, emoji, other scripts. So many were learned exactly; behind it how many of their replies
  the endpoint reads otherwise than they were meant.
"""

_DESIGN = """
## What differs from transformers by design

- White space around a message's text is left out, in training and at the endpoint: tokenizers merge it with the
  template's own, and the first token that is learned would be another than the first that is generated.
- The name of a control token in what people wrote is text (`data.control_tokens`). transformers has
  `sanitize_control_tokens=True` for this, which leaves the name in place for the template: so Qwen3's cuts a reply at
  a `</think>` that the user asked it to write. Here the template does not see it.
- A template that opens thinking in the prompt, but writes earlier replies without any (DeepSeek R1), gets what was
  thought, `</think>` and an empty line before the reply.
- A template that refuses system texts (Gemma 2) gets them before the first question, an empty line between them.
- Where no token ends a reply but the next turn's first one does (GLM), a reply is learned with that token.
- What a template writes of a reply must have all that was said in it; words that it drops are an error.
- Days in templates (`strftime_now`) are the 31st of January 2026 in this trial, as by `data.template_date`.

## What the endpoint reads otherwise

A reply of words and calls is one text, and some templates write it so that two replies have the same text. What a
model generates is then read as one of them:

- LFM2.5 writes texts of arguments between single quotes without escaping them, as Python would need it.
- Qwen3.5 and GLM-4.5 write them without any quotes, between tags: a text that holds the closing tag ends there, and
  white space at its end is not told from the template's own.
- SentencePiece's tokenizers (Llama 2, Mistral, Gemma) have one token for a space and for the letter \u2581; that is
  not counted here.
- gpt-oss writes words beside a call as thinking, and they come back as `reasoning_content`; not counted either.
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
        "Drawn beside the exact ones: the sentence of each, and how many. `needlessly` stands before what "
        "transformers would write all the same: SmolLM3's template takes `/think` out of a system text.",
        "", *_refusals(families, results),
        _DESIGN, "## Sources", "",
        "Read where npm and pip put them; nothing of them is in this repository. `near` says that the family's own "
        "tokenizer is in no package, and the nearest one was taken, with the family's control tokens added.", "",
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
