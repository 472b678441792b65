"""Texts that become one token each (`data.new_tokens`): in the tokenizer, and as rows of embedding and head.

    add_new_tokens(tokenizer, ["<|tool|>", "Brindlewick"])
    new = fit_embeddings(model, base_folder, tokenizer)     # before an adapter is attached or loaded

New rows begin as the mean of the old ones (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
Models"): what is drawn at random can take most of the first predictions to itself.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.base.load import load_tokenizer
from models.errors import RayconteurError

# Rows of a padded embedding stay a multiple of this, where products are fast.
_ROWS_AT_ONCE = 64


def add_new_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Make each text one token of a fast tokenizer, wherever it stands; returns their ids.

    They are text, not control tokens: replies show them. Raises RayconteurError for a text that cannot be a token.
    """
    from tokenizers import AddedToken

    if again := sorted({text for text in texts if list(texts).count(text) > 1}):
        raise RayconteurError(f"data.new_tokens: {again[0]!r} is there twice; leave one out")
    if blank := [text for text in texts if text != text.strip() or not text]:
        raise RayconteurError(
            f"data.new_tokens: {blank[0]!r} begins or ends with white space, which chat templates take away; "
            "name the word alone"
        )
    known = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts if text not in known])
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(texts))
    for text, token in zip(texts, ids, strict=True):
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        if found != [token]:
            others = ", ".join(repr(other) for other in texts if other != text and other in text)
            raise RayconteurError(
                f"data.new_tokens: {text!r} would be {len(found)} tokens"
                + (f", as {others} in it is one, too; leave one of them out" if others else "; leave it out")
            )
    return ids


def tokens_without_rows(folder: Path, num_rows: int) -> dict[int, tuple[str, bool]]:
    """Of a model's folder the tokens of its tokenizer.json that an embedding of so many rows has none for.

    By their ids: the text, and whether it is a control token. Without the libraries, which take seconds to import.
    """
    try:
        file = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = file["model"]["vocab"]
        ids = vocabulary if isinstance(vocabulary, dict) else {entry[0]: id_ for id_, entry in enumerate(vocabulary)}
        added = {token["id"]: (str(token["content"]), bool(token["special"])) for token in file["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {}  # `load_tokenizer` says what is wrong with it
    found = {id_: (str(text), False) for text, id_ in ids.items() if id_ >= num_rows}
    return found | {id_: entry for id_, entry in added.items() if id_ >= num_rows}


def fit_embeddings(model: Any, base_folder: Path | str, tokenizer: Any) -> list[int]:
    """Give the base model a row of embedding and head for each token that `tokenizer` has beyond its own; their ids.

    Those of its own tokenizer that it has no row for are among them.
    """
    new = list(range(min(len(load_tokenizer(base_folder)), rows_of(model)), len(tokenizer)))
    if new:
        fit_rows(model, new)
    return new


def fit_rows(model: Any, new: Sequence[int]) -> None:
    """The same for these tokens, the model's last ones. Spare rows are used first; the new ones are the mean of those
    of the model's own tokens."""
    import torch

    num_rows = rows_of(model)
    if num_rows <= new[-1]:
        padded = _ROWS_AT_ONCE if num_rows % _ROWS_AT_ONCE == 0 else None
        model.resize_token_embeddings(new[-1] + 1, pad_to_multiple_of=padded, mean_resizing=False)
    head = model.get_output_embeddings()
    vectors = [model.get_input_embeddings().weight]
    vectors += [value for value in (getattr(head, "weight", None), getattr(head, "bias", None)) if value is not None]
    with torch.no_grad():
        made = [*new, *range(num_rows, rows_of(model))]  # with those that only fill up
        for values in vectors:  # tied ones twice, to no effect
            values[made] = values[: min(new[0], num_rows)].float().mean(dim=0).to(values.dtype)


def rows_of(model: Any) -> int:
    """How many tokens the model has an embedding for."""
    return int(model.get_input_embeddings().weight.shape[0])
