"""Ask a judge over HTTP: patiently, a limited number of questions at once, each answer kept in the store.

async with JudgeClient(endpoint, cache) as client:
    reply = await client.ask(Question("Which reply is better? ...", form))
"""

import asyncio
import email.utils
import json
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx

from workflows.judge.answers import AnswerForm
from workflows.record import JsonObject
from workflows.stage import StageFailed
from workflows.suites.reply_cache import ReplyCache

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
# These pass: too slow, conflict, too early, too many requests; so does each status from 500.
_PASSING = {408, 409, 425, 429}
# These are about one request, such as a conversation that is too long for the judge.
_OF_ONE_REQUEST = {400, 413, 422}
_MAX_SHOWN = 300


@dataclass(frozen=True, kw_only=True)
class JudgeEndpoint:
    """Where a judge is, and how to ask it."""

    url: str
    """of the API, without `/chat/completions`"""
    model: str
    max_new_tokens: int
    max_concurrent: int
    timeout_s: float
    max_away_s: float
    key: str | None = None
    key_name: str | None = None
    """the environment variable that holds the key"""
    transport: httpx.AsyncBaseTransport | None = None
    """None: HTTP"""


@dataclass(frozen=True)
class Question:
    """A question to a judge, with the form that its answer must have."""

    prompt: str
    form: AnswerForm
    earlier: str | None = None
    """the judge's answer to the same question, which did not have the form"""

    def messages(self, as_json: bool) -> list[JsonObject]:
        """The question as messages, with a request for an answer as JSON or with a marked last line."""
        asked = f"{self.prompt.rstrip()}\n\n{self.form.instruction(as_json)}"
        messages: list[JsonObject] = [{"role": "user", "content": asked}]
        if self.earlier is not None:
            messages += [
                {"role": "assistant", "content": self.earlier or "(nothing)"},
                {"role": "user", "content": self.form.again(as_json)},
            ]
        return messages


@dataclass(frozen=True)
class JudgeReply:
    """What a judge says, or why it says nothing."""

    text: str
    error: str = ""


