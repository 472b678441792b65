"""A tokenizer for llguidance in which control tokens have names that do not occur in text.

llguidance encodes forced text like the tokenizer, so a constant "<think>" becomes the control token of that name,
which it then refuses, since a control token is not text. With another name for the token, the constant becomes
several tokens.
"""

import json
from copy import copy
from typing import Any

# From Unicode's private use area, so it does not occur in text.
_SIGN = "\U0010fffd"


def token_source(tokenizer: Any) -> str:
    """The tokenizer as JSON, for llguidance."""
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    found = json.loads(backend.to_str())
    _rename(found)
    return json.dumps(found, ensure_ascii=False)


def _rename(tokenizer: dict[str, Any]) -> None:
    model = tokenizer["model"]
    names = {token["content"] for token in tokenizer["added_tokens"] if not token["content"].isspace()}
    # Tokens such as white space, which ordinary text uses too.
    pieces = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges", ()))
    names -= {part for one, other in pieces for part in (one, other, one + other) if part in names}
    renamed = {}
    for token in tokenizer["added_tokens"]:
        if token["content"] in names:
            name = f"{_SIGN}{token['id']}{_SIGN}"
            renamed[token["content"]] = token["content"] = name
            token["special"] = True
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed.get(name, name): number for name, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[renamed.get(name, name), score] for name, score in vocabulary]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
