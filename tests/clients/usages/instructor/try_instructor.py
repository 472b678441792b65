"""Instructor over OpenAI's client, in the modes for servers of open models."""

from collections.abc import Iterable
from typing import Any, Literal

import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field, field_validator
from trial import Endpoint, run_all, usage

HELLO: Any = [{"role": "user", "content": "Hello"}]


class Mood(BaseModel):
    """How somebody feels."""

    model_config = ConfigDict(extra="forbid")
    is_friendly: bool = Field(description="whether they like us")
    tone: Literal["warm", "cool"] | None = None


def asking(endpoint: Endpoint, mode: instructor.Mode = instructor.Mode.TOOLS) -> Any:
    return instructor.from_openai(OpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0), mode=mode)


def wanted(endpoint: Endpoint, kind: Any = Mood, messages: Any = HELLO, **more: Any) -> dict[str, Any]:
    told = {"model": endpoint.model, "response_model": kind, "messages": messages}
    return {**told, "max_tokens": 100, "temperature": 0, "max_retries": 0, **more}


@usage("TOOLS")
def _(endpoint: Endpoint) -> None:
    assert isinstance(asking(endpoint).create(**wanted(endpoint)), Mood)


@usage("TOOLS, strict")
def _(endpoint: Endpoint) -> None:
    assert isinstance(asking(endpoint, instructor.Mode.TOOLS_STRICT).create(**wanted(endpoint)), Mood)


@usage("JSON_SCHEMA")
def _(endpoint: Endpoint) -> None:
    assert isinstance(asking(endpoint, instructor.Mode.JSON_SCHEMA).create(**wanted(endpoint)), Mood)


@usage("JSON")
def _(endpoint: Endpoint) -> None:
    said = [{"role": "user", "content": 'Hello [[{"is_friendly": true}]]'}]
    assert asking(endpoint, instructor.Mode.JSON).create(**wanted(endpoint, messages=said)).is_friendly


@usage("MD_JSON")
def _(endpoint: Endpoint) -> None:
    said = [{"role": "user", "content": 'Hello [[```json {"is_friendly": true} ```]]'}]
    found = asking(endpoint, instructor.Mode.MD_JSON).create(**wanted(endpoint, messages=said))
    assert found.is_friendly


@usage("create_with_completion")
def _(endpoint: Endpoint) -> None:
    found, completion = asking(endpoint).create_with_completion(**wanted(endpoint))
    assert isinstance(found, Mood)
    assert completion.usage.completion_tokens


@usage("create_partial")
def _(endpoint: Endpoint) -> None:
    class Tone(BaseModel):
        model_config = ConfigDict(extra="forbid")
        tone: Literal["warm", "cool"]

    fields = wanted(endpoint, Tone)
    *_, last = asking(endpoint, instructor.Mode.JSON_SCHEMA).create_partial(**fields)
    assert last.tone in ("warm", "cool")


@usage("create_iterable")
def _(endpoint: Endpoint) -> None:
    said = [{"role": "user", "content": 'Hi [[{"tasks": [{"is_friendly": true}, {"is_friendly": false}]}]]'}]
    fields = wanted(endpoint, messages=said)
    found = list(asking(endpoint, instructor.Mode.JSON).create_iterable(**fields))
    assert [mood.is_friendly for mood in found] == [True, False]


@usage("PARALLEL_TOOLS")
def _(endpoint: Endpoint) -> None:
    said = [{"role": "user", "content": 'Hi [[Mood({"is_friendly": true}) & Mood({"is_friendly": false})]]'}]
    fields = wanted(endpoint, Iterable[Mood], said)
    found = list(asking(endpoint, instructor.Mode.PARALLEL_TOOLS).create(**fields))
    assert [mood.is_friendly for mood in found] == [True, False]


@usage("asks again where a validator says no")
def _(endpoint: Endpoint) -> None:
    class Polite(BaseModel):
        word: str

        @field_validator("word")
        @classmethod
        def _is_please(cls, value: str) -> str:
            if value != "please":
                raise ValueError("say please")
            return value

    script = 'Hi [[Polite({"word": "now"}) => Polite({"word": "please"})]]'
    fields = wanted(endpoint, Polite, [{"role": "user", "content": script}], max_retries=2)
    assert asking(endpoint).create(**fields).word == "please"


@usage("async client")
async def _(endpoint: Endpoint) -> None:
    client = AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0)
    found = await instructor.from_openai(client).create(**wanted(endpoint))
    assert isinstance(found, Mood)


@usage("from_provider")
def _(endpoint: Endpoint) -> None:
    client = instructor.from_provider(f"openai/{endpoint.model}", base_url=endpoint.url, api_key=endpoint.key)
    fields = wanted(endpoint)
    fields.pop("model")
    assert isinstance(client.create(**fields), Mood)


@usage("a plain str")
def _(endpoint: Endpoint) -> None:
    reply = asking(endpoint).create(**wanted(endpoint, None, max_tokens=5))
    assert reply.choices[0].message.content


run_all()