class JudgeClient:
    """A connection to a judge; `requests`, `cached` and the tokens count what was asked so far."""

    def __init__(self, endpoint: JudgeEndpoint, cache: ReplyCache) -> None:
        self._endpoint, self._cache = endpoint, cache
        self._places = asyncio.Semaphore(endpoint.max_concurrent)
        self._left_out: set[str] = set()
        self._answered = time.monotonic()
        self._failed: StageFailed | None = None
        """ends all questions; those that are being answered come to their end"""
        self.requests = self.cached = self.input_tokens = self.output_tokens = 0
        headers = {"Content-Type": "application/json"}
        if endpoint.key is not None:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        self._http = httpx.AsyncClient(
            transport=endpoint.transport,
            headers=headers,
            timeout=None,  # asyncio.timeout limits the whole request
            limits=httpx.Limits(max_connections=None),  # self._places limits them
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cache.save()
        await self._http.aclose()

    @property
    def fixes_temperature(self) -> bool:
        """Whether temperature 0 is asked for; False once the endpoint has refused it."""
        return "temperature" not in self._left_out

    async def ask(self, question: Question) -> JudgeReply:
        """The judge's reply; from the store if it has answered this before.

        Raises StageFailed if the judge is away for too long, or if what answers is no such endpoint.
        """
        identity = self._identity(question)
        known = self._cache.find(identity)
        if known is not None:
            self.cached += 1
            return JudgeReply(known["content"])
        async with self._places:
            if self._failed is not None:
                raise self._failed
            try:
                response = await self._accepted(question)
                if isinstance(response, str):
                    return JudgeReply("", response)
                text, input_tokens, output_tokens = self._read(response)
            except StageFailed as error:
                self._failed = error
                raise
        self.requests += 1
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self._cache.add(identity, {"role": "assistant", "content": text})
        return JudgeReply(text)

    def _identity(self, question: Question) -> JsonObject:
        """What an answer depends on; the judge is in the cache's folder."""
        return {
            "prompt": question.prompt,
            "form": question.form.instruction(as_json=True),
            "earlier": question.earlier,
            "max_new_tokens": self._endpoint.max_new_tokens,
        }

    async def _accepted(self, question: Question) -> httpx.Response | str:
        """The answer with status 200, without fields that the endpoint refuses; or why it refuses the request."""
        while True:
            body = self._body(question, self._left_out)
            response = await self._patient(body)
            if isinstance(response, str) or response.status_code == 200:
                return response
            refused = _refused_field(response)
            if refused in body:
                self._left_out.add(refused)
                continue
            if "response_format" in body:  # not all endpoints that do not support it name it
                without = await self._patient(self._body(question, self._left_out | {"response_format"}))
                if isinstance(without, httpx.Response) and without.status_code == 200:
                    self._left_out.add("response_format")
                    return without
            return f"the judge refuses the request: {self._shown(response)}"

    def _body(self, question: Question, left_out: set[str]) -> JsonObject:
        as_json = "response_format" not in left_out
        body: dict[str, object] = {
            "model": self._endpoint.model,
            "messages": question.messages(as_json),
            "temperature": 0,
            "response_format": question.form.response_format,
            "max_tokens": self._endpoint.max_new_tokens,
        }
        if "max_tokens" in left_out:  # refused by OpenAI's newer models, and the only name that older servers know
            body["max_completion_tokens"] = self._endpoint.max_new_tokens
        return {name: value for name, value in body.items() if name not in left_out}

    async def _patient(self, body: JsonObject) -> httpx.Response | str:
        """The response, after as many tries as it takes; a text if this request fails while others do not."""
        began, wait = time.monotonic(), _FIRST_WAIT_S
        while True:
            pause = wait * random.uniform(0.5, 1.5)
            try:
                async with asyncio.timeout(self._endpoint.timeout_s):
                    response = await self._http.post(
                        f"{self._endpoint.url}/chat/completions", content=json.dumps(body).encode()
                    )
            except TimeoutError:
                why = f"no answer within {self._endpoint.timeout_s:g} s (evaluate.judge.timeout_s)"
            except httpx.InvalidURL as error:
                raise StageFailed(f"evaluate.judge.url: {self._endpoint.url} is no URL: {error}") from None
            except httpx.RequestError as error:
                why = f"{type(error).__name__}: {str(error) or 'no message'}"
            else:
                if not _passes(response):
                    self._check(response)
                    self._answered = time.monotonic()
                    return response
                why = self._shown(response)
                pause = max(pause, _retry_after_s(response))
            if self._failed is not None:
                raise self._failed
            latest = time.monotonic() + pause - self._endpoint.max_away_s
            if latest > self._answered:
                raise StageFailed(self._gone(why, pause))
            if latest > began:
                return f"no answer in {self._endpoint.max_away_s:g} s: {why}"
            await asyncio.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def _check(self, response: httpx.Response) -> None:
        """Raise StageFailed for a status that no further request would change."""
        status, shown = response.status_code, self._shown(response)
        if status == 200 or status in _OF_ONE_REQUEST:
            return
        if status in (401, 403):
            name = self._endpoint.key_name
            fix = f"put a valid key into {name}" if name else "name the variable that holds the API key"
            raise StageFailed(f"evaluate.judge.api_key_env: {self._endpoint.url} answers {shown}; {fix}")
        raise StageFailed(
            f"evaluate.judge.url: {self._endpoint.url}/chat/completions answers {shown}; check the URL, which often "
            f"ends in /v1, and evaluate.judge.model, {self._endpoint.model!r}"
        )

    def _read(self, response: httpx.Response) -> tuple[str, int, int]:
        """The text, and the tokens of the prompt and of the text; raises StageFailed."""
        try:
            content = response.json()
            text = content["choices"][0]["message"].get("content") or ""
            usage = content.get("usage") or {}
            tokens = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
            # A lone surrogate, which JSON can express, cannot be stored.
            return str(text).encode("utf-8", "replace").decode(), int(tokens[0]), int(tokens[1])
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise StageFailed(
                f"evaluate.judge.url: what {self._endpoint.url}/chat/completions answers is no chat completion: "
                f"{self._shown(response)}; check the URL, which often ends in /v1"
            ) from None

    def _gone(self, why: str, pause: float) -> str:
        waits = f", and asks to wait {pause:.0f} s" if pause > self._endpoint.max_away_s else ""
        return (
            f"evaluate.judge: {self._endpoint.url} has answered nothing for {self._endpoint.max_away_s:g} s "
            f"(evaluate.judge.max_away_s){waits}: {why}; once it answers, run again: what it has answered is kept"
        )

    def _shown(self, response: httpx.Response) -> str:
        """A response's status and error in one line, without the key, which some services repeat."""
        found = _error_of(response)
        text = str(found.get("message") or response.text or response.headers.get("Location", ""))
        if self._endpoint.key:
            text = text.replace(self._endpoint.key, "<the key>")
        text = " ".join(text.split())
        return f"{response.status_code} ({text[:_MAX_SHOWN] or 'no text'})"


def _error_of(response: httpx.Response) -> dict[str, Any]:
    """The error in OpenAI's form; empty if it has another."""
    try:
        content = response.json()
    except (ValueError, RecursionError):
        return {}
    error = content.get("error") if isinstance(content, dict) else None
    return error if isinstance(error, dict) else {"message": error} if isinstance(error, str) else {}


def _passes(response: httpx.Response) -> bool:
    """Whether a response is an error that passes. Gateways to several services report those of a service with 200."""
    status = response.status_code
    return status in _PASSING or status >= 500 or (status == 200 and bool(_error_of(response)))


def _refused_field(response: httpx.Response) -> str:
    """The field that an error names, if the request may go without it; else an empty text."""
    name = str(_error_of(response).get("param") or "").partition(".")[0]
    return name if name in ("response_format", "temperature", "max_tokens") else ""


def _retry_after_s(response: httpx.Response) -> float:
    """The seconds to wait that a response asks for, as a number or as a date; 0 if it does not."""
    text = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
