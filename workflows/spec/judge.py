"""The section evaluate.judge."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from workflows.spec.section import HOW, Section, Share

_NAME = r"^[A-Za-z][A-Za-z0-9_-]{0,39}$"


class JudgeSpec(Section):
    """A model that compares the replies of the checkpoint with those of another model (docs/judge.md): any endpoint
    that speaks OpenAI's chat completions, or one of our own releases."""

    url: str | None = None
    """Base URL of an endpoint that speaks OpenAI's chat completions, as in https://api.openai.com/v1. Either this or
    `release`."""

    model: Annotated[str, Field(min_length=1)] | None = None
    """Name of the judge at `url`."""

    api_key_env: str | None = Field(default=None, json_schema_extra=HOW)
    """Name of the environment variable with the API key for `url`. A job does not send it: set the variable in the
    environment that starts Ray on the cluster's head."""

    release: Annotated[str, Field(min_length=1)] | None = None
    """A release in the store as the judge: its key, or the name of a pipeline for that pipeline's latest release when
    `evaluate` runs. The workers of `evaluate` serve it."""

    mode: Literal["pairwise", "rubric"] = "pairwise"
    """`pairwise`: the judge sees both replies and names the better one, in both orders. `rubric`: it sees one reply
    at a time and scores each criterion from 1 to 5; the reply with the higher mean wins."""

    criteria: Annotated[dict[Annotated[str, Field(pattern=_NAME)], str], Field(min_length=1)] = Field(
        default={
            "helpful": "The reply does what the user asks for.",
            "correct": "What the reply states is true, and agrees with the conversation.",
            "clear": "The reply is easy to read, in the user's language, and no longer than needed.",
        }
    )
    """What the judge looks at: names, and what each means."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    """A text file with the prompt, with the places `{criteria}`, `{conversation}`, and `{first_reply}` and
    `{second_reply}` for pairwise or `{reply}` for rubric. Left out, a prompt of this project is used. A relative path
    starts at the pipeline file's folder."""

    labels: Annotated[str, Field(min_length=1)] | None = None
    """A JSON-lines file of pairs of replies that people have compared: {"question" or "messages", "first", "second",
    "prefers": "first", "second" or "tie"}. The judge compares them before anything else. A relative path starts at
    the pipeline file's folder."""

    min_agreement: Share = 0.6
    """Minimum share of `labels` in which the judge prefers what people prefer; below, it is refused."""

    min_consistency: Share = 0.6
    """For pairwise: minimum share of pairs with the same winner in both orders; below, the judge is refused."""

    max_no_answer: Share = 0.1
    """Maximum share of pairs without a usable answer, each after a second try; above, the judge is refused."""

    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 1024
    """Maximum tokens of an answer, reasoning included."""

    max_concurrent: Annotated[int, Field(ge=1, le=1024)] = Field(default=8, json_schema_extra=HOW)
    """Maximum number of requests at once."""

    timeout_s: Annotated[float, Field(gt=0.0, le=3600.0)] = Field(default=120.0, json_schema_extra=HOW)
    """Seconds that the judge may take for one answer; then it is asked again."""

    max_away_s: Annotated[float, Field(ge=0.0, le=86_400.0)] = Field(default=600.0, json_schema_extra=HOW)
    """Seconds that the judge may answer nothing at all before the stage fails; its answers so far are kept."""

    input_price: Annotated[float, Field(ge=0.0)] | None = Field(default=None, json_schema_extra=HOW)
    """Price of a million tokens of the prompts, for the cost in the scorecard, in any currency."""

    output_price: Annotated[float, Field(ge=0.0)] | None = Field(default=None, json_schema_extra=HOW)
    """Price of a million tokens of the answers."""

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not re.match(r"https?://[^/?#\s]+", url):
            raise ValueError(f"got {url!r}; must begin with http:// or https://, as in https://api.openai.com/v1")
        if "@" in url or "?" in url:
            raise ValueError(
                "contains a user, a password or a query, which could be a secret; name the environment variable with "
                "the API key in api_key_env"
            )
        return url.rstrip("/").removesuffix("/chat/completions")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(  # without the value, which may be the key itself
                "is not a name of an environment variable; give the name of the one that holds the API key, as in "
                "OPENAI_API_KEY, and never the key itself"
            )
        return name

    @model_validator(mode="after")
    def _is_one_judge(self) -> Self:
        if (self.url is None) == (self.release is None):
            raise ValueError("a judge has either a `url` or a `release`; set exactly one of the two")
        if self.url is not None and self.model is None:
            raise ValueError("needs `model`, the name of the judge at `url`")
        if self.release is not None and (self.model or self.api_key_env):
            raise ValueError("`model` and `api_key_env` are of a `url`; with `release`, leave them out")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("a cost needs both `input_price` and `output_price`; set both or neither")
        return self
