"""A tokenizer as llguidance knows it, in which control tokens have names that nobody writes.

llguidance spells what it forces as the tokenizer would, and so writes a constant "<think>" as the token of that name,
which it then refuses: a token is no text. With another name for the token, the constant is spelled in pieces.
"""

import json
from copy import copy
from typing import Any

# Of Unicode's private use, and not a letter of anybody's text.
_SIGN = "\U0010fffd"


def token_source(tokenizer: Any) -> str:
    """What llguidance makes a map of: the tokenizer as JSON."""
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    found = json.loads(backend.to_str())
    _rename(found)
    return json.dumps(found, ensure_ascii=False)


def _rename(tokenizer: dict[str, Any]) -> None:
    model = tokenizer["model"]
    names = {token["content"] for token in tokenizer["added_tokens"] if not token["content"].isspace()}
    # Tokens of white space and the like, which text is spelled with as well.
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
