"""The sections data and new_model."""

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, model_validator

from workflows.spec.section import Section, Share

NEW_MODEL = "new"
"""as a `base_model`: trained from nothing"""

FieldName = Literal[
    "messages", "role", "content", "system", "tools", "reasoning_content", "tool_calls", "tool_call_id", "name",
    "train", "prompt", "input", "completion", "history", "chosen", "rejected", "label",
]  # fmt: skip
"""what `data.fields` may map"""


class Source(Section):
    """Where conversations come from."""

    path: Annotated[str, Field(min_length=1)]
    """A file, a folder, a glob or a URI; a folder saved by `datasets`; or a dataset of the Hugging Face Hub, as
    `hf:owner/name`, `hf:owner/name@revision` or `hf:owner/name/folder`. Read are JSON lines, JSON arrays, CSV, TSV,
    Parquet and Arrow, plain or packed (gzip, zstd, bzip2, xz, lz4), recognised by their content. A relative path
    starts at the pipeline file's folder. The layout is recognised line by line: conversations (`messages`, ShareGPT,
    Alpaca), for `train.objective` dpo, orpo and simpo pairs (`prompt` or `messages`, `chosen`, `rejected`), for kto
    judged replies (`prompt` or `messages`, `completion`, `label`)."""

    split: Annotated[str, Field(min_length=1)] | None = None
    """Of a dataset that has splits: the one to read, such as `train`."""

    limit: Annotated[int, Field(ge=1, le=1_000_000_000_000)] | None = None
    """Read only so many lines (rows, elements) of each file."""


class DataSpec(Section):
    """prepare: raw conversations to token shards."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """The files to read, in this order."""

    held_out_share: Annotated[float, Field(gt=0.0, le=0.5)] = 0.05
    """Share of the conversations kept for evaluation, chosen by a hash of the conversation's text (of pairs and
    judged replies: of the prompt's): the same conversation always falls on the same side, unless one
    side of a small corpus would be empty."""

    max_length: Annotated[int, Field(ge=16, le=1_048_576)] = 1024
    """Tokens of a conversation; what is longer is cut at its end."""

    max_bad_share: Share = 0.01
    """Share of lines that may be set aside as unusable before prepare fails."""

    fields: dict[FieldName, str] = Field(default={})
    """What the keys of your records are called: our name to yours, as in `{messages: dialogue, content: utterance}`.
    Our names: messages, role, content, system, tools, reasoning_content, tool_calls, tool_call_id, name, train;
    prompt, input, completion, history; chosen, rejected, label."""

    same_role: Literal["merge", "refuse"] = "merge"
    """Two turns of one role in a row: `merge` joins them with an empty line, `refuse` sets the line aside."""

    reasoning: Literal["template", "text", "drop"] = "template"
    """What an assistant thought before a reply (`reasoning_content`, `thinking`, or a `<think>` block): `template`
    hands it to the chat template, and sets lines aside where the template has no place for it; `text` writes it as a
    `<think>` block into the reply; `drop` leaves it out."""

    control_tokens: Literal["text", "allow"] = "text"
    """What a control token's name inside a message means: `text`, the characters that it is written with, or
    `allow`, the control token itself. The endpoint reads messages in the same way."""

    chat_template: str | None = None
    """A file with the chat template (Jinja) to use in place of the base model's; a relative path starts at the
    pipeline file's folder."""

    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default={})
    """Variables of the chat template, such as `{enable_thinking: false}`; at the endpoint they are the default."""

    template_date: date | None = None
    """The day that a chat template writes as today, in training and at the endpoint. Left out, it is the day of
    `prepare` in training and the current day at the endpoint, and `prepare` says so where a template writes one."""

    new_tokens: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Texts that become one token each; their embeddings are trained and saved."""

    truncate: Literal["right", "left"] = "right"
    """Where a conversation above `max_length` is cut: `right` at its end, `left` leaves out the earliest turns before
    each reply, but for system messages."""

    cut_replies: Literal["cut", "drop", "fail"] = "cut"
    """What happens to a reply that `max_length` cuts: it is learned up to the cut, left out, or fails the stage."""

    @property
    def names(self) -> dict[str, str]:
        """`fields`, for any text as a name."""
        return {str(ours): theirs for ours, theirs in self.fields.items()}


class NewModelSpec(Section):
    """What `base_model: new` is: a model trained from nothing, with a tokenizer learned from the conversations."""

    architecture: Literal["lstm", "transformer"] = "lstm"
    """`lstm`: an embedding, an LSTM (Hochreiter and Schmidhuber 1997) and a linear head. `transformer`: a causal one
    as Llama has, with heads of 64."""

    vocabulary: Annotated[int, Field(ge=300, le=262_144)] = 4096
    """Tokens of the byte-pair tokenizer (Sennrich et al. 2016, arXiv:1508.07909), at most."""

    hidden_size: Annotated[int, Field(ge=1, le=8192)] = 256
    """Size of embeddings and hidden states; of a transformer a multiple of 64, or less than 64 and even."""

    num_layers: Annotated[int, Field(ge=1, le=64)] = 1
    """Layers."""

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of an LSTM: dropout probability of embeddings and hidden states."""

    noise_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Of an LSTM: size of the noise z ~ N(0, 1) that its first state is made of; 0 for none."""

    discriminator_hidden_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    """For `train.objective: adversarial`: the discriminator's `hidden_size`; left out, the generator's."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of the first weights."""

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
