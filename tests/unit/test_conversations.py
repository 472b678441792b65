"""From records to conversations: common layouts, and the reasons for setting a record aside."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.chat import Conversation
from models.chat.messages import normal_messages, normal_tools
from models.errors import RayconteurError
from workflows.corpus.conversations import mismatched_replies, parse_conversation, parse_judged, parse_pair

SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello\nyou é"}
AGAIN = {"role": "user", "content": "And now?"}
HELLO = SAID["content"]
ARGUMENTS = {"thing": "ladder"}
TOOL = {"type": "function", "function": {"name": "price_of", "parameters": {"type": "object"}}}
CALLS = {
    "role": "assistant", "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "price_of", "arguments": ARGUMENTS}}],
}  # fmt: skip
CALL_TEXT = json.dumps({"name": "price_of", "arguments": ARGUMENTS})
FOUND = {"role": "tool", "content": "10"}


def turn(speaker: str, value: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value}


def line(record: Any) -> bytes:
    return json.dumps(record).encode()


SHAREGPT = [turn("human", "Hi"), turn("gpt", HELLO)]
TALK = [ASKED, SAID]
SPLIT = [ASKED, SAID, AGAIN, SAID]


@pytest.mark.parametrize(("record", "messages"), [
    ({"messages": [SYSTEM, *TALK], "id": 7, "lang": "en", "score": 0.5}, [SYSTEM, *TALK]),
    ({"messages": [{**ASKED, "name": "Ann"}, SAID]}, [{**ASKED, "name": "Ann"}, SAID]),
    *[({name: TALK}, TALK) for name in ("conversation", "conversations", "dialogue", "dialog", "chat", "turns")],
    *[({name: SHAREGPT}, TALK) for name in ("messages", "conversation", "conversations")],
    ({"conversations": [turn("User", "Hi"), turn("Assistant", HELLO)]}, TALK),
    ({"conversations": [turn("system", "Be kind."), turn("human", "Hi")]}, [SYSTEM, ASKED]),
    ({"system": "Be kind.", "conversations": [turn("human", "Hi"), turn("chatgpt", HELLO)]}, [SYSTEM, *TALK]),
    ({"messages": [{"role": "human", "value": "Hi"}, {"speaker": "bot", "text": HELLO}]}, TALK),
    ({"messages": [{"from": "user", "content": "Hi"}, {"role": "model", "text": HELLO, "content": None}]}, TALK),
    ({"messages": [{**ASKED, "text": "Hi", "value": None}, {**SAID, "speaker": "Bo", "from": None}]}, TALK),
    ({"conversation": [["Hi", HELLO], ["And now?", HELLO]]}, SPLIT),
    ({"conversation": [{"human": "Hi", "assistant": HELLO}, {"human": "And now?", "assistant": HELLO}]}, SPLIT),
    ({"conversation": [{"system": "Be kind.", "input": "Hi", "output": HELLO}]}, [SYSTEM, *TALK]),
    ({"messages": {"role": ["user", "assistant"], "content": ["Hi", HELLO]}}, TALK),
    ({"messages": json.dumps(TALK)}, TALK),
    ({"conversations": json.dumps(SHAREGPT)}, TALK),
    ({"messages": str(TALK)}, TALK),
    ({"messages": [json.dumps(it) for it in TALK]}, TALK),
    ({"messages": TALK, "conversations": SHAREGPT}, TALK),
    ({"messages": TALK, "conversations": [], "turns": 2, "chat": "c-17"}, TALK),
    ({"messages": [], "prompt": "Hi", "completion": HELLO}, TALK),
    ({"messages": TALK, "prompt": "Hi", "output": "x", "prompt_id": 4, "history": [], "label": "greeting"}, TALK),
    ({"messages": TALK, "reasoning": "off", "thinking": False, "images": [], "audio": None}, TALK),
    ({"messages": TALK, "weight": 1.0, "tools": [], "functions": None, "context": "you é"}, TALK),
    ({"messages": [{**SYSTEM, "content": ""}, *TALK], "system": "Be kind."}, [SYSTEM, *TALK]),
    ({"messages": [SYSTEM, *TALK], "system": " Be kind. "}, [SYSTEM, *TALK]),
    ({"messages": TALK, "system": [{"type": "text", "text": "Be kind."}]}, [SYSTEM, *TALK]),
    ({"messages": TALK, "system_prompt": "Be kind.", "system": ""}, [SYSTEM, *TALK]),
    ({"messages": [SYSTEM, *TALK], "system": "Sell."}, [{**SYSTEM, "content": "Sell.\n\nBe kind."}, *TALK]),
    ({"messages": [{"role": "developer", "content": "x"}, *TALK], "system": "Be kind."},
     [SYSTEM, {"role": "developer", "content": "x"}, *TALK]),
    ({"conversations": [turn("human", "Hi"), turn("function_call", CALL_TEXT), turn("observation", "10"),
                        turn("gpt", HELLO)]}, [ASKED, CALLS, FOUND, SAID]),
    ({"conversations": [turn("human", "Hi"), {**turn("gpt", HELLO), "weight": 0}]},
     [ASKED, {**SAID, "train": False}]),
    ({"conversations": [turn("human", "Hi"), {**turn("gpt", HELLO), "thought": "Hm"}]},
     [ASKED, {**SAID, "reasoning_content": "Hm"}]),
])  # fmt: skip
def test_lists_of_turns(record: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert parse_conversation(line(record)) == Conversation(messages)
    assert parse_conversation(json.dumps(record, ensure_ascii=False).encode() + b"\r\n") == Conversation(messages)
    assert parse_conversation(b"\xef\xbb\xbf" + line(record)) == Conversation(messages)


@pytest.mark.parametrize(("record", "messages"), [
    ({"instruction": "Hi", "output": HELLO}, TALK),
    ({"instruction": "Hi", "input": "  ", "output": HELLO, "system": "", "history": None}, TALK),
    ({"instruction": "Add", "input": "1 2", "output": "3", "system": "Be kind.", "text": "Add 1 2 3"},
     [SYSTEM, {"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}]),
    ({"instruction": "And now?", "output": HELLO, "history": [["Hi", HELLO]]}, SPLIT),
    ({"instruction": "And now?", "output": HELLO, "history": json.dumps([["Hi", HELLO]])}, SPLIT),
    ({"prompt": "And now?", "response": HELLO, "history": TALK}, SPLIT),
    ({"query": "And now?", "response": HELLO, "history": SHAREGPT, "system": "Be kind."}, [SYSTEM, *SPLIT]),
    ({"query": "Hi", "response": HELLO, "history": [["", "Hm?"]]}, [{"role": "assistant", "content": "Hm?"}, *TALK]),
    *[({prompt: "Hi", reply: HELLO}, TALK) for prompt, reply in (
        ("prompt", "completion"), ("prompt", "response"), ("query", "response"), ("question", "answer"),
        ("question", "response"), ("instruction", "response"), ("input", "output"), ("inputs", "targets"),
        ("problem", "solution"), ("user", "assistant"), ("human", "assistant"),
    )],
    ({"prompt": "Hi", "completion": HELLO, "user": "u-17", "text": "Hi Hello", "label": 3}, TALK),
    ({"system_prompt": "Be kind.", "question": "Hi", "response": HELLO, "id": "niv.1"}, [SYSTEM, *TALK]),
    ({"prompt": [ASKED], "completion": [SAID]}, TALK),
    ({"prompt": [ASKED, SAID, AGAIN], "completion": HELLO}, SPLIT),
    ({"prompt": [turn("human", "Hi")], "completion": turn("gpt", HELLO)}, TALK),
    ({"prompt": json.dumps([ASKED]), "completion": str([SAID])}, TALK),
    ({"prompt": "[{}] is what?", "completion": HELLO}, [{**ASKED, "content": "[{}] is what?"}, SAID]),
    ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "response": " " + HELLO}, [ASKED, {**SAID, "content": " " + HELLO}]),
    ({"prompt": "Hi", "completion": f"<think>Hm</think>{HELLO}"}, [ASKED, {**SAID, "reasoning_content": "Hm"}]),
    ({"question": "Hi", "reasoning": "Hm", "answer": HELLO}, [ASKED, {**SAID, "reasoning_content": "Hm"}]),
    ({"input": [ASKED], "output": HELLO, "reasoning": "on"}, TALK),
    ({"prompt": "Hi", "completion": None, "tool_calls": CALLS["tool_calls"]}, [ASKED, CALLS]),
    ({"prompt": "Hi", "tool_calls": json.dumps([{"name": "price_of", "arguments": ARGUMENTS}])}, [ASKED, CALLS]),
    ({"prompt": [ASKED, CALLS], "completion": [FOUND, SAID]}, [ASKED, CALLS, FOUND, SAID]),
])  # fmt: skip
def test_a_prompt_and_its_reply(record: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert parse_conversation(line(record)) == Conversation(messages)


@pytest.mark.parametrize("tools", [
    {"tools": [TOOL]}, {"tools": json.dumps([TOOL])}, {"functions": [TOOL["function"]]}, {"tools": TOOL},
    {"tools": [TOOL], "functions": json.dumps([TOOL["function"]])},
])  # fmt: skip
@pytest.mark.parametrize(
    "record", [{"messages": TALK}, {"conversations": SHAREGPT}, {"query": "Hi", "response": HELLO}]
)
def test_tools_stand_beside(record: dict[str, Any], tools: dict[str, Any]) -> None:
    assert parse_conversation(line({**record, **tools})) == Conversation(TALK, [TOOL])
    pair = {**tools, "chosen": HELLO, "rejected": "No", "prompt": "Hi", "system": "Be kind."}
    assert parse_pair(line(pair))[1] == Conversation([SYSTEM, ASKED, {**SAID, "content": "No"}], [TOOL])
    assert parse_judged(line({**tools, "prompt": "Hi", "completion": HELLO, "label": True}))[0].tools == [TOOL]


@pytest.mark.parametrize(("text", "reason"), [
    (b"", "not JSON"),
    (b'{"messages": [', "not JSON"),
    (b'{"messages": "\xff"}', "not UTF-8"),
    ('{"prompt": "x", "completion": "y"}'.encode("utf-16"), "not UTF-8"),
    ('{"prompt": "x", "completion": "y"}'.encode("utf-16-le"), "not JSON"),
    (b'{"messages": [{"role": "user", "content": "half a \\ud800 character"}]}', "message 0"),
    (b"[" * 100_000, "nested too deeply"),
    (b'[{"role": "user", "content": "x"}]', "a JSON array; write one conversation as an object on each line"),
    (b'"text"', "not a JSON object"),
    (b"null", "not a JSON object"),
    (b"{}", "unknown layout.*found no keys"),
    (b'{"text": "x", "prompt": "y"}', r"unknown layout.*found prompt, text.*data.fields, as in \{prompt: your_key"),
    (b'{"text": "x", "id": 5}', "`text` does not show which part is the reply; write `prompt` and `completion`, or"),
    (b'{"instruction": "x"}', "unknown layout.*found instruction"),
    (b'{"output": "x"}', "unknown layout.*found output"),
    (b'{"messages": []}', "`messages` is not a non-empty list"),
    (b'{"messages": null}', "`messages` must be a list of turns, and is null"),
    (b'{"messages": "Hi there"}', "`messages` is a text, and not JSON .*; it must be a list of turns"),
    (b'{"messages": [{"role": "robot", "content": "x"}]}', "message 0 has the unknown role 'robot'"),
    (b'{"conversations": {}}', "`conversations` must be a list of turns"),
    (b'{"messages": {"role": ["user"], "content": ["a", "b"]}}',
     "must be a list of turns, and is an object with role, content"),
    (b'{"conversations": []}', "not a non-empty list"),
    (b'{"dialog": ["Hi", "Hello"]}', "turn 0 of `dialog` is text without a speaker; write turns as"),
    (b'{"messages": [5]}', "turn 0 of `messages` is the number 5, not an object"),
    (b'{"messages": [{"who": "x", "says": "y"}]}', "turn 0 of `messages` has no role.*found who, says; map"),
    (b'{"messages": [{"role": "user", "says": "y"}]}', r"turn 0 of `messages` has no text.*as in \{content:"),
    (b'{"messages": [{"role": "user", "content": "a", "text": "b"}]}', "different texts in `content` and `text`"),
    (b'{"conversations": [{"from": "bing", "value": "x"}]}', "message 0 has the unknown role 'bing'; known are"),
    (b'{"conversations": [{"from": ["human"], "value": "x"}]}', "message 0 has no role: `role` is a list"),
    (b'{"conversations": [{"from": "human"}]}', "turn 0 of `conversations` has no text"),
    (b'{"conversations": [{"from": "human", "value": ""}]}', r"message 0 \(user\) has no text"),
    (b'{"instruction": 5, "output": "x"}', "`instruction` is the number 5, neither text nor.*write it as text"),
    (b'{"instruction": "x", "input": ["y"], "output": "x"}', "`input` is a list, neither text nor"),
    (b'{"instruction": "x", "output": null}', r"message 1 \(assistant\) has no text"),
    (b'{"instruction": " ", "output": "x"}', r"message 0 \(user\) has no text"),
    (b'{"prompt": ["x"], "completion": "y"}', "`prompt` is neither text nor a list of messages"),
    (b'{"prompt": "x", "completion": true}', "`completion` is true, neither text"),
])  # fmt: skip
def test_a_bad_line_has_its_reason(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_conversation(text)


@pytest.mark.parametrize(("record", "reason"), [
    ({"question": "x", "answer": "y", "solution": "z"},
     r"`answer` and `solution` could be the reply; choose one in data.fields, as in \{completion: answer\}"),
    ({"prompt": "x", "question": "y", "answer": "z"}, r"`prompt` and `question` could be.*\{prompt: prompt\}"),
    ({"messages": TALK, "chat": [ASKED, AGAIN]}, r"`messages` and `chat` could both.*\{messages: messages\}"),
    ({"messages": [ASKED], "response": "x"}, r"`response` is beside.*\{prompt: messages, completion: resp"),
    ({"messages": TALK, "history": [["a", "b"]]}, "`history` is beside `messages`"),
    ({"messages": TALK, "reasoning_content": "Hm"}, "`reasoning_content` is beside `messages`"),
    ({"messages": TALK, "tool_calls": CALLS["tool_calls"]}, "`tool_calls` is beside `messages`"),
    ({"messages": TALK, "images": ["a.png"]}, "`images` of the record is not empty: training uses only text"),
    ({"prompt": "Hi", "completion": HELLO, "audio": {"path": "a"}}, "`audio` of the record"),
    ({"question": "Hi", "choices": ["a"], "answer": "b"}, "`choices` of the record.*write it into the prompt"),
    ({"instruction": "Hi", "context": "Long.", "response": "x"}, r"`context` of the record.*\{input: context\}"),
    ({"messages": TALK, "documents": [{"text": "x"}]}, "`documents` of the record"),
    ({"messages": TALK, "chat_template_kwargs": {"enable_thinking": False}},
     "set it for all lines, in data.chat_template_kwargs"),
    ({"messages": TALK, "weight": 0}, "`weight` of the record is the number 0"),
    ({"messages": TALK, "weight": 0.5}, "`weight` of the record is the number 0.5; it must be 1"),
    ({"messages": TALK, "system": 5}, r"`system` of the record: message 0 \(system\) has `content` that is the num"),
    ({"messages": TALK, "system": "a", "system_prompt": "b"}, "`system` and `system_prompt` are different texts"),
    ({"messages": TALK, "tools": "call me"}, "`tools` is a text that is not JSON"),
    ({"messages": TALK, "tools": [{"type": "web_search"}]}, r"`tools\[0\]` is of type 'web_search'"),
    ({"messages": TALK, "tools": [TOOL], "functions": [{"name": "f"}]}, "`tools` and `functions`.*different"),
    ({"query": "Hi", "response": "x", "history": "Hm"}, "`history` is a text"),
    ({"prompt": "Hi", "completion": [CALLS, FOUND, SAID], "reasoning": "Hm"}, "`reasoning` is beside `compl"),
    ({"prompt": [ASKED, SAID], "completion": "x"}, "`completion` has no user turn to reply to: its prompt ends"),
])  # fmt: skip
def test_what_cannot_be_used_is_refused_by_its_key(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_conversation(line(record))


@pytest.mark.parametrize(("record", "fields"), [
    ({"talk": TALK}, {"messages": "talk"}),
    ({"talk": TALK, "messages": [AGAIN, SAID], "chat": "x"}, {"messages": "talk"}),
    ({"messages": TALK, "chat": [ASKED, AGAIN]}, {"messages": "messages"}),
    ({"messages": TALK, "reasoning_content": "Hm"}, {"messages": "messages"}),
    ({"talk": [{"who": "human", "says": "Hi", "text": "?"}, {"who": "gpt", "says": HELLO}]},
     {"messages": "talk", "role": "who", "content": "says"}),
    ({"messages": [{"Role": "user", "Content": "Hi"}, {"Role": "assistant", "Content": HELLO}]},
     {"role": "Role", "content": "Content"}),
    ({"q": "Hi", "a": HELLO}, {"prompt": "q", "completion": "a"}),
    ({"q": "Hi", "a": HELLO, "messages": [AGAIN, SAID], "question": "?", "answer": "!"},
     {"prompt": "q", "completion": "a"}),
    ({"question": "Hi", "answer": "!", "solution": HELLO}, {"completion": "solution"}),
    ({"messages": [ASKED], "response": HELLO}, {"prompt": "messages", "completion": "response"}),
    ({"instruction": "Hi", "context": "", "response": HELLO}, {"input": "context"}),
    ({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"text": HELLO}]}]},
     {"messages": "contents", "content": "parts"}),
    ({"messages": TALK}, {"messages": "talk", "prompt": "q", "history": "before"}),
])  # fmt: skip
def test_data_fields_say_what_keys_are_called(record: dict[str, Any], fields: dict[str, str]) -> None:
    assert parse_conversation(line(record), fields) == Conversation(TALK)


def test_data_fields_reach_every_key() -> None:
    record = {
        "sys": "Be kind.", "system": "Be rude.", "funs": [TOOL], "before": [["Hi", HELLO]], "q": "And",
        "more": "now?", "input": "x", "a": [{"who": "bot", "says": HELLO, "why": "Hm", "learn": False}],
    }  # fmt: skip
    fields = {
        "system": "sys", "tools": "funs", "history": "before", "prompt": "q", "input": "more", "completion": "a",
        "role": "who", "content": "says", "reasoning_content": "why", "train": "learn",
    }  # fmt: skip
    asked = {"role": "user", "content": "And\n\nnow?"}
    reply = {**SAID, "reasoning_content": "Hm", "train": False}
    assert parse_conversation(line(record), fields) == Conversation([SYSTEM, *TALK, asked, reply], [TOOL])
    pair = {"q": "Hi", "good": HELLO, "bad": "No"}
    fields = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert [it.messages[-1]["content"] for it in parse_pair(line(pair), fields)] == [HELLO, "No"]
    judged = {"q": "Hi", "reply": HELLO, "kto_tag": "False"}
    fields = {"prompt": "q", "completion": "reply", "label": "kto_tag"}
    assert parse_judged(line(judged), fields) == (Conversation(TALK), False)
    with pytest.raises(ValueError, match=r"data\.fields has the unknown name 'texts'; known here: messages"):
        parse_conversation(line(record), {"texts": "a"})


@pytest.mark.parametrize("levels", range(900, 1010, 10))
@pytest.mark.parametrize("key", ["content", "tool_calls", "role", "x"])
def test_a_record_of_a_thousand_levels_is_read_or_refused(key: str, levels: int) -> None:
    deep = b"[" * levels + b"]" * levels
    turn = b'{"role": "tool", "content": "x", "%s": %s}' % (key.encode(), deep)
    text = b'{"messages": [%s], "chat": [%s], "tools": %s, "chosen": [%s], "rejected": [%s]}'
    for parse in (parse_conversation, parse_pair, parse_judged):
        with pytest.raises(ValueError):  # noqa: PT011
            parse(text % (turn, turn, deep, turn, turn))


def test_two_turns_of_one_role_are_merged_or_refused() -> None:
    record = line({"messages": [ASKED, AGAIN, SAID]})
    joined = {"role": "user", "content": "Hi\n\nAnd now?"}
    assert parse_conversation(record) == Conversation([joined, SAID])
    with pytest.raises(ValueError, match="messages 0 and 1 both have the `role` 'user'"):
        parse_conversation(record, same_role="refuse")
    with pytest.raises(ValueError, match="`system` of the record and message 0 are different system messages"):
        parse_conversation(line({"system": "x", "messages": [SYSTEM, *TALK]}), same_role="refuse")
    pair = line({"prompt": [ASKED, AGAIN], "chosen": "x", "rejected": "y"})
    assert parse_pair(pair)[0].messages[0] == joined
    with pytest.raises(ValueError, match="messages 0 and 1 both have the `role` 'user'"):
        parse_pair(pair, same_role="refuse")


WRONG = {"role": "assistant", "content": "Go away"}


@pytest.mark.parametrize("record", [
    {"prompt": "Hi", "chosen": HELLO, "rejected": "Go away"},
    {"prompt": "Hi", "chosen": [SAID], "rejected": [WRONG]},
    {"prompt": [ASKED], "chosen": HELLO, "rejected": "Go away"},
    {"prompt": [ASKED], "chosen": [SAID], "rejected": [WRONG], "score": 5, "chosen_rating": 4.5, "source": "x"},
    {"messages": [ASKED], "chosen": HELLO, "rejected": "Go away"},
    {"messages": [ASKED], "chosen": [SAID], "rejected": [WRONG]},
    {"chosen": [ASKED, SAID], "rejected": [ASKED, WRONG]},
    {"chosen": json.dumps([ASKED, SAID]), "rejected": str([ASKED, WRONG])},
    # The most common one on the Hub contains the prompt three times.
    {"prompt": "Hi", "messages": [ASKED, SAID], "chosen": [ASKED, SAID], "rejected": [ASKED, WRONG]},
    {"chosen": SHAREGPT, "rejected": [turn("human", "Hi"), turn("gpt", "Go away")]},
    {"conversations": [turn("human", "Hi")], "chosen": turn("gpt", HELLO), "rejected": turn("gpt", "Go away")},
    {"instruction": "Hi", "input": "", "chosen": HELLO, "rejected": "Go away"},
    {"question": "Hi", "chosen": HELLO, "rejected": "Go away", "system": ""},
    {"chosen": f"\n\nHuman: Hi\n\nAssistant: {HELLO}", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
    {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": HELLO, "rejected": "Go away"},
    {"messages": [ASKED, SAID], "rejected_response": "Go away"},
    {"input": {"messages": [ASKED], "tools": []}, "preferred_output": [SAID], "non_preferred_output": [WRONG]},
])  # fmt: skip
def test_the_layouts_of_preference_pairs(record: dict[str, Any]) -> None:
    assert parse_pair(line(record)) == (Conversation([ASKED, SAID]), Conversation([ASKED, WRONG]))


def test_a_pair_may_have_a_history() -> None:
    history = [SYSTEM, ASKED, SAID, AGAIN]
    records = [
        {"prompt": history, "chosen": "This.", "rejected": "That."},
        {"system": "Be kind.", "history": [["Hi", HELLO]], "query": "And now?", "chosen": "This.",
         "rejected": "That."},
        {"system": "Be kind.", "chosen": [*TALK, AGAIN, {**SAID, "content": "This."}],
         "rejected": [*TALK, AGAIN, {**SAID, "content": "That."}]},
    ]  # fmt: skip
    for record in records:
        chosen, rejected = parse_pair(line(record))
        assert (chosen.messages[:-1], rejected.messages[:-1]) == (history, history)
        assert (chosen.messages[-1]["content"], rejected.messages[-1]["content"]) == ("This.", "That.")


def test_a_pair_may_have_calls_or_reasoning() -> None:
    other = {**CALLS, "tool_calls": [{"name": "price_of", "arguments": {"thing": "kite"}}]}
    chosen, rejected = parse_pair(line({"prompt": "Hi", "chosen": [CALLS], "rejected": other}))
    assert chosen.messages[-1] == CALLS
    assert rejected.messages[-1]["tool_calls"][0]["function"]["arguments"] == {"thing": "kite"}
    thought = parse_pair(line({"prompt": "Hi", "chosen": f"<think>a</think>{HELLO}", "rejected": HELLO}))
    assert [it.messages[-1].get("reasoning_content") for it in thought] == ["a", None]


@pytest.mark.parametrize(("record", "reason"), [
    ({"messages": [ASKED, SAID]}, r"not a preference pair \(`chosen` and `rejected`\).*found messages"),
    ({"prompt": "Hi", "completion": "x", "label": True}, "not a preference pair.*found completion, label, prompt"),
    ({"chosen": "x", "rejected": "y"}, "`chosen` has no prompt; give `prompt`"),
    ({"chosen": [SAID], "rejected": [WRONG]}, "`chosen` has no prompt"),
    ({"prompt": "Hi", "chosen": "x", "rejected": 5}, "`rejected` is the number 5, neither text nor a list"),
    ({"prompt": "Hi", "chosen": [], "rejected": "x"}, "`chosen` is neither text nor a list of messages"),
    ({"prompt": "Hi", "chosen": "x", "rejected": " "}, r"message 1 \(assistant\) has no text"),
    ({"prompt": "Hi", "chosen": "x", "rejected": "x "}, "`chosen` and `rejected` are the same reply"),
    ({"prompt": [ASKED, SAID], "chosen": "x", "rejected": "y"}, "`chosen` has no user turn to reply to: its prompt"),
    ({"prompt": [], "chosen": "x", "rejected": "y"}, "`prompt` is neither text nor a list of messages"),
    ({"prompt": "Hi", "reasoning": "Hm", "chosen": "x", "rejected": "y"}, "`reasoning` is beside `chosen`"),
    ({"prompt": "Hi", "images": ["a"], "chosen": "x", "rejected": "y"}, "`images` of the record"),
    ({"prompt": "Hi", "chosen": [{**SAID, "weight": 0}], "rejected": "y"}, "`chosen` ends with a reply that is excl"),
    ({"prompt": "Hi", "question": "Ho", "chosen": "x", "rejected": "y"}, "could be the prompt; choose one in"),
    ({"chosen": [ASKED, SAID], "rejected": [{**ASKED, "content": "Ho"}, WRONG]}, "differ in message 0, before the"),
    ({"chosen": [ASKED, SAID], "rejected": [ASKED, SAID, ASKED, WRONG]}, "differ in message 1|ends with message 1"),
    ({"chosen": [ASKED], "rejected": [{**ASKED, "content": "Ho"}]},
     "`chosen` does not end with an assistant's reply"),
])  # fmt: skip
def test_a_bad_pair_has_its_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_pair(line(record))


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("record", [
    {"prompt": "Hi", "completion": HELLO},
    {"messages": [ASKED], "completion": [SAID]},
    {"completion": [ASKED, SAID]},
    {"completion": f"\n\nHuman: Hi\n\nAssistant: {HELLO}"},
    {"conversations": SHAREGPT},
    {"question": "Hi", "completion": turn("gpt", HELLO)},
])  # fmt: skip
def test_the_layouts_of_judged_replies(record: dict[str, Any], label: bool) -> None:
    assert parse_judged(line({**record, "label": label})) == (Conversation([ASKED, SAID]), label)
    assert parse_judged(line({**record, "label": str(label)})) == (Conversation([ASKED, SAID]), label)


@pytest.mark.parametrize(("record", "reason"), [
    ({"prompt": "Hi", "completion": "x", "label": 1}, "`label` is 1; it must be true or false"),
    ({"prompt": "Hi", "completion": "x"}, "not a labelled reply.*train.objective kto.*found completion, prompt"),
    ({"prompt": "Hi", "chosen": "x", "rejected": "y"}, "not a labelled reply.*found chosen, prompt, rejected"),
    ({"messages": [ASKED], "label": True}, "`messages` does not end with an assistant's reply to another turn"),
])  # fmt: skip
def test_a_bad_judged_reply_has_its_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_judged(line(record))


@pytest.mark.parametrize(("record", "reason"), [
    ({"prompt": "Hi", "chosen": "x", "rejected": "y"}, "a preference pair.*train.objective dpo, orpo or simpo"),
    ({"messages": [ASKED], "chosen": "x", "rejected": "y"}, "a preference pair"),
    ({"prompt": "Hi", "completion": "x", "label": True}, "a labelled reply.*train.objective kto uses it"),
])  # fmt: skip
def test_what_is_not_a_conversation_is_refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_conversation(line(record))


def test_mismatched_replies_answer_another_prompt() -> None:
    def judged(prompt: str, reply: Any) -> bytes:
        return line({"prompt": prompt, "completion": reply, "label": True})

    lines = [judged("a", "1"), judged("a", "2"), b"{broken", judged("b", "3"), judged("b", "1"), judged("c", "5")]
    found = [reply and reply["content"] for reply in mismatched_replies(lines)]
    # The rejected reply comes from half of the six lines ahead, or a later one if that has the same prompt, the
    # same reply, or is broken.
    assert found == ["3", "1", None, "1", "2", "3"]
    assert mismatched_replies([judged("a", "1"), judged("a", "2")]) == [None, None]
    assert mismatched_replies([judged("a", "1"), judged("b", [CALLS])])[0] is None  # no reply to learn from


WORDS = st.sampled_from([
    "user", "assistant", "tool", "function_call", "Hi", "", "[]", "{}", str(TALK), json.dumps(SHAREGPT), CALL_TEXT,
    "\n\nHuman: a\n\nAssistant: b", "<think>a</think>b", "true", "[{",
])  # fmt: skip
KEYS = st.sampled_from([
    "messages", "conversations", "role", "content", "from", "value", "text", "prompt", "input", "completion",
    "output", "history", "chosen", "rejected", "label", "system", "tools", "functions", "tool_calls", "function",
    "name", "arguments", "weight", "reasoning", "images", "human", "assistant", "preferred_output",
    "rejected_response",
])  # fmt: skip
VALUES = st.recursive(
    WORDS | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
HALF_KNOWN = st.fixed_dictionaries(
    {"prompt": WORDS | VALUES, "completion": WORDS | VALUES},
    optional=dict.fromkeys(("messages", "history", "system", "tools", "label", "chosen", "rejected"), VALUES),
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5) | HALF_KNOWN)
def test_any_record_is_accepted_or_refused(record: dict[str, Any]) -> None:
    for parse in (parse_conversation, parse_pair, parse_judged):
        try:
            found: Any = parse(line(record))
        except RayconteurError:
            continue
        for each in found if isinstance(found, tuple) else [found]:
            if isinstance(each, Conversation):
                assert normal_messages(each.messages, "refuse") == each.messages
                assert normal_tools(each.tools) == each.tools


BESIDE = [
    ("instruction", {"instruction": "Talk like a pirate."}),
    ("prompt", {"prompt": [{"role": "user", "content": "Something else"}]}),
    ("System", {"System": "Talk like a pirate."}),
    ("systemPrompt", {"systemPrompt": "Talk like a pirate."}),
    ("Images", {"Images": ["a.png"]}),
]


@pytest.mark.parametrize(("key", "more"), BESIDE)
def test_what_stands_beside_a_conversation_is_not_dropped(key: str, more: dict[str, Any]) -> None:
    talk = [{"role": "user", "content": "Hi  you"}, {"role": "assistant", "content": "Hello."}]
    with pytest.raises(ValueError, match=f"`{key}`"):
        parse_conversation(json.dumps({"messages": talk, **more}).encode())


@pytest.mark.parametrize(
    "prompt", ["Hi\nyou", [{"role": "user", "content": "Hi you"}], "\n\nHuman: Hi you\n\nAssistant:"]
)
def test_a_prompt_that_repeats_the_conversation_is_allowed(prompt: Any) -> None:
    talk = [{"role": "user", "content": "Hi you"}, {"role": "assistant", "content": "Hello."}]
    assert parse_conversation(json.dumps({"messages": talk, "prompt": prompt}).encode()).messages == talk
    pair = {"prompt": prompt, "chosen": talk, "rejected": [talk[0], {"role": "assistant", "content": "No."}]}
    assert parse_pair(json.dumps(pair).encode())[0].messages == talk
    with pytest.raises(ValueError, match="`prompt` is beside `chosen`"):
        parse_pair(json.dumps({**pair, "prompt": "Something else"}).encode())


def test_a_pair_of_openai_keeps_what_stands_around_it() -> None:
    asked, said = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hello."}]
    other = [{"role": "assistant", "content": "No."}]
    pair = {
        "system": "Be kind.",
        "input": {"messages": asked},
        "preferred_output": said,
        "non_preferred_output": other,
    }
    system = {"role": "system", "content": "Be kind."}
    assert [each.messages[0] for each in parse_pair(json.dumps(pair).encode())] == [system, system]


def test_turns_and_tools_that_a_table_holds_as_text_are_read() -> None:
    asked = json.dumps([{"role": "user", "content": "Hi"}], indent=1)
    tools = str([{"name": "price_of", "parameters": {"required": None}}])  # as pandas writes it
    found = parse_conversation(json.dumps({"prompt": asked, "completion": "Hello.", "tools": tools}).encode())
    assert found.messages[0] == {"role": "user", "content": "Hi"}
    assert found.tools == normal_tools([{"name": "price_of", "parameters": {"required": None}}])
