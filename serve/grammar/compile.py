"""Compiling a grammar with llguidance and limits: the same in the process that checks grammars and in the one that
uses them. Imports only llguidance, so that the checking process starts fast.
"""

import re
from collections.abc import Iterable

import llguidance

# Half of llguidance's default limits for a step: a mask that uses them up takes longer than a token of a small model.
# A fifth of its lexer states: each takes about 1 KB, and a reply may reach the maximum.
LIMITS = llguidance.LLParserLimits(step_lexer_fuel=100_000, step_max_items=25_000, max_lexer_states=50_000)


_CHECK = "remove it, and check the reply yourself"
# llguidance's messages, and the messages for the client.
_PLAINLY = (
    (r"^at \d+\(\d+\): (failed to compile JSON schema: )?", ""),
    (r"oneOf constraints are not supported.*", "`oneOf` is supported if no value can match two of its schemas, as "
     "when each requires a property with a different constant; write `anyOf`"),
    (r'Unimplemented keys: \["([^"]+)".*', rf"`\1` is not supported; {_CHECK}"),
)  # fmt: skip


def tokens_of(source: str, vocab_size: int, end_token_ids: Iterable[int]) -> llguidance.LLTokenizer:
    """llguidance's tokenizer from `serve.grammar.token_map`'s source; takes a few seconds with a large vocabulary."""
    return llguidance.LLTokenizer(source, n_vocab=vocab_size, eos_token=sorted(end_token_ids))


def compiled(tokens: llguidance.LLTokenizer, lark: str) -> llguidance.LLMatcher:
    """The start state of a grammar; raises ValueError if it is invalid, or takes too much to follow."""
    start = llguidance.LLMatcher(tokens, lark, log_level=0, limits=LIMITS)
    if not start.is_error():
        start.compute_bitmask()  # raises if it takes too much to follow
    if start.is_error():
        raise ValueError(told(start))
    return start


def told(matcher: llguidance.LLMatcher) -> str:
    """llguidance's error in one line, without its details about generated rules."""
    said = re.split(r"\n\n|\n *1 \||<state>|<backtrace>", matcher.get_error())[0]
    said = " ".join(said.replace("NoExtensionBias", "no value matches it").split())
    for pattern, words in _PLAINLY:
        said = re.sub(pattern, words, said)
    return said[:400].rstrip(".")
