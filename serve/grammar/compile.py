"""Compiling a grammar with llguidance, within its own limits: the same in the process that tries grammars and in the
one that uses them. Imports llguidance alone, so that the trying process starts fast.
"""

import re
from collections.abc import Iterable

import llguidance

# Of a step half of llguidance's defaults: a mask that uses them up takes longer than a token of a small model. Of the
# lexer's states a fifth: each takes about 1 KB, and a reply may come to as many as there can be.
LIMITS = llguidance.LLParserLimits(step_lexer_fuel=100_000, step_max_items=25_000, max_lexer_states=50_000)


_CHECK = "leave it out, and look at the reply for it"
# Its words, and ours for who asked.
_PLAINLY = (
    (r"^at \d+\(\d+\): (failed to compile JSON schema: )?", ""),
    (r"oneOf constraints are not supported.*", "`oneOf` is followed where no value can match two of its schemas, as "
     "where each requires a property with a constant of its own; write `anyOf`"),
    (r'Unimplemented keys: \["([^"]+)".*', rf"`\1` is a rule that cannot be followed; {_CHECK}"),
)  # fmt: skip


def tokens_of(source: str, vocab_size: int, end_token_ids: Iterable[int]) -> llguidance.LLTokenizer:
    """From `serve.grammar.token_map`'s source; takes a few seconds with a large vocabulary."""
    return llguidance.LLTokenizer(source, n_vocab=vocab_size, eos_token=sorted(end_token_ids))


def compiled(tokens: llguidance.LLTokenizer, lark: str) -> llguidance.LLMatcher:
    """Where a reply of this grammar begins; raises ValueError for one that is none, or takes too much to follow."""
    start = llguidance.LLMatcher(tokens, lark, log_level=0, limits=LIMITS)
    if not start.is_error():
        start.compute_bitmask()  # too much to follow shows here
    if start.is_error():
        raise ValueError(told(start))
    return start


def told(matcher: llguidance.LLMatcher) -> str:
    """Its error in one line; after an empty line or a mark come details of its own, and of what was made here."""
    said = re.split(r"\n\n|\n *1 \||<state>|<backtrace>", matcher.get_error())[0]
    said = " ".join(said.replace("NoExtensionBias", "no value at all follows it").split())
    for pattern, words in _PLAINLY:
        said = re.sub(pattern, words, said)
    return said[:400].rstrip(".")
