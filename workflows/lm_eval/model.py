"""lm-eval's view of a model: what it asks, as requests to the endpoint.

The prompts, their tokens and the windows of long texts are those of lm-eval's own backend for Hugging Face models.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from models.errors import RayconteurError
from workflows.lm_eval.requests import Answer, EndpointRequest, chat_request, likelihood_request, text_request
from workflows.record import JsonObject

Ask = Callable[[Sequence[EndpointRequest]], Sequence[Answer]]

_MAX_GENERATED = 256  # as lm-eval's backends, where the task does not say
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
# Values with which a reply is generated as the endpoint does anyway.
_USUAL = {"do_sample": (True, False), "num_beams": (1,), "num_return_sequences": (1,), "use_cache": (True,)}
_MAX_STOPS = 4


class RenderedChat(str):
    """A chat as the text that the chat template makes of it, with the messages that it is made of."""

    messages: Sequence[JsonObject] = ()
    continues: bool = False

    @classmethod
    def of(cls, text: str, messages: Sequence[JsonObject], continues: bool) -> "RenderedChat":
        """`continues`: the last message is the start of the reply."""
        found = cls(text)
        found.messages, found.continues = messages, continues
        return found


class EndpointLM(TemplateLM):  # type: ignore[misc]
    """A model behind `ask`, which gets requests to the endpoint and returns their answers."""

    def __init__(self, tokenizer: Any, max_positions: int, ask: Ask) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._ask = ask
        # The endpoint leaves room for one token of a reply, and `max_length` tokens predict one more.
        self.max_length = max_positions - 2

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return ""

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:  # a rendered chat has them already
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        found: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as text; without its system message if the template allows none, as lm-eval does."""
        try:
            return self._rendered(chat_history, not add_generation_prompt)
        except TemplateError:
            others = [message for message in chat_history if message["role"] != "system"]
            return self._rendered(others, not add_generation_prompt)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows = [list(self._windows(request.args[0])) for request in requests]
        scored = iter(self._loglikelihood_tokens([(None, *window) for each in windows for window in each]))
        return [sum(next(scored)[0] for _ in each) for each in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        times: Counter[str] = Counter()
        wanted = []
        for context, settings in (request.args for request in requests):
            found = self._generation(context, settings)
            # A task that samples several replies to a prompt asks as many times.
            wanted.append(self._generation(context, settings, seed=times[found.key]))
            times[found.key] += 1
        answers = self._ask(wanted)
        return [
            _before(answer["text"], _stops(request.args[1])[_MAX_STOPS:])
            for answer, request in zip(answers, requests, strict=True)
        ]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """For (anything, context, continuation) in token ids: the continuation's log-probability, and whether it is
        what greedy decoding would generate.
        """
        wanted = []
        for _text, context, continuation in requests:
            whole = [*context, *continuation][-(self.max_length + 1) :]
            wanted.append(likelihood_request(whole, len(whole) - len(continuation)))
        return [(answer["logprob"], answer["is_greedy"]) for answer in self._ask(wanted)]

    def _rendered(self, messages: list[dict[str, str]], continues: bool) -> RenderedChat:
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not continues, continue_final_message=continues
        )
        return RenderedChat.of(text, messages, continues)

    def _windows(self, text: str) -> Any:
        """Pieces of a long text, as pairs of context and continuation in token ids."""
        windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
        return map(make_disjoint_window, windows)

    def _generation(self, context: str, wanted: Mapping[str, Any], seed: int = 0) -> EndpointRequest:
        settings = _settings(wanted, seed)
        if isinstance(context, RenderedChat):
            return chat_request(context.messages, context.continues, settings)
        if not context:
            return text_request([self.prefix_token_id], False, settings)
        begin = self.tokenizer.bos_token
        return text_request(context, begin is None or not context.startswith(begin), settings)


def _settings(wanted: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A task's `generation_kwargs` as fields of a request; raises RayconteurError."""
    given = dict(normalize_gen_kwargs(dict(wanted), _MAX_GENERATED))
    samples = given["do_sample"]
    settings: dict[str, Any] = {
        "max_tokens": given.pop("max_gen_toks"),
        "truncate_prompt_tokens": -1,  # from the left, to what leaves room for the reply
        "temperature": given.pop("temperature", 1.0) if samples else 0,
    }
    if stops := _stops(given):
        settings["stop"] = stops[:_MAX_STOPS]
    if samples:
        settings["seed"] = seed
    del given["until"]
    for name, value in given.items():
        if name in _PENALTIES or (samples and name in _SAMPLING):
            settings[name] = value
        elif name not in _SAMPLING and value not in _USUAL.get(name, ()):
            known = ", ".join(("until", "max_gen_toks", "do_sample", *_SAMPLING, *_PENALTIES))
            raise RayconteurError(f"generation_kwargs.{name}: got {value!r}; the endpoint has {known}; remove it")
    return settings


def _stops(wanted: Mapping[str, Any]) -> list[str]:
    return [stop for stop in handle_stop_sequences(wanted.get("until"), None) if stop]


def _before(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
