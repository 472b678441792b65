"""Bad requests of every kind: each gets a 4xx in OpenAI's format, and concurrent streams are not disturbed."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.base.load import load_tokenizer
from models.export.openvino_export import export
from serve.api.routes import create_app
from serve.engines.base import Engine, EngineHealth
from serve.engines.openvino import OpenVINOEngine
from serve.engines.torch import TorchEngine

MODEL = "tiny/talker"
HELLO = [{"role": "user", "content": "Hello"}]
NUM_STREAMS, NUM_TOKENS = 8, 60
CHAT, TEXT, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
SCHEMA = "response_format.json_schema.schema"


@dataclass(frozen=True)
class Bad:
    """A request and the expected error; with `engine`, for that engine only."""

    body: bytes
    status: int
    param: str | None
    words: str
    path: str = CHAT
    engine: str | None = None
    method: str = "POST"
    content_type: str = "application/json"


def change(param: str | None, words: str, status: int = 400, engine: str | None = None, **fields: Any) -> Bad:
    """A valid chat request, except for these fields."""
    body = {"model": MODEL, "messages": HELLO, **fields}
    return Bad(json.dumps(body).encode(), status, param, words, engine=engine)


def schema(words: str, rules: Any, engine: str | None = None) -> Bad:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": rules}}
    return change(SCHEMA, words, engine=engine, response_format=wanted)


def unsure(words: str, rules: Any) -> Bad:
    """A schema that would make OpenVINO fail in the middle of a step, and with it every request; no other decoder
    takes it.
    """
    return schema(words, rules, engine="openvino")


def turn(role: str, content: Any = "x", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def call(arguments: str) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}


def raw(body: bytes, param: str | None, words: str, path: str = CHAT) -> Bad:
    return Bad(body, 400, param, words, path)


def of_path(path: str, param: str, words: str, status: int = 400, **fields: Any) -> Bad:
    return Bad(json.dumps(fields).encode(), status, param, words, path)


def nested(depth: int) -> Any:
    rules: Any = {"type": "null"}
    for _ in range(depth):
        rules = {"properties": {"a": rules}}
    return rules


ENDLESS = {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"], "additionalProperties": False}
GOOD = json.dumps({"model": MODEL, "messages": HELLO}).encode()
TOOL = {"type": "function", "function": {"name": "f"}}

# fmt: off
BAD: list[Bad] = [
    # Not JSON, or JSON of another form.
    raw(b"", None, "not valid JSON"),
    raw(GOOD[:-5], None, "not valid JSON"),
    raw(b"[]", None, "must be a JSON object"),
    raw(b'"hello"', None, "must be a JSON object"),
    raw(b"\xff\xfe", None, "not valid JSON"),
    raw(GOOD.replace(b"Hello", b"\xc3\x28"), None, "not valid JSON"),
    raw(GOOD.replace(b"Hello", b"\\ud83d"), None, "not valid JSON"),
    raw(GOOD.decode().encode("utf-16"), None, "not valid JSON"),
    raw(b'{"messages": ' + b"[" * 100_000, None, "not valid JSON"),
    raw(GOOD[:-1] + b', "temperature": NaN}', "temperature", "finite"),
    raw(GOOD[:-1] + b', "top_p": Infinity}', "top_p", "finite"),
    raw(GOOD[:-1] + b', "presence_penalty": -1e999}', "presence_penalty", "finite"),
    raw(GOOD[:-1] + b', "seed": ' + b"9" * 4000 + b"}", "seed", "less than or equal"),
    raw(GOOD[:-1] + b', "seed": ' + b"9" * 9000 + b"}", None, "number out of range"),
    raw(GOOD[:-1] + b', "model": 5}', "model", "valid string"),  # of two equal keys, the last one counts
    raw(GOOD[:-1] + b', "messages": [' + b'{"role": "x"},' * 10_000 + b"0]}", "messages[0].role", "got 'x'"),
    Bad(GOOD.replace(b"Hello", b"x" * (10 << 20)), 413, None, "4194304"),
    Bad(GOOD, 415, None, "application/json", content_type="text/plain"),
    Bad(GOOD, 415, None, "application/json", content_type="application/x-www-form-urlencoded"),
    Bad(GOOD, 404, None, "There is no route POST", path="/v1/chat"),
    Bad(b"", 405, None, "does not support GET", method="GET"),
    Bad(GOOD, 405, None, "does not support DELETE", method="DELETE"),
    # Names, types and ranges.
    change("temprature", "Did you mean temperature?", temprature=1),
    change("model", "does not exist", 404, model="gpt-5"),
    change("model", "valid string", model=None),
    change("temperature", "less than or equal to 2", temperature=2.5),
    change("temperature", "valid number", temperature="hot"),
    change("top_p", "greater than or equal to 0", top_p=-0.1),
    change("top_k", "valid integer", top_k=1.5),
    change("n", "less than or equal to 128", n=10**9),
    change("n", "valid integer", n=True),
    change("max_tokens", "greater than or equal to 1", max_tokens=-1),
    change("max_tokens", "max_tokens asks for", max_tokens=10**30),
    change("max_completion_tokens", "not both", max_tokens=1, max_completion_tokens=1),
    change("repetition_penalty", "0.01", repetition_penalty=1e-300),
    change("frequency_penalty", "less than or equal to 2", frequency_penalty=3),
    change("logit_bias.5", "less than or equal to 100", logit_bias={"5": 101}),
    change("logit_bias", "token ids", logit_bias={"9" * 5000: 1}),
    change("logit_bias", "the model's are 0 to 259", logit_bias={"260": 1}),
    change("logit_bias", "cannot change logits of single tokens", engine="openvino", logit_bias={"5": 1}),
    change("stop", "at most 4", stop=["a"] * 5),
    change("stop[0]", "at least 1 character", stop=[""]),
    change("top_logprobs", "less than or equal to 20", logprobs=True, top_logprobs=99),
    change("stream_options", "stream true", stream_options={"include_usage": True}),
    change("metadata.k", "valid string", metadata={"k": 1}),
    change("user", "at most 512", user="x" * 513),
    # Conversations.
    change("messages", "at least 1 item", messages=[]),
    change("messages[0].role", "got 'robot'", messages=[turn("robot")]),
    change("messages", "all texts in `messages` are empty", messages=[turn("system", None)]),
    change("messages[0].content[0].type", "got 'image_url'", messages=[turn("user", [{"type": "image_url"}])]),
    change("continue_final_message", "not the assistant's", continue_final_message=True),
    change("messages[1].tool_call_id", "no call", messages=[*HELLO, turn("tool", tool_call_id="c1")]),
    change("messages[1].tool_calls", "no place", messages=[*HELLO, turn("assistant", None, tool_calls=[call("{}")])]),
    change("messages[0].tool_calls[0].function.arguments", "JSON object",
           messages=[turn("assistant", None, tool_calls=[call('{"a": "\\ud800"}')])]),
    change("messages[0].tool_calls[0].function.arguments", "JSON object",
           messages=[turn("assistant", None, tool_calls=[call("[" * 5000)])]),
    change("messages", "maximum context length is 2048", messages=[turn("user", "x" * 3000)]),
    change("tools", "no place for tools", tools=[TOOL]),
    change("tools[0].function.name", "match pattern", tools=[{"type": "function", "function": {"name": "a b"}}]),
    change("tool_choice", "no tools", tool_choice="required"),
    # Schemas.
    change("response_format", "json_schema", response_format={"type": "xml"}),
    schema("Invalid type: thing", {"type": "thing"}),
    schema("nowhere", {"$ref": "#/$defs/nowhere"}),
    schema("example.com", {"$ref": "https://example.com/schema.json"}),
    schema("no value", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    schema("Unsatisfiable", {"type": "object", "required": ["x"], "additionalProperties": False}),
    schema("Unsatisfiable", {"enum": []}),
    raw(json.dumps(nested(300)).encode(), None, "recursion limit"),
    schema("recursion limit", nested(80)),
    schema("65536", {"enum": ["x" * 70_000]}),
    schema("minItems", {"type": "array", "minItems": 10**9}),
    schema("maxItems", {"type": "array", "items": {"type": "array", "maxItems": 10**400}}),
    schema("multipleOf", {"type": "integer", "multipleOf": 999_983}),
    schema("multipleOf", {"allOf": [{"multipleOf": prime} for prime in (83, 89, 97)]}),
    schema("regex", {"type": "string", "pattern": "(a"}),
    schema("look-around", {"type": "string", "pattern": "^(?!x)(a+)+$"}),
    # Too large, or too slow while others wait.
    schema("schema", {"allOf": [{"anyOf": [{"const": n} for n in range(60)]} for _ in range(6)]}),
    schema("after 0 tokens", ENDLESS, engine="torch"),
    unsure("pattern", {"type": "string", "pattern": "(a+)+b"}),
    unsure("escaped characters", {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}),
    unsure("quote", {"type": "object", "properties": {'a"\n': {"type": "null"}}}),
    unsure("backslash", {"type": "object", "properties": {"a\\": {"type": "null"}}}),
    unsure("'b' in required", {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}),
    unsure("False as a schema", {"type": "object", "properties": {"a": False}}),
    unsure("as a schema", {"type": "array", "items": [{"type": "null"}]}),
    unsure("enum beside type", {"type": "string", "enum": ["a", 5]}),
    unsure("$defs", {"type": "null", "$defs": 5}),
    unsure("properties", {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(600)}}),
    # The other routes.
    of_path(TEXT, "prompt", "Missing", model=MODEL),
    of_path(TEXT, "prompt", "Input should be a text", model=MODEL, prompt=""),
    of_path(TEXT, "prompt", "Input should be a text", model=MODEL, prompt=[1, "a"]),
    of_path(TEXT, "prompt", "Input should be a text", model=MODEL, prompt=["a"] * 65),
    of_path(TEXT, "prompt", "the model's are 0 to 259", model=MODEL, prompt=[10**30]),
    of_path(TEXT, "best_of", "should be 1", model=MODEL, prompt="a", best_of=3),
    of_path(TEXT, "best_of", "Should equal n", model=MODEL, prompt="a", best_of=1, n=2),
    of_path(TEXT, "logprobs", "less than or equal to 5", model=MODEL, prompt="a", logprobs=6),
    of_path(TOKENIZE, "prompt", "prompt or messages", model=MODEL),
    of_path(TOKENIZE, "messages", "not both", prompt="a", messages=HELLO),
    of_path(TOKENIZE, "model", "does not exist", 404, model="other", prompt="a"),
]
# fmt: on


@pytest.fixture(scope="module", params=["torch", "openvino"])
def engine(
    request: pytest.FixtureRequest, save_talker: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    folder = save_talker(tmp_path_factory.mktemp("release"), positions=2048)
    if request.param == "openvino":
        export(folder, export_folder := tmp_path_factory.mktemp("export"), "fp32")
        engine: Engine = OpenVINOEngine(export_folder, "fp32", NUM_STREAMS, 1, has_beside=False)
    else:
        engine = TorchEngine(folder, "fp32", NUM_STREAMS, 1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(engine: Engine, tiny_llama: Path, serving: Callable[[Any], AbstractContextManager[str]]) -> Iterator[str]:
    with serving(create_app(engine, load_tokenizer(tiny_llama), MODEL)) as url:
        yield url


class Streams:
    """Valid greedy streams, one after the other in each of several threads, until stopped."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_enough = threading.Event()
        self._alone = [self._read(number) for number in range(NUM_STREAMS)]
        assert len({*self._alone}) == NUM_STREAMS, "the test's model says the same whatever it read"

    def __enter__(self) -> "Streams":
        self._threads = ThreadPoolExecutor(NUM_STREAMS)
        self._runs = [self._threads.submit(self._run, number) for number in range(NUM_STREAMS)]
        return self

    def __exit__(self, *failure: object) -> None:
        self._is_enough.set()
        self._threads.shutdown()
        for run in self._runs:
            run.result()

    def _run(self, number: int) -> None:
        while True:
            assert self._read(number) == self._alone[number]
            if self._is_enough.is_set():
                return

    def _read(self, number: int) -> str:
        """The reply's letters, one per token. Checks that the stream has the requested number of tokens and a finish
        reason.
        """
        ask = {"model": MODEL, "messages": [turn("user", f"Number {number}")], "temperature": 0, "stream": True}
        text, ends = "", []
        with httpx.stream("POST", self._url + CHAT, json={**ask, "max_tokens": NUM_TOKENS}, timeout=60) as response:
            assert response.status_code == 200
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        for line in lines[:-1]:
            [choice] = json.loads(line)["choices"]
            text += choice["delta"].get("content", "")
            ends += [choice["finish_reason"]] if choice["finish_reason"] else []
        assert (len(text), ends) == (NUM_TOKENS, ["length"])
        return text


