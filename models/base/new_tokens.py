"""Texts that become one token each (`data.new_tokens`): in the tokenizer, and as rows of the embedding and the head.

    add_new_tokens(tokenizer, ["<|tool|>", "Brindlewick"])
    new = fit_embeddings(model, base_folder, tokenizer)     # before an adapter is attached or loaded

New rows start as the mean of the old ones (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
Models"): a random row can get most of the probability in the first predictions.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.base.load import load_tokenizer
from models.errors import RayconteurError

# The number of rows is padded to a multiple of this, for fast matrix products.
_ROWS_AT_ONCE = 64


def add_new_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Make each text one token of a fast tokenizer, wherever it occurs; returns their ids.

    They are text, not control tokens, so replies show them. Raises RayconteurError for a text that cannot be a token.
    """
    from tokenizers import AddedToken

    if again := sorted({text for text in texts if list(texts).count(text) > 1}):
        raise RayconteurError(f"data.new_tokens: {again[0]!r} is listed twice; remove one")
    if blank := [text for text in texts if text != text.strip() or not text]:
        raise RayconteurError(
            f"data.new_tokens: {blank[0]!r} starts or ends with white space, which chat templates strip; "
            "give the word without it"
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
                + (f", since it contains {others}, which is one too; remove one" if others else "; remove it")
            )
    return ids


def tokens_without_rows(folder: Path, num_rows: int) -> dict[int, tuple[str, bool]]:
    """The tokens of a folder's tokenizer.json that an embedding of `num_rows` rows does not cover.

    By id: the text, and whether it is a control token. Needs no libraries, which take seconds to import.
    """
    try:
        file = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = file["model"]["vocab"]
        ids = vocabulary if isinstance(vocabulary, dict) else {entry[0]: id_ for id_, entry in enumerate(vocabulary)}
        added = {token["id"]: (str(token["content"]), bool(token["special"])) for token in file["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {}  # `load_tokenizer` raises the error
    found = {id_: (str(text), False) for text, id_ in ids.items() if id_ >= num_rows}
    return found | {id_: entry for id_, entry in added.items() if id_ >= num_rows}


def fit_embeddings(model: Any, base_folder: Path | str, tokenizer: Any) -> list[int]:
    """Add a row of embedding and head to the base model for each token of `tokenizer` that has none; returns their
    ids.

    They include tokens of its own tokenizer that have no row.
    """
    new = list(range(min(len(load_tokenizer(base_folder)), rows_of(model)), len(tokenizer)))
    if new:
        fit_rows(model, new)
    return new


def fit_rows(model: Any, new: Sequence[int]) -> None:
    """The same for these ids, the highest ones. Spare rows are used first; new rows are the mean of the rows of the
    model's own tokens."""
    import torch

    num_rows = rows_of(model)
    if num_rows <= new[-1]:
        padded = _ROWS_AT_ONCE if num_rows % _ROWS_AT_ONCE == 0 else None
        model.resize_token_embeddings(new[-1] + 1, pad_to_multiple_of=padded, mean_resizing=False)
    head = model.get_output_embeddings()
    vectors = [model.get_input_embeddings().weight]
    vectors += [value for value in (getattr(head, "weight", None), getattr(head, "bias", None)) if value is not None]
    with torch.no_grad():
        made = [*new, *range(num_rows, rows_of(model))]  # padding rows too
        for values in vectors:  # tied ones twice, which changes nothing
            values[made] = values[: min(new[0], num_rows)].float().mean(dim=0).to(values.dtype)


def rows_of(model: Any) -> int:
    """The number of rows of the model's embedding."""
    return int(model.get_input_embeddings().weight.shape[0])
