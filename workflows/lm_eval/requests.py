"""What lm-eval wants to know of a model, as requests to the endpoint.

chat = chat_request(messages, max_tokens=64, stop=["\n"])
score = likelihood_request([1, 450, 7483], num_context=2)
answer = score.read(client.post(score.route, json=score.body).json())      # {"logprob": -1.3, "is_greedy": false}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflows.record import JsonObject
from workflows.store import content_key

CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"

Answer = dict[str, Any]
"""`{"text": ...}`, or the sum of log-probabilities and whether every token is the likeliest: `{"logprob": ...,
"is_greedy": ...}`"""


@dataclass(frozen=True)
class EndpointRequest:
    """A request, and what of its response is the answer."""

    route: str
    body: JsonObject
    num_context: int | None = None
    """the prompt's tokens after these many are scored; None: a reply is generated"""

    @property
    def is_scored(self) -> bool:
        """Whether it asks for log-probabilities of the prompt: an endpoint on vLLM has none."""
        return self.num_context is not None

    @property
    def key(self) -> str:
        """16 hexadecimal digits that identify it."""
        return content_key({"route": self.route, "body": self.body, "num_context": self.num_context})

    def read(self, response: Mapping[str, Any]) -> Answer:
        """The answer, from the JSON of the endpoint's response."""
        [choice] = response["choices"]
        if self.num_context is None:
            return {"text": choice["message"]["content"] or "" if self.route == CHATS else choice["text"]}
        found = choice["logprobs"]
        own = found["token_logprobs"][self.num_context :]
        names = found["tokens"][self.num_context :]
        tops = found["top_logprobs"][self.num_context :]
        likeliest = [max(top, key=lambda name, top=top: top[name]) for top in tops]  # type: ignore[misc]
        return {"logprob": sum(own), "is_greedy": names == likeliest}


def likelihood_request(token_ids: Sequence[int], num_context: int) -> EndpointRequest:
    """Asks for the log-probability of the tokens after the first `num_context`, at least one, given those before."""
    body = {
        "prompt": list(token_ids),
        "max_tokens": 0,
        "echo": True,
        "logprobs": 1,
        "return_tokens_as_token_ids": True,  # two tokens may have the same text
    }
    return EndpointRequest(TEXTS, _body(body), num_context)


def text_request(prompt: str | Sequence[int], begins: bool, settings: Mapping[str, Any]) -> EndpointRequest:
    """Asks for the continuation of a text; `begins`: the tokenizer's special tokens come before it."""
    given = prompt if isinstance(prompt, str) else list(prompt)
    special = {} if begins else {"add_special_tokens": False}
    return EndpointRequest(TEXTS, _body({"prompt": given, **special, **settings}))


def chat_request(messages: Sequence[JsonObject], continues: bool, settings: Mapping[str, Any]) -> EndpointRequest:
    """Asks for the reply to a chat; `continues`: the reply goes on with the last message, the assistant's."""
    started = {"continue_final_message": True, "add_generation_prompt": False} if continues else {}
    return EndpointRequest(CHATS, _body({"messages": list(messages), **started, **settings}))


def _body(fields: JsonObject) -> JsonObject:
    return {"model": "model", **fields}
