"""The scorers by name.

scorer = scorer_named("exact")
expected = scorer.read(["yes", "yes, we do"])
scorer.score(expected, {"role": "assistant", "content": "Yes"})     # 1.0
"""

from models.scorers.base import Scorer
from models.scorers.chrf import Chrf
from models.scorers.exact import Exact
from models.scorers.excludes import Excludes
from models.scorers.facts import Facts
from models.scorers.json_schema import JsonSchema
from models.scorers.perplexity import Perplexity
from models.scorers.regex import Regex
from models.scorers.rouge_l import RougeL
from models.scorers.tool_call import ToolCall

SCORERS: dict[str, type[Scorer]] = {
    "facts": Facts,
    "exact": Exact,
    "regex": Regex,
    "json_schema": JsonSchema,
    "tool_call": ToolCall,
    "excludes": Excludes,
    "rouge_l": RougeL,
    "chrf": Chrf,
    "perplexity": Perplexity,
}


def scorer_named(name: str, normalize: bool = True) -> Scorer:
    """The scorer of this name."""
    return SCORERS[name](normalize)
