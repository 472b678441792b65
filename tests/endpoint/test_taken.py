"""What clients send beyond the basics: hints, conversations of any shape, vLLM's fields; and how we answer."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from models.base.load import load_model, load_tokenizer
from models.chat import encode_prompt
from models.export.openvino_export import export
from serve.api.routes import create_app
from serve.engines.base import Engine
from serve.engines.openvino import OpenVINOEngine
from serve.engines.torch import TorchEngine

MODEL = "tiny/talker"
HELLO = [{"role": "user", "content": "Hello"}]
CALLS = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "1"}
SO = {"role": "assistant", "content": "So"}
# A template that writes tools, and accepts empty messages and any order of roles.
TEMPLATE = (
    "{% if tools %}<|start_header_id|>tools<|end_header_id|>\n\n{{ tools | tojson }}<|eot_id|>{% endif %}"
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% if not loop.last %}\n{% endif %}{% endfor %}{% else %}{{ message['content'] }}{% endif %}"
    "<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@dataclass(frozen=True)
class Endpoint:
    url: str
    client: openai.OpenAI
    release: Path

    def ask(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        chat = {"messages": HELLO} if path.endswith("chat/completions") else {}
        return httpx.post(self.url + path, json={"model": MODEL, "max_tokens": 4, **chat, **body}, timeout=60)

    def told(self, path: str = "/v1/chat/completions", **body: Any) -> Any:
        answer = self.ask(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module", params=["torch", "openvino"])
def endpoint(
    request: pytest.FixtureRequest,
    save_talker: Callable[..., Path],
    serving: Callable[[Any], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Endpoint]:
    release = save_talker(tmp_path_factory.mktemp("release"), ends=True, template=TEMPLATE, positions=2048)
    if request.param == "openvino":
        export(release, folder := tmp_path_factory.mktemp("export"), "fp32")
        engine: Engine = OpenVINOEngine(folder, "fp32", 4, 1)
    else:
        engine = TorchEngine(release, "fp32", 4, 1)
    with (
        serving(create_app(engine, load_tokenizer(release), MODEL)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60) as client,
    ):
        yield Endpoint(url, client, release)
    engine.close()


def test_a_reply_can_be_sent_back_as_it_came(endpoint: Endpoint) -> None:
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 4}
    message = endpoint.client.chat.completions.create(messages=HELLO, **ask).choices[0].message
    as_json = endpoint.ask().json()["choices"][0]["message"]
    for sent in (message, message.model_dump(), as_json):
        talk: Any = [*HELLO, sent, {"role": "user", "content": "And?"}]
        assert endpoint.client.chat.completions.create(messages=talk, **ask).choices[0].message.role == "assistant"


MESSAGES: dict[str, list[dict[str, Any]]] = {
    "a name": [{"role": "user", "name": "bob", "content": "Hi"}],
    "two users": [*HELLO, *HELLO],
    "two system texts": [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, *HELLO],
    "a developer": [{"role": "developer", "content": "A"}, *HELLO],
    "a system text in the middle": [*HELLO, SO, {"role": "system", "content": "B"}],
    "no content": [*HELLO, {"role": "assistant", "content": None}, *HELLO],
    "an empty text": [*HELLO, {"role": "assistant", "content": ""}, *HELLO],
    "an empty user's text": [{"role": "user", "content": ""}],
    "no parts": [{"role": "user", "content": []}],
    "a last reply": [*HELLO, SO],
    "no calls": [*HELLO, {"role": "assistant", "content": "x", "tool_calls": []}, *HELLO],
    "an open call": [*HELLO, {"role": "assistant", "content": None, "tool_calls": CALLS}, *HELLO],
    "a last call": [*HELLO, {"role": "assistant", "content": "", "tool_calls": CALLS}],
    "after a tool": [*HELLO, {"role": "assistant", "tool_calls": CALLS}, ANSWER, *HELLO],
    "a named answer": [
        *HELLO, {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "name": "f", "tool_call_id": "c1", "content": ""},
    ],
    "no arguments": [
        *HELLO, {"role": "assistant", "tool_calls": [{**CALLS[0], "function": {"name": "f", "arguments": ""}}]},
        ANSWER,
    ],
    "parsed arguments": [
        *HELLO, {"role": "assistant", "parsed": None, "tool_calls": [
            {**CALLS[0], "index": 0, "function": {**CALLS[0]["function"], "parsed_arguments": {"a": 1}}}]},
        ANSWER,
    ],
    "arguments that were cut": [
        *HELLO, {"role": "assistant", "tool_calls": [
            {**CALLS[0], "function": {"name": "f", "arguments": '{"a": 1, "b": "so fa'}}]},
        ANSWER,
    ],
    "arguments as an object": [
        *HELLO, {"role": "assistant", "tool_calls": [{**CALLS[0], "function": {"name": "f", "arguments": {"a": 1}}}]},
        ANSWER,
    ],
    "the older call": [
        *HELLO, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"},
    ],
    "nulls": [*HELLO, {
        "role": "assistant", "content": "x", "refusal": None, "audio": None, "function_call": None, "annotations": [],
        "tool_calls": None, "reasoning_content": None, "provider_specific_fields": {"refusal": None},
    }, *HELLO],
    "a refusal": [*HELLO, {"role": "assistant", "content": None, "refusal": "No."}, *HELLO],
    "parts of the Responses API": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Yes", "annotations": []}]}, *HELLO],
    "cached parts": [{"role": "user", "content": [
        {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "!"}]}],
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_conversations_have_many_forms(endpoint: Endpoint, name: str) -> None:
    endpoint.told(messages=MESSAGES[name])


HINTS: list[dict[str, Any]] = [
    {"store": False, "service_tier": "auto", "safety_identifier": "s", "prompt_cache_key": "k", "verbosity": "low"},
    dict.fromkeys((
        "store", "service_tier", "reasoning_effort", "verbosity", "modalities", "audio", "prediction", "functions",
        "function_call", "tools", "tool_choice", "parallel_tool_calls", "response_format", "logit_bias", "stop", "n",
        "seed", "user", "metadata", "stream", "stream_options", "top_logprobs", "logprobs", "web_search_options",
        "min_p", "ignore_eos", "stop_token_ids", "chat_template_kwargs", "structured_outputs",
    )),
    {"reasoning_effort": "low"},  # for a model without reasoning
    {"prediction": {"type": "content", "content": "x"}, "modalities": ["text"]},
    {"top_k": -1, "use_beam_search": False, "length_penalty": 1.0, "skip_special_tokens": True, "priority": 3},
    {"cache_salt": "s", "request_id": "r", "include_reasoning": True, "cache_prompt": True, "vllm_xargs": {}},
    {"typical_p": 1.0, "mirostat": 0, "dry_multiplier": 0, "xtc_probability": 0.0, "id_slot": -1, "echo": True},
    {"tools": [], "tool_choice": "auto", "logprobs": False, "top_logprobs": 0, "add_special_tokens": False},
    {"add_generation_prompt": True, "continue_final_message": False},
]  # fmt: skip


@pytest.mark.parametrize("hints", HINTS)
def test_hints_change_nothing(endpoint: Endpoint, hints: dict[str, Any]) -> None:
    plain = endpoint.told(temperature=0)["choices"]
    assert endpoint.told(temperature=0, **hints)["choices"] == plain


def test_other_end_tokens_can_be_requested(endpoint: Endpoint) -> None:
    end = load_tokenizer(endpoint.release).convert_tokens_to_ids("<|eot_id|>")
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 40}
    seeds = [endpoint.told(max_tokens=200, seed=seed) for seed in range(4)]
    assert "stop" in {told["choices"][0]["finish_reason"] for told in seeds}, "the test's model never ends a reply"
    never = [endpoint.told(max_tokens=200, seed=seed, ignore_eos=True) for seed in range(4)]
    assert {told["usage"]["completion_tokens"] for told in never} == {200}
    again = [endpoint.told(max_tokens=200, seed=seed, ignore_eos=True, stop_token_ids=[end]) for seed in range(4)]
    assert [told["choices"][0]["message"] for told in again] == [told["choices"][0]["message"] for told in seeds]
    reasons = {(told["choices"][0]["finish_reason"], told["choices"][0]["stop_reason"]) for told in again}
    assert ("stop", end) in reasons <= {("stop", end), ("length", None)}
    late = [endpoint.told(max_tokens=200, seed=seed, min_tokens=150) for seed in range(4)]
    assert min(told["usage"]["completion_tokens"] for told in late) >= 150
    text = endpoint.told(**greedy)["choices"][0]["message"]["content"]
    letter = load_tokenizer(endpoint.release).convert_tokens_to_ids(text[3])
    short = endpoint.told(**greedy, stop_token_ids=[letter])["choices"][0]
    assert (short["message"]["content"], short["finish_reason"]) == (text[: text.index(text[3])], "stop")
    stopped = endpoint.told(**greedy, stop=[text[3:5]], include_stop_str_in_output=True)["choices"][0]
    assert stopped["message"]["content"] == text[: text.index(text[3:5]) + 2]
    assert stopped["stop_reason"] == text[3:5]
    later = endpoint.told(**greedy, stop=[text[3:5]], min_tokens=6)["choices"][0]["message"]["content"]
    assert later.startswith(text[:6])
    assert text[3:5] not in later[6:]


def test_tokens_and_words_can_be_kept_out(endpoint: Endpoint) -> None:
    tokenizer = load_tokenizer(endpoint.release)
    allowed = tokenizer.convert_tokens_to_ids(["a", "b"])
    told = endpoint.told(temperature=2, max_tokens=20, allowed_token_ids=allowed, ignore_eos=True)
    assert set(told["choices"][0]["message"]["content"]) <= {"a", "b"}
    assert told["usage"]["completion_tokens"] == 20
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    text = endpoint.told(**greedy)["choices"][0]["message"]["content"]
    kept_out = endpoint.told(**greedy, bad_words=[text[3:5]])["choices"][0]["message"]["content"]
    begin = text.index(text[3:5]) + 1
    assert kept_out[:begin] == text[:begin], "a word is kept out, not its beginning"
    assert text[3:5] not in kept_out


@pytest.mark.parametrize("temperature", [0, 1])
def test_rules_that_leave_no_token_are_refused(endpoint: Endpoint, temperature: int) -> None:
    letter = load_tokenizer(endpoint.release).convert_tokens_to_ids(["a"])
    for param, fields in {
        "regex": {"regex": "0", "bad_words": ["0"]},
        "allowed_token_ids": {"allowed_token_ids": letter, "bad_words": ["a"], "min_tokens": 3},
    }.items():
        answer = endpoint.ask(**fields, temperature=temperature)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert "allow no token" in answer.json()["error"]["message"]


def test_a_prompt_can_be_read_from_its_end(endpoint: Endpoint) -> None:
    ask: dict[str, Any] = {"temperature": 0, "prompt": "Hello, you there"}
    ids = load_tokenizer(endpoint.release)(ask["prompt"])["input_ids"]
    cut = endpoint.told("/v1/completions", **ask, truncate_prompt_tokens=5)
    same = endpoint.told("/v1/completions", temperature=0, prompt=ids[-5:])
    assert cut["usage"]["prompt_tokens"] == 5
    assert cut["choices"] == same["choices"]
    long = endpoint.told("/v1/completions", prompt="x" * 3000, truncate_prompt_tokens=-1)
    assert long["usage"]["prompt_tokens"] == 2048 - 4
    begins = [
        endpoint.told("/v1/completions", **ask, add_special_tokens=adds)["usage"]["prompt_tokens"]
        for adds in (True, False)
    ]
    assert begins == [len(ids), len(ask["prompt"])]


def test_a_prompt_may_end_with_its_last_message(endpoint: Endpoint) -> None:
    opened, closed = endpoint.told(), endpoint.told(add_generation_prompt=False)
    opening = load_tokenizer(endpoint.release)("<|start_header_id|>assistant<|end_header_id|>\n\n")["input_ids"]
    more = opened["usage"]["prompt_tokens"] - closed["usage"]["prompt_tokens"]
    assert more == len(opening)
    for fields, told in (({}, opened), ({"add_generation_prompt": False}, closed)):
        asked = {"messages": HELLO, **fields}
        answer = httpx.post(f"{endpoint.url}/tokenize", json=asked)
        assert answer.json()["count"] == told["usage"]["prompt_tokens"]


FURTHER: dict[str, tuple[dict[str, Any], str]] = {
    "guided_choice": ({"guided_choice": ["ab", "ba"]}, "ab|ba"),
    "guided_regex": ({"guided_regex": "[a-c]{3}"}, "[a-c]{3}"),
    "regex": ({"regex": "[a-c]{3}"}, "[a-c]{3}"),
    "guided_grammar": ({"guided_grammar": 'root ::= "ab" | "ba"'}, "ab|ba"),
    "ebnf": ({"ebnf": 'root ::= "ab" | "ba"'}, "ab|ba"),
    "grammar": ({"grammar": 'root ::= "ab" | "ba"'}, "ab|ba"),
    "guided_json": ({"guided_json": {"enum": ["x"]}}, '"x"'),
    "json_schema": ({"json_schema": '{"enum": ["x"]}'}, '"x"'),
    "json": ({"structured_outputs": {"json": '{"enum": ["x"]}', "disable_any_whitespace": True}}, '"x"'),
    "json_object": (
        {"response_format": {"type": "json_object", "schema": {"type": "object", "properties": {"a": {"enum": [1]}},
                                                               "required": ["a"], "additionalProperties": False}}},
        r'\{\s*"a"\s*:\s*1\s*\}',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FURTHER)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_formats_have_many_names(endpoint: Endpoint, name: str, path: str) -> None:
    fields, pattern = FURTHER[name]
    prompt = {"prompt": "x"} if path == "/v1/completions" else {}
    [choice] = endpoint.told(path, **fields, **prompt, temperature=0, max_tokens=60)["choices"]
    assert re.fullmatch(pattern, choice["text"] if prompt else choice["message"]["content"])


@pytest.mark.parametrize(("fields", "param"), [
    ({"regex": "a", "ebnf": 'root ::= "a"'}, "ebnf"),
    ({"regex": "a", "response_format": {"type": "json_object"}}, "response_format"),
    ({"regex": "a", "structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
    ({"json_schema": "{"}, "json_schema"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"documents": [{"text": "x"}]}, "documents"),
    ({"typical_p": 0.9}, "typical_p"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
])  # fmt: skip
def test_what_contradicts_itself_is_refused(endpoint: Endpoint, fields: dict[str, Any], param: str) -> None:
    answer = endpoint.ask(**{"max_tokens": 8, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_tokens_are_reported_by_their_ids(endpoint: Endpoint) -> None:
    for path, fields in (("/v1/chat/completions", {}), ("/v1/completions", {"prompt": "Hello"})):
        ask = {**fields, "max_tokens": 6, "temperature": 0, "return_token_ids": True, "n": 2, "ignore_eos": True}
        told = endpoint.told(path, **ask)
        named = endpoint.told(path, **ask, logprobs=1 if fields else True, return_tokens_as_token_ids=True)
        streamed = endpoint.ask(path, **ask, stream=True).text.splitlines()
        events = [json.loads(line[6:]) for line in streamed if line.startswith("data: {")]
        prompts = [told, *events[:1]] if not fields else [*told["choices"], *events[0]["choices"]]
        assert {len(each["prompt_token_ids"]) for each in prompts} == {told["usage"]["prompt_tokens"]}
        for index, choice in enumerate(told["choices"]):
            said = [piece for event in events for piece in event["choices"] if piece["index"] == index]
            assert [number for piece in said for number in piece.get("token_ids") or ()] == choice["token_ids"]
            logprobs = named["choices"][index]["logprobs"]
            names = logprobs["tokens"] if fields else [token["token"] for token in logprobs["content"]]
            assert names == [f"token_id:{number}" for number in choice["token_ids"]]
            assert len(names) == 6


def test_a_prompt_alone_has_its_log_probabilities(endpoint: Endpoint) -> None:
    prompt = "Once upon"
    ask: dict[str, Any] = {"prompt": prompt, "temperature": 0, "echo": True, "logprobs": 2}
    more = endpoint.told("/v1/completions", **ask, max_tokens=1)["choices"][0]["logprobs"]
    told = endpoint.told("/v1/completions", **ask, max_tokens=0, prompt_logprobs=1)
    [choice] = told["choices"]
    assert (choice["text"], choice["finish_reason"], told["usage"]["completion_tokens"]) == (prompt, "length", 0)
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(more["token_logprobs"][:-1], abs=1e-4, nan_ok=True)
    ids = load_tokenizer(endpoint.release)(prompt)["input_ids"]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    for token_id, own, found in zip(ids[1:], choice["logprobs"]["token_logprobs"][1:], others, strict=True):
        assert found[str(token_id)]["logprob"] == pytest.approx(own, abs=1e-6)
        assert [each["rank"] for each in found.values() if each["rank"] == 1] == [1]
        assert max(each["logprob"] for each in found.values()) == min(
            each["logprob"] for each in found.values() if each["rank"] == 1
        )
    chat = endpoint.told(prompt_logprobs=0)
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert {len(each) for each in chat["prompt_logprobs"][1:]} == {1}
    plain = endpoint.told("/v1/completions", prompt=prompt, max_tokens=0)["choices"][0]
    assert (plain["text"], plain["logprobs"], plain["prompt_logprobs"]) == ("", None, None)
    streamed = endpoint.ask("/v1/completions", **ask, max_tokens=0, stream=True).text.splitlines()
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in streamed if line.startswith("data: {")]
    assert "".join(texts) == prompt


def test_min_p_leaves_the_likely_ones(endpoint: Endpoint) -> None:
    greedy = endpoint.told(temperature=0)["choices"][0]["message"]
    found = {
        min_p: [endpoint.told(temperature=2, min_p=min_p, seed=seed)["choices"][0]["message"] for seed in range(6)]
        for min_p in (0.0, 1.0)
    }
    assert all(message == greedy for message in found[1.0])
    assert any(message != greedy for message in found[0.0])


def test_the_last_message_is_continued(endpoint: Endpoint) -> None:
    talk = [*HELLO, {"role": "assistant", "content": "So I say "}]
    ask: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False, "temperature": 0}
    told = endpoint.told(messages=talk, **ask)
    tokenizer = load_tokenizer(endpoint.release)
    prompt = encode_prompt(tokenizer, talk, continues=True)
    assert tokenizer.decode(prompt).endswith("<|end_header_id|>\n\nSo I say ")
    assert told["usage"]["prompt_tokens"] == len(prompt)
    plain = endpoint.told("/v1/completions", prompt=prompt, temperature=0)
    said = plain["choices"][0]["text"]
    assert told["choices"][0]["message"]["content"] == said
    assert endpoint.told(messages=talk, **ask, echo=True)["choices"][0]["message"]["content"] == f"So I say {said}"
    lines = endpoint.ask(messages=talk, **ask, echo=True, stream=True).text.splitlines()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    assert "".join(delta.get("content", "") for delta in deltas) == f"So I say {said}"


def test_a_refusal_of_the_template_names_the_message(
    save_talker: Callable[..., Path], serving: Callable[[Any], AbstractContextManager[str]], tmp_path: Path
) -> None:
    strict = TEMPLATE.replace(
        "{% for message in messages %}",
        "{% for message in messages %}"
        "{% if message.role == 'system' and not loop.first %}{{ raise_exception('Systems begin.') }}{% endif %}",
        1,
    )
    release = save_talker(tmp_path, template=strict)
    engine = TorchEngine(release, "fp32", 2, 1)
    with serving(create_app(engine, load_tokenizer(release), MODEL)) as url:
        talk = [*HELLO, *HELLO, {"role": "system", "content": "B"}, {"role": "user", "content": "x"}]
        answer = httpx.post(f"{url}/v1/chat/completions", json={"model": MODEL, "messages": talk}, timeout=20)
    engine.close()
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages[2]")
    assert "Systems begin." in error["message"]


def of_name(name: str) -> dict[str, Any]:
    answer = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    return {"name": name, "description": "d", "parameters": answer}


def test_functions_are_called_in_the_older_form_too(endpoint: Endpoint) -> None:
    ask: dict[str, Any] = {"functions": [of_name("f"), of_name("g")], "max_tokens": 200, "temperature": 0}
    chosen = {**ask, "function_call": {"name": "g"}}
    [choice] = endpoint.told(**chosen)["choices"]
    call = choice["message"]["function_call"]
    assert (choice["finish_reason"], choice["message"]["tool_calls"]) == ("function_call", None)
    assert call["name"] == "g"
    assert json.loads(call["arguments"])["a"] in (1, 2)
    lines = endpoint.ask(**chosen, stream=True).text.splitlines()
    events = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    deltas = [event["delta"]["function_call"] for event in events if "function_call" in event["delta"]]
    assert [delta["name"] for delta in deltas if "name" in delta] == ["g"]
    assert "".join(delta["arguments"] for delta in deltas) == call["arguments"]
    assert events[-1]["finish_reason"] == "function_call"
    endpoint.told(messages=[*HELLO, choice["message"], {"role": "function", "name": "g", "content": "1"}])
    assert (
        endpoint.told(**{**ask, "max_tokens": 4}, function_call="none")["usage"]
        == endpoint.told(temperature=0)["usage"]
    )
    for wrong in ({"function_call": {"name": "h"}}, {"tools": [{"type": "function", "function": of_name("f")}]}):
        assert endpoint.ask(**ask, **wrong).status_code == 400


def test_some_of_the_tools_may_be_allowed(endpoint: Endpoint) -> None:
    tools = [{"type": "function", "function": of_name(name)} for name in "fg"]
    named = {"type": "function", "function": {"name": "g"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    ask: dict[str, Any] = {"max_tokens": 200, "temperature": 0}
    told = endpoint.told(tools=tools, tool_choice=choice, **ask)
    [call] = told["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "g"
    alone = endpoint.told(tools=[{**tools[1], "cache_control": {"type": "ephemeral"}}], tool_choice="required", **ask)
    assert told["usage"] == alone["usage"], "the prompt has these alone"


def test_usage_so_far_is_in_every_event(endpoint: Endpoint) -> None:
    plain = endpoint.ask(stream=True, stream_options={"include_usage": True}).text.splitlines()
    usages = [json.loads(line[6:])["usage"] for line in plain if line.startswith("data: {")]
    assert usages[-1]["completion_tokens"] > 0
    assert len(usages) > 2
    assert set(map(str, usages[:-1])) == {"None"}
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = endpoint.ask(stream=True, stream_options=options)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == events[-1]["usage"]["completion_tokens"] > 0


def test_an_echo_has_the_prompts_log_probabilities(endpoint: Endpoint) -> None:
    prompt = "Once upon"
    ask: dict[str, Any] = {"prompt": prompt, "max_tokens": 3, "temperature": 0, "echo": True}
    plain = endpoint.told("/v1/completions", **{**ask, "echo": False})["choices"][0]["text"]
    assert endpoint.told("/v1/completions", **ask)["choices"][0]["text"] == prompt + plain
    streamed = endpoint.ask("/v1/completions", **ask, stream=True).text.splitlines()
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in streamed if line.startswith("data: {")]
    assert texts[0] == prompt
    assert "".join(texts) == prompt + plain
    told = endpoint.told("/v1/completions", **ask, logprobs=2, n=2)["choices"]
    assert told[0]["logprobs"] == told[1]["logprobs"]
    found = told[0]["logprobs"]
    tokenizer, model = load_tokenizer(endpoint.release), load_model(endpoint.release, torch.float32)
    ids = [*tokenizer(prompt)["input_ids"], *tokenizer(plain, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    wanted = [float(expected[place, token]) for place, token in enumerate(ids[1:])]
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-4)
    assert all(2 <= len(top) <= 3 for top in found["top_logprobs"][1:])
    assert [prompt + plain][0][found["text_offset"][-1] :] == plain[-1]


def test_prompts_of_token_ids_in_one_request_are_scored_as_alone(endpoint: Endpoint) -> None:
    tokenizer, model = load_tokenizer(endpoint.release), load_model(endpoint.release, torch.float32)
    texts = ["Once upon a time", "Hi", "In the garden of " * 9]
    prompts: list[list[int]] = [tokenizer(text)["input_ids"] for text in texts]
    ask: dict[str, Any] = {"max_tokens": 0, "echo": True, "logprobs": 1, "return_tokens_as_token_ids": True}
    told = endpoint.told("/v1/completions", prompt=prompts, **ask)["choices"]
    assert [choice["index"] for choice in told] == [0, 1, 2]
    for ids, choice in zip(prompts, told, strict=True):
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        found = choice["logprobs"]
        assert found["tokens"] == [f"token_id:{token}" for token in ids]
        wanted = [float(expected[place, token]) for place, token in enumerate(ids[1:])]
        assert found["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-4)
        likeliest = [max(top, key=lambda name, top=top: top[name]) for top in found["top_logprobs"][1:]]
        assert likeliest == [f"token_id:{token}" for token in expected[:-1].argmax(-1).tolist()]


def test_the_drawn_token_is_among_the_likeliest(endpoint: Endpoint) -> None:
    told = endpoint.told(temperature=2, seed=3, max_tokens=20, logprobs=True, top_logprobs=1)
    tokens = told["choices"][0]["logprobs"]["content"]
    assert all(token["token"] in {top["token"] for top in token["top_logprobs"]} for token in tokens)
    assert {len(token["top_logprobs"]) for token in tokens} == {1, 2}


def test_too_many_replies_are_refused_for_good(endpoint: Endpoint) -> None:
    answer = endpoint.ask("/v1/completions", prompt=["a"] * 64, n=16)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


def test_far_too_long_texts_are_refused_by_their_number_of_characters(endpoint: Endpoint) -> None:
    text = "x " * 1_000_000
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        ("/v1/completions", {"prompt": text}),
        ("/tokenize", {"prompt": text, "max_tokens": None}),
    ):
        answer = httpx.post(endpoint.url + path, json={"model": MODEL, **body}, timeout=20)
        assert answer.status_code == 400
        assert "characters" in answer.json()["error"]["message"] or path == "/tokenize"
