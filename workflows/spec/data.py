"""The sections data and new_model."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from workflows.spec.section import ADDED, HOW, PositiveInt, Section, Share

NEW_MODEL = "new"
"""the `base_model` that is trained from scratch"""

FieldName = Literal[
    "messages", "role", "content", "system", "tools", "reasoning_content", "tool_calls", "tool_call_id", "name",
    "train", "prompt", "input", "completion", "history", "chosen", "rejected", "label",
]  # fmt: skip
"""the key names that `data.fields` can map"""

Compared = Literal["conversations", "replies"]
MIN_REPLY_WORDS = 10
"""of a reply that `data.deduplicate` compares; shorter ones are alike in any conversation"""

PrivateKind = Literal["email", "iban", "card", "ip", "phone", "person"]


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

    name: Annotated[str, Field(min_length=1)] | None = Field(default=None, json_schema_extra=HOW)
    """Name of the source in reports; defaults to the last part of its path."""

    weight: Annotated[float, Field(ge=0.0, le=1e6)] | None = Field(default=None, json_schema_extra=HOW)
    """Relative share of this source in the tokens that an epoch reads; 0 leaves the source out of training. If one
    source has a weight, all need one. A change of weights does not encode the corpus again."""

    repeat: Annotated[float, Field(gt=0.0, le=1000.0)] | None = Field(default=None, json_schema_extra=HOW)
    """How many times an epoch reads this source; defaults to 1. Not together with weights."""

    @property
    def shown_name(self) -> str:
        """`name`, or the last part of the path."""
        return self.name or self.path.partition("?")[0].rstrip("/").rpartition("/")[2] or self.path


def _action(value: Any) -> Any:
    """Expand the short form of a section that is mostly its action: `drop` becomes `{action: drop}`."""
    return {"action": value} if isinstance(value, str) else value


def _files(value: Any) -> Any:
    """Expand the short form of `check_against`: a list of files."""
    return {"files": value} if isinstance(value, list) else value


class DeduplicateSpec(Section):
    """Near-duplicates: conversations or replies that share most runs of three words, whatever their case and
    punctuation."""

    action: Literal["report", "split", "drop"] = "report"
    """`report` counts them and keeps all; `split` keeps all, but those that are alike on one side of the split;
    `drop` keeps the longest of those that are alike: other conversations are set aside, other replies stay in their
    conversations and are not trained on."""

    threshold: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8
    """Smallest Jaccard index of their runs of three words at which two are near-duplicates."""

    compare: Compared = "conversations"
    """What is compared: whole conversations, or each single reply of 10 words and more. `replies` is not for
    preference pairs and labelled replies."""


class CheckAgainstSpec(Section):
    """Conversations that contain evaluation questions or other reference texts: runs of 13 words in common (Brown et
    al. 2020, arXiv:2005.14165), or all words of a shorter text."""

    files: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Files of questions or conversations to look for; `evaluate.questions` is always looked for. A relative path
    starts at the pipeline file's folder."""

    action: Literal["report", "drop", "fail"] = "report"
    """`report` counts the conversations and keeps them; `drop` sets them aside; `fail` fails the stage."""

    @property
    def by_field(self) -> dict[str, str]:
        """The files by their dotted fields."""
        return {f"data.check_against.files.{index}": file for index, file in enumerate(self.files)}


class PrivateSpec(Section):
    """Private details in messages. Found are those with a form, a checksum or a word that introduces them."""

    action: Literal["report", "replace", "drop"] = "report"
    """`report` counts them; `replace` writes placeholders such as `[EMAIL_1]`, the same one for the same detail of a
    conversation; `drop` sets the conversation aside."""

    kinds: list[PrivateKind] = Field(default=["email", "iban", "card", "ip", "phone", "person"])
    """The kinds of details to find."""

    patterns: dict[str, str] = Field(default={})
    """Further kinds: a name for each, and the regular expression of its details."""

    regions: list[Annotated[str, Field(pattern=r"^[A-Z]{2}$")]] | None = None
    """Countries (ISO 3166, such as US) whose phone numbers are found without a country code; defaults to a list of
    large ones."""


