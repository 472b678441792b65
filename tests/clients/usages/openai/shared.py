"""Shared by the usages of OpenAI's client."""

from typing import Any

import openai
from trial import Endpoint

HELLO: list[Any] = [{"role": "user", "content": "Hello, who are you?"}]
# A tool whose arguments an untrained model completes quickly.
SWITCH: Any = {
    "type": "function",
    "function": {
        "name": "switch",
        "parameters": {
            "type": "object",
            "properties": {"is_on": {"type": "boolean"}},
            "required": ["is_on"],
            "additionalProperties": False,
        },
    },
}
# The client's stream helper raises for a reply that was cut at its limit.
GREETING: list[Any] = [{"role": "user", "content": "Hello [[Good day to you!]]"}]
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two whole numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
SUM = '2 and 3 together? [[add({"a": 2, "b": 3}) => It is 5.]]'
TWO_SUMS = '2 and 3, 4 and 5? [[add({"a": 2, "b": 3}) & add({"a": 4, "b": 5}) => They are 5 and 9.]]'


def client(endpoint: Endpoint, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0, **settings)


def chat(endpoint: Endpoint, messages: Any = HELLO, **fields: Any) -> Any:
    fields = {"max_completion_tokens": 5, **fields}
    return client(endpoint).chat.completions.create(model=endpoint.model, messages=messages, **fields)


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
