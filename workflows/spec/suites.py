"""The entries of evaluate.suites."""

import re
from typing import Annotated

from pydantic import Field, field_validator

from models.errors import nearest
from models.scorers.names import KEYS
from workflows.spec.section import Section


class SuiteSpec(Section):
    """A suite: items that both models reply to, and a scorer of the replies (docs/suites.md)."""

    path: Annotated[str, Field(min_length=1)]
    """A JSON-lines file of items, or a folder: all its *.jsonl, in order of their names. A relative path starts at
    the pipeline file's folder."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the suite in the scorecard; defaults to the last part of its path, without the ending."""

    scorer: str | None = None
    """How replies are scored: facts, exact, regex, json_schema, tool_call, excludes, rouge_l, chrf, perplexity, or a
    Python function, as in `mymodule:score`, that gets an item's record and the reply, and returns a number or a
    boolean. Left out, the key of the items that says what they expect decides. A module beside the pipeline file is
    sent to all nodes."""

    normalize: bool = True
    """Whether facts and exact ignore case, differences of white space, and Unicode's compatible characters such as
    full-width digits."""

    golden: bool = False
    """Whether the suite is golden: its score may not get worse."""

    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Maximum tokens of a reply; defaults to `evaluate.max_new_tokens`."""

    @field_validator("scorer")
    @classmethod
    def _is_known(cls, scorer: str | None) -> str | None:
        if scorer is None or scorer in KEYS or ":" in scorer:
            return scorer
        near = nearest(scorer, KEYS)
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(
            f"got {scorer!r}; must be one of {', '.join(KEYS)}, or a Python function, as in mymodule:score{hint}"
        )

    @property
    def shown_name(self) -> str:
        """`name`, or the last part of the path without its ending."""
        last = self.path.partition("?")[0].rstrip("/").rpartition("/")[2]
        return self.name or re.sub(r"\.jsonl?$", "", last) or self.path

    @property
    def function(self) -> str | None:
        """The scorer if it is a Python function."""
        return self.scorer if self.scorer and ":" in self.scorer else None