class FiltersSpec(Section):
    """Which conversations to keep."""

    languages: list[Annotated[str, Field(min_length=2)]] | None = None
    """Languages (BCP 47, such as en) to keep; `und` stands for undetermined ones, such as short texts and code."""

    max_language_share: dict[str, Share] = Field(default={})
    """Largest share of the conversations that a language may have, as in `{en: 0.5}`; a hash of the text decides
    which of them are kept."""

    min_turns: PositiveInt | None = None
    """Minimum number of messages."""

    max_turns: PositiveInt | None = None
    """Maximum number of messages."""

    min_words: PositiveInt | None = None
    """Minimum number of words, or of characters in Chinese and Japanese."""

    max_words: PositiveInt | None = None
    """Maximum number of words, or of characters in Chinese and Japanese."""

    max_repetition: Share | None = None
    """Maximum share of repeated text: of lines that repeat, and of the most frequent run of 2 to 4 words (Rae et al.
    2021, arXiv:2112.11446, table A1)."""

    max_non_letters: Share | None = None
    """Maximum share of characters that are no letters, not counting white space."""

    word_list: str | None = None
    """A file of words or phrases, one a line: conversations that contain one are flagged. A relative path starts at
    the pipeline file's folder."""

    flagged: Literal["report", "drop"] = "report"
    """What happens to flagged conversations: `report` counts them and keeps them, `drop` sets them aside."""


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

    knowledge: Annotated[str, Field(min_length=1)] | None = Field(default=None, json_schema_extra=ADDED)
    """A key of the records with passages that their replies rely on: a list of texts, of `{name, text}`, or of
    triples `[head, relation, tail]`. They stand numbered at the end of the system message."""

    deduplicate: Annotated[DeduplicateSpec, BeforeValidator(_action)] = Field(
        default=DeduplicateSpec(), json_schema_extra=ADDED
    )
    """How to treat near-duplicates; short form: the action, as in `deduplicate: drop`."""

    check_against: Annotated[CheckAgainstSpec, BeforeValidator(_files)] = Field(
        default=CheckAgainstSpec(), json_schema_extra=ADDED
    )
    """How to treat conversations that contain evaluation questions or other texts; short form: the list of files."""

    private: Annotated[PrivateSpec, BeforeValidator(_action)] = Field(default=PrivateSpec(), json_schema_extra=ADDED)
    """How to treat private details; short form: the action, as in `private: replace`."""

    filters: FiltersSpec = Field(default=FiltersSpec(), json_schema_extra=ADDED)
    """Which conversations to keep."""

    filter: str | None = Field(default=None, json_schema_extra=ADDED)
    """A Python function, as in `mymodule:keep`, that gets `{"messages": [...], "tools": [...]}` and returns whether
    to keep the conversation. A module beside the pipeline file is sent to all nodes."""

    temperature: Annotated[float, Field(ge=0.1, le=1000.0)] | None = Field(default=None, json_schema_extra=HOW)
    """Reads each source in proportion to its tokens^(1/temperature): 1 in proportion to its size, more favours small
    sources (Arivazhagan et al. 2019, arXiv:1907.05019, section 3). Not together with weights and repeats."""

    @model_validator(mode="after")
    def _mixture_is_one(self) -> "DataSpec":
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError(
                f"sources.{weighted.index(False)} has no weight, and others have one; give every source a weight"
            )
        if all(weighted) and not any(source.weight for source in self.sources):
            raise ValueError("every source has weight 0; give one of them a larger weight")
        repeats = any(source.repeat is not None for source in self.sources)
        if any(weighted) + repeats + (self.temperature is not None) > 1:
            raise ValueError("weights, repeats and temperature exclude each other; keep one of them")
        return self

    def mixture_fields(self) -> dict[str, Any] | None:
        """Weights and repeats of each source, and the temperature; None if an epoch reads each source once."""
        weights, repeats = ([getattr(each, name) for each in self.sources] for name in ("weight", "repeat"))
        if self.temperature is None and not any(value is not None for value in (*weights, *repeats)):
            return None
        return {"weights": weights, "repeats": repeats, "temperature": self.temperature}

    @property
    def names(self) -> dict[str, str]:
        """`fields`, typed for lookups by any string."""
        return {str(ours): theirs for ours, theirs in self.fields.items()}


def check_transformer_size(hidden_size: int) -> int:
    """`hidden_size` unchanged; raises ValueError if it is not a whole number of heads, nor that of one small head."""
    if hidden_size % 64 and (hidden_size > 64 or hidden_size % 2):
        raise ValueError(f"hidden_size is {hidden_size}; a transformer's is a multiple of 64, or even and below 64")
    return hidden_size


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
            check_transformer_size(self.hidden_size)
            if self.noise_size or self.dropout:
                raise ValueError("noise_size and dropout are for architecture: lstm; leave them out")
        return self