def test_bad_requests_are_refused_by_name_while_good_streams_go_on(engine: Engine, url: str) -> None:
    name = "openvino" if isinstance(engine, OpenVINOEngine) else "torch"
    table = [bad for bad in BAD if bad.engine in (None, name)]
    assert len(table) >= 40
    with Streams(url), ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda bad: sent(url, bad), table))
    wrong = [
        f"{bad.body[:200]!r}: {fault}"
        for bad, answer in zip(table, answers, strict=True)
        if (fault := fault_of(bad, answer))
    ]
    assert not wrong, "\n".join(wrong)
    assert engine.health().is_alive


def fault_of(bad: Bad, answer: httpx.Response) -> str | None:
    """What is wrong with the answer to a bad request; empty if nothing is."""
    error = answer.json().get("error", {}) if answer.status_code < 500 else {}
    if (answer.status_code, error.get("param")) != (bad.status, bad.param) or bad.words not in error["message"]:
        return f"{answer.status_code} {answer.text[:300]}; it should be {bad.status}, {bad.param}: {bad.words}"
    if set(error) != {"message", "type", "param", "code"} or error["type"] != "invalid_request_error":
        return f"not in OpenAI's shape: {answer.text[:300]}"
    return f"a message of {len(error['message'])} letters" if len(error["message"]) > 5000 else None


def sent(url: str, bad: Bad) -> httpx.Response:
    headers = {"Content-Type": bad.content_type}
    return httpx.request(bad.method, url + bad.path, content=bad.body, headers=headers, timeout=60)


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
NO_HTTP = [
    b"hello\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST " + CHAT.encode() + b"\r\n\r\n",
    HEAD + b"Content-Length: -5\r\n\r\n{}",
    HEAD + b"Content-Length: five\r\n\r\n{}",
    HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    HEAD + b"X: \x00\r\n\r\n",
]
UNFINISHED = [
    HEAD + b"Content-Length: 500\r\n\r\n{",
    HEAD + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"mod',
    HEAD,
]


def test_invalid_or_endless_http_disturbs_nobody(engine: Engine, url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with Streams(url):
        for request in NO_HTTP:
            with socket.create_connection((host, int(port)), timeout=30) as client:
                client.sendall(request)
                assert client.recv(100).startswith(b"HTTP/1.1 4"), request
        for request in UNFINISHED:
            with socket.create_connection((host, int(port)), timeout=0.2) as client:
                client.sendall(request)
                with pytest.raises(TimeoutError):
                    client.recv(100)  # the server waits for the rest until the client disconnects
    assert engine.health() == EngineHealth(True, 0, 0)
