"""The sections data and new_model."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from workflows.spec.section import ADDED, Section, Share

NEW_MODEL = "new"
"""the `base_model` that is trained from scratch"""

FieldName = Literal[
    "messages", "role", "content", "system", "tools", "reasoning_content", "tool_calls", "tool_call_id", "name",
    "train", "prompt", "input", "completion", "history", "chosen", "rejected", "label",
]  # fmt: skip
"""the key names that `data.fields` can map"""


class Source(Section):
    """A source of conversations."""

    path: Annotated[str, Field(min_length=1)]
    """A file, folder, glob or URI; a folder saved by `datasets`; or a Hugging Face Hub dataset: `hf:owner/name`,
    `hf:owner/name@revision` or `hf:owner/name/folder`. Supported formats are JSON lines, JSON arrays, CSV, TSV,
    Parquet and Arrow, uncompressed or compressed (gzip, zstd, bzip2, xz, lz4); the format is detected from the
    content. A relative path starts at the pipeline file's folder. The layout is detected line by line: conversations
    (`messages`, ShareGPT, Alpaca); preference pairs for `train.objective` dpo, orpo and simpo (`prompt` or
    `messages`, `chosen`, `rejected`); labelled replies for kto (`prompt` or `messages`, `completion`, `label`)."""

    split: Annotated[str, Field(min_length=1)] | None = None
    """The split to read, such as `train`, from a dataset that has splits."""

    limit: Annotated[int, Field(ge=1, le=1_000_000_000_000)] | None = None
    """Maximum number of lines (rows, elements) to read from each file."""


def _action(value: Any) -> Any:
    """Expand the short form of a section that is mostly its action: `drop` becomes `{action: drop}`."""
    return {"action": value} if isinstance(value, str) else value


class DeduplicateSpec(Section):
    """Near-duplicates: conversations that share most runs of three words, whatever their case and punctuation."""

    action: Literal["report", "split", "drop"] = "report"
    """`report` counts them and keeps all; `split` keeps all, but those that are alike on one side of the split;
    `drop` keeps the longest of those that are alike and sets the others aside."""

    threshold: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8
    """Smallest Jaccard index of their runs of three words at which two conversations are near-duplicates."""

    compare: Literal["conversations", "replies"] = "conversations"
    """What is compared: whole conversations, or the assistant's replies alone, all of a conversation together."""


class DataSpec(Section):
    """prepare: converts raw conversations to token shards."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """The files to read, in this order."""

    held_out_share: Annotated[float, Field(gt=0.0, le=0.5)] = 0.05
    """Share of the conversations held out for evaluation. A hash of the conversation's text (for pairs and labelled
    replies, of the prompt) decides, so the same conversation always falls on the same side, unless one side of a
    small corpus would be empty."""

    max_length: Annotated[int, Field(ge=16, le=1_048_576)] = 1024
    """Maximum tokens per conversation; a longer one is cut at its end (see `truncate`)."""

    max_bad_share: Share = 0.01
    """Maximum share of unusable lines; with more, prepare fails."""

    fields: dict[FieldName, str] = Field(default={})
    """Maps our key names to those in your records, as in `{messages: dialogue, content: utterance}`. Our names:
    messages, role, content, system, tools, reasoning_content, tool_calls, tool_call_id, name, train; prompt, input,
    completion, history; chosen, rejected, label."""

    same_role: Literal["merge", "refuse"] = "merge"
    """How to treat consecutive turns of the same role: `merge` joins them with an empty line, `refuse` sets the line
    aside."""

    reasoning: Literal["template", "text", "drop"] = "template"
    """How to treat the assistant's reasoning before a reply (`reasoning_content`, `thinking`, or a `<think>` block):
    `template` passes it to the chat template, and sets the line aside if the template cannot render it; `text` writes
    it into the reply as a `<think>` block; `drop` leaves it out."""

    control_tokens: Literal["text", "allow"] = "text"
    """How to read the name of a control token inside a message: `text` reads it as plain text, `allow` as the control
    token itself. The endpoint reads messages the same way."""

    chat_template: str | None = None
    """A chat template file (Jinja) that replaces the base model's template; a relative path starts at the pipeline
    file's folder."""

    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default={})
    """Variables for the chat template, such as `{enable_thinking: false}`; they are also the endpoint's defaults."""

    template_date: date | None = None
    """The date that the chat template writes as today, in training and at the endpoint. Left out, it is the day of
    `prepare` in training and the current day at the endpoint, and `prepare` prints a note if the template writes a
    date."""

    new_tokens: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Strings that each become one new token; their embeddings are trained and saved."""

    truncate: Literal["right", "left"] = "right"
    """How to cut a conversation longer than `max_length`: `right` cuts its end, `left` drops the earliest turns
    before each reply but keeps system messages."""

    cut_replies: Literal["cut", "drop", "fail"] = "cut"
    """How to treat a reply that `max_length` cuts: `cut` trains on it up to the cut, `drop` leaves it out, `fail`
    fails the stage."""

    group_by: Annotated[str, Field(min_length=1)] | None = Field(default=None, json_schema_extra=ADDED)
    """A key of the records, such as `user` or `metadata.account`; all conversations with the same value fall on the
    same side of the split. A conversation without it is split by its text."""

    deduplicate: Annotated[DeduplicateSpec, BeforeValidator(_action)] = Field(
        default=DeduplicateSpec(), json_schema_extra=ADDED
    )
    """How to treat near-duplicates; short form: the action, as in `deduplicate: drop`."""

    @property
    def names(self) -> dict[str, str]:
        """`fields`, typed for lookups by any string."""
        return {str(ours): theirs for ours, theirs in self.fields.items()}


class NewModelSpec(Section):
    """The model that `base_model: new` trains from scratch, with a tokenizer trained on the conversations."""

    architecture: Literal["lstm", "transformer"] = "lstm"
    """`lstm`: an embedding, an LSTM (Hochreiter and Schmidhuber 1997) and a linear head. `transformer`: a causal
    transformer like Llama, with attention heads of size 64."""

    vocabulary: Annotated[int, Field(ge=300, le=262_144)] = 4096
    """Maximum number of tokens of the byte-pair tokenizer (Sennrich et al. 2016, arXiv:1508.07909)."""

    hidden_size: Annotated[int, Field(ge=1, le=8192)] = 256
    """Size of embeddings and hidden states; for a transformer a multiple of 64, or an even number below 64."""

    num_layers: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of layers."""

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """For an LSTM: dropout probability of embeddings and hidden states."""

    noise_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """For an LSTM: size of the noise z ~ N(0, 1) that its initial state is computed from; 0 for none."""

    discriminator_hidden_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    """For `train.objective: adversarial`: the discriminator's `hidden_size`; defaults to the generator's."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Random seed of the initial weights."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "NewModelSpec":
        if self.architecture == "transformer":
            if self.hidden_size % 64 and (self.hidden_size > 64 or self.hidden_size % 2):
                raise ValueError(
                    f"hidden_size is {self.hidden_size}; a transformer's is a multiple of 64, or even and below 64"
                )
            if self.noise_size or self.dropout:
                raise ValueError("noise_size and dropout are for architecture: lstm; leave them out")
        return self
