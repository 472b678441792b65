"""The engine interface: prompts in as token ids, replies out as a stream of token ids.

An engine has no text, HTTP or Ray in it: `serve.replies` converts to and from text, `serve.api` answers HTTP, and
`serve.deployment` deploys.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol
from uuid import uuid4

from models.errors import RayconteurError
from serve.protocol.responses import FinishReason

Precision = Literal["auto", "bf16", "fp32"]

# Below this temperature the likeliest token is certain in float32, and the division would overflow.
SMALLEST_TEMPERATURE = 1e-4
# Below this top_p the likeliest token always suffices: no vocabulary has ten million tokens.
SMALLEST_TOP_P = 1e-7

# Default number of requests that an engine decodes at the same time.
DEFAULT_MAX_ACTIVE = {"torch": 32, "openvino": 32, "vllm": 256}

# How long reading a long prompt may delay other replies at a time.
DEFAULT_MAX_STALL_SECONDS = 1.0


class Unfollowable(RayconteurError):
    """A reply cannot continue: its grammar takes too much to follow, or allows no token."""


class Grammar(Protocol):
    """The grammar of a reply; see serve/grammar/json_grammar.py."""

    lark: str
    """the whole grammar, in llguidance's variant of Lark"""
    schema: str | None
    """the JSON schema of the reply; None if the grammar is more than a schema, and only
    `GrammarState` can follow it
    """
    param: str
    """the request's field with the grammar"""

    def start(self) -> "GrammarState":
        """The state at the start of a reply."""


class GrammarState(Protocol):
    """A reply's position in its grammar; both methods raise Unfollowable."""

    def allowed(self) -> Any:
        """Whether each token of the vocabulary may come next, as a numpy array of bool."""

    def accept(self, token_id: int) -> None:
        """Advance by this token."""


@dataclass(frozen=True)
class GenerationRequest:
    """A request to an engine; serve/protocol/requests.py explains the fields that HTTP requests have too.

    Temperature 0 always takes the likeliest token, top_k 0 keeps all, `seed` None means a random one. `num_logprobs`
    None returns no log-probabilities, 0 only the sampled token's.
    """

    prompt_ids: list[int]
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    """The same for the prompt's tokens, except for the first one."""
    grammar: Grammar | None = None
    seed: int | None = None
    end_token_ids: frozenset[int] = frozenset()
    min_new_tokens: int = 0
    """No end token is sampled before this number of tokens."""
    allowed_token_ids: frozenset[int] | None = None
    """Only these and `end_token_ids` are sampled; None: all tokens."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that the reply must not contain."""
    adapter: str | None = None
    """One of the engine's `adapters`, or None for the plain model."""
    request_id: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("prompt_ids: got none; a prompt has at least one token")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {self.max_new_tokens}; must be at least 1")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < SMALLEST_TEMPERATURE or self.top_p < SMALLEST_TOP_P or self.top_k == 1

    @property
    def changes_scores(self) -> bool:
        """Whether the model's logits are changed before sampling."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        rules = (self.logit_bias, self.grammar, self.min_new_tokens, self.bad_words)
        return penalties != (0.0, 0.0, 1.0) or self.allowed_token_ids is not None or any(rules)


class TokenEvent(NamedTuple):
    """One generated token; the last one has a finish reason: "stop" (an end token) or "length"."""

    token_id: int
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    """natural logarithm of its probability by the model's own logits, if requested"""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """the likeliest tokens with their log-probabilities, the likeliest first"""
    prompt_logprobs: "tuple[tuple[float, tuple[tuple[int, float], ...]], ...]" = ()
    """with the first token, if requested: both for each token of the prompt from the second on"""
    num_cached: int | None = None
    """with the first token: how many of the prompt's tokens were cached from another request; None if the engine does
    not report it"""


@dataclass(frozen=True)
class EngineHealth:
    """Whether the engine works, how many requests are active and waiting, and the used share of its cache, 0 to 1."""

    is_alive: bool
    num_active: int
    num_waiting: int
    cache_used: float = field(default=0.0, compare=False)


class EngineError(RuntimeError):
    """The engine could not finish a request; other requests are not affected."""


Event = TokenEvent | Exception | None
"""an item of a stream: the next token, a failure, or None for an end without a finish reason"""


async def tokens_of(events: "asyncio.Queue[Event]") -> AsyncGenerator[TokenEvent, None]:
    """The tokens of one request's queue up to its end; raises a failure from it."""
    while (event := await events.get()) is not None:
        if isinstance(event, Exception):
            raise event
        yield event
        if event.finish_reason is not None:
            return


class Engine(ABC):
    """Generates tokens for many requests at once; for use from one asyncio loop."""

    @property
    @abstractmethod
    def max_positions(self) -> int:
        """The maximum number of tokens of prompt and reply together."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens that the model has logits for."""

    @property
    @abstractmethod
    def max_active(self) -> int:
        """The number of requests that are decoded at the same time; further ones wait."""

    @property
    def adapters(self) -> Sequence[str]:
        """The names that a request may use as `adapter`."""
        return ()

    def check_fits(self, request: GenerationRequest) -> None:
        """Raise ValueError for more tokens than the model has positions, and for an unknown adapter."""
        total = len(request.prompt_ids) + request.max_new_tokens
        if total > self.max_positions:
            raise ValueError(f"prompt and reply together need {total} positions; the model has {self.max_positions}")
        if request.adapter is not None and request.adapter not in self.adapters:
            raise ValueError(f"adapter: got {request.adapter!r}; available: {', '.join(self.adapters) or 'none'}")

    def check_tokens(self, request: GenerationRequest) -> None:
        """Raise ValueError for a token id outside the vocabulary."""
        worst = max(request.prompt_ids, key=lambda token_id: abs(token_id - self.vocab_size / 2))
        if not 0 <= worst < self.vocab_size:
            raise ValueError(f"prompt_ids: got {worst}; the model's token ids are 0 to {self.vocab_size - 1}")

    def refusal(self, request: GenerationRequest) -> tuple[str, str] | None:
        """The field of `request` that this engine does not support, and why."""
        return None

    @property
    def embedding_size(self) -> int | None:
        """The size of an embedding; None if the engine supports none."""
        return None

    async def embed(self, token_ids: Sequence[int], adapter: str | None = None) -> list[float]:
        """The mean of the last hidden states over these tokens, of length 1. Raises EngineError."""
        raise EngineError("this engine does not support embeddings")

    @abstractmethod
    def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """The tokens of the reply as they are generated, including the end token.

        The request enters the engine when the first event is awaited, and leaves it when the generator ends
        or is closed. Raises EngineError, and ValueError for a request that does not fit.
        """

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """End a request before its next token: its stream ends without a finish reason. Unknown ids are ignored."""

    @abstractmethod
    def health(self) -> EngineHealth:
        """The engine's current state."""

    @abstractmethod
    def close(self) -> None:
        """Stop generating; open streams raise EngineError."""
