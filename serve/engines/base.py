"""The engine interface: prompts in as token ids, replies out as a stream of token ids.

An engine knows no text, no HTTP and no Ray: `serve.api.routes` renders and reads, `serve.deployment.application`
deploys.
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

# Below this the likeliest token is certain in float32, and dividing by it would overflow.
SMALLEST_TEMPERATURE = 1e-4
# Below this the likeliest token is enough of them all, whatever its probability: no vocabulary has ten million.
SMALLEST_TOP_P = 1e-7

# Requests that an engine decodes at the same time, unless told otherwise.
DEFAULT_MAX_ACTIVE = {"torch": 32, "openvino": 32, "vllm": 256}

# How long a long prompt may hold up the replies of others at a time.
DEFAULT_MAX_STALL_SECONDS = 1.0


class Unfollowable(RayconteurError):
    """A reply has come to where its grammar takes too much to follow, or nothing is allowed."""


class Grammar(Protocol):
    """What a reply has to follow; see serve/grammar/json_grammar.py."""

    lark: str
    """all of it, in llguidance's form of Lark"""
    schema: str | None
    """JSON schema that all of a reply may follow; None where it is more than that, and followed by `GrammarState`
    alone"""
    param: str
    """the field of the request that asks for it"""

    def start(self) -> "GrammarState":
        """Where a reply begins."""


class GrammarState(Protocol):
    """How far a reply has come; both raise Unfollowable."""

    def allowed(self) -> Any:
        """A numpy array of bool for every token of the vocabulary: may it come next?"""

    def accept(self, token_id: int) -> None:
        """It came next."""


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate; serve/protocol/requests.py says what the fields mean that requests have too.

    Temperature 0 takes the likeliest token each time, top_k 0 keeps all, `seed` None draws a new one; `num_logprobs`
    None asks for no log-probabilities, 0 for the drawn token's alone.
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
    """The same of the prompt's tokens, but for the first one, which follows nothing."""
    grammar: Grammar | None = None
    seed: int | None = None
    end_token_ids: frozenset[int] = frozenset()
    min_new_tokens: int = 0
    """Before so many none of `end_token_ids` is drawn."""
    allowed_token_ids: frozenset[int] | None = None
    """None but these are drawn, and `end_token_ids`; None: all may be."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """What the reply does not have, in tokens."""
    adapter: str | None = None
    """One of the engine's `adapters`, or the model without any."""
    request_id: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("prompt_ids: got none; a reply needs at least one token to follow")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {self.max_new_tokens}; must be at least 1")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature < SMALLEST_TEMPERATURE or self.top_p < SMALLEST_TOP_P or self.top_k == 1

    @property
    def changes_scores(self) -> bool:
        """Whether the model's own scores are changed before a token is drawn by them."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        rules = (self.logit_bias, self.grammar, self.min_new_tokens, self.bad_words)
        return penalties != (0.0, 0.0, 1.0) or self.allowed_token_ids is not None or any(rules)


class TokenEvent(NamedTuple):
    """One generated token; the last one has the reason why: "stop" (an end token) or "length"."""

    token_id: int
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    """natural logarithm of its probability by the model's own scores, where it was asked for"""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """the likeliest tokens and theirs, the likeliest first"""
    prompt_logprobs: "tuple[tuple[float, tuple[tuple[int, float], ...]], ...]" = ()
    """with the first token, where they were asked for: these two of each token of the prompt from the second on"""
    num_cached: int | None = None
    """with the first token: so many of the prompt's tokens were read for another request; None where the engine
    cannot tell"""


@dataclass(frozen=True)
class EngineHealth:
    """Whether the engine still generates, how many requests it has in hand and in its queue, and how full its cache
    is, 0 to 1."""

    is_alive: bool
    num_active: int
    num_waiting: int
    cache_used: float = field(default=0.0, compare=False)


class EngineError(RuntimeError):
    """The engine could not finish a request; other requests are not affected."""


Event = TokenEvent | Exception | None
"""what a stream is handed: its next token, a failure, or None for an end without a reason"""


async def tokens_of(events: "asyncio.Queue[Event]") -> AsyncGenerator[TokenEvent, None]:
    """The tokens of one request as they are handed over, to their end; raises the failure among them."""
    while (event := await events.get()) is not None:
        if isinstance(event, Exception):
            raise event
        yield event
        if event.finish_reason is not None:
            return


class Engine(ABC):
    """Generates tokens for many requests at once; made to be used from one asyncio loop."""

    @property
    @abstractmethod
    def max_positions(self) -> int:
        """The most tokens that prompt and reply may have together."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many tokens the model has scores for."""

    @property
    @abstractmethod
    def max_active(self) -> int:
        """Requests that are decoded at the same time; later ones wait."""

    @property
    def adapters(self) -> Sequence[str]:
        """What a request may name as its `adapter`."""
        return ()

    def check_fits(self, request: GenerationRequest) -> None:
        """Raise ValueError for more tokens than the model has positions, and an adapter that is not there."""
        total = len(request.prompt_ids) + request.max_new_tokens
        if total > self.max_positions:
            raise ValueError(f"prompt and reply together need {total} positions; the model has {self.max_positions}")
        if request.adapter is not None and request.adapter not in self.adapters:
            raise ValueError(f"adapter: got {request.adapter!r}; there are {', '.join(self.adapters) or 'none'}")

    def check_tokens(self, request: GenerationRequest) -> None:
        """Raise ValueError for a token that the model does not know."""
        worst = max(request.prompt_ids, key=lambda token_id: abs(token_id - self.vocab_size / 2))
        if not 0 <= worst < self.vocab_size:
            raise ValueError(f"prompt_ids: got {worst}; the model knows tokens 0 to {self.vocab_size - 1}")

    def refusal(self, request: GenerationRequest) -> tuple[str, str] | None:
        """The field of `request` that this engine cannot do justice to, and why."""
        return None

    @property
    def embedding_size(self) -> int | None:
        """How many numbers an embedding has; None where the engine has none."""
        return None

    async def embed(self, token_ids: Sequence[int], adapter: str | None = None) -> list[float]:
        """The mean of the last hidden states over these tokens, of length 1. Raises EngineError."""
        raise EngineError("this engine gives out no hidden states to make embeddings of")

    @abstractmethod
    def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """The tokens of the reply as they are generated, the end token included.

        The request enters the engine when the first event is awaited, and leaves it when the generator ends
        or is closed. Raises EngineError, and ValueError for a request that does not fit.
        """

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """End a request before its next token: its stream ends without a finish reason. Any id is fine."""

    @abstractmethod
    def health(self) -> EngineHealth:
        """The engine's state at this moment."""

    @abstractmethod
    def close(self) -> None:
        """Stop generating; streams that are still open raise EngineError."""
