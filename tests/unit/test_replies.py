"""Parsing replies into reasoning, content and tool calls, for templates of all kinds."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.base.load import load_tokenizer
from models.chat import encode_prompt, end_token_ids
from models.chat.renderer import renderer_of
from serve.engines.base import Unfollowable
from serve.grammar.json_grammar import Grammars
from serve.parsing.form import ReplyForm, learned_form
from serve.parsing.text import ReplyText
from serve.protocol.messages import ChatMessage
from serve.replies.conversation_rules import turns_of

PLACES = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "<think>"]}},
    "required": ["city"],
}
FUNCTIONS: dict[str, dict[str, Any]] = {"weather": PLACES, "time": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": given}} for name, given in FUNCTIONS.items()]
ASKED = {"role": "user", "content": "How is it?"}
RAIN = ("weather", {"city": "Øslo", "days": 3})
HEAT = ("weather", {"city": "Rome <b>", "unit": "<think>"})
CLOCK: tuple[str, dict[str, Any]] = ("time", {})

# --- our own templates, in the formats of the large families -------------------------------------------------------

_TURN = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
_TOLD = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"


def template(thinks: str = "", calls: str = "", opens: str = "", before: str = "") -> str:
    """A template for turns with reasoning, content and tool calls; `opens` ends a prompt."""
    return (
        f"{_TOLD}{before}{{% set ns = namespace(last=0) %}}"
        "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        f"{{% for m in messages %}}{_TURN}"
        f"{{% if m.role == 'assistant' %}}{thinks}{{% endif %}}{{{{ m.content or '' }}}}"
        f"{{% if m.tool_calls %}}{calls}{{% endif %}}<|eot_id|>{{% endfor %}}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n" + opens + "{% endif %}"
    )


def each(call: str, between: str = "", opening: str = "", closing: str = "") -> str:
    """Calls, one after the other."""
    inner = f"{{% for c in m.tool_calls %}}{{% if not loop.first %}}{between}{{% endif %}}{call}{{% endfor %}}"
    return f"{opening}{inner}{closing}"


_JSON = '{"name": "{{ c.function.name }}", "%s": {{ c.function.arguments | tojson }}}'
_THINK = "{% if loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
_CLOSED = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
_RAW = "{{ v if v is string else v | tojson }}"
_SHORT = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('nine') }}"
)
_SHORT += "{% endif %}{% endfor %}{% endfor %}"
_ONE = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
TEMPLATES = {
    "tags": template(calls=each("<tool_call>\n" + _JSON % "arguments" + "\n</tool_call>", "\n")),
    "tags after thinking": template(
        _THINK, each("<tool_call>\n" + _JSON % "arguments" + "\n</tool_call>", "\n"), _CLOSED
    ),
    "thinking opened by the prompt": template(
        "", each("<tool_call>" + _JSON % "arguments" + "</tool_call>"), "<think>\n"
    ),
    "bare": template(calls=_ONE + each(_JSON % "parameters")),
    "a list": template(
        calls=each((_JSON % "arguments")[:-1] + ', "id": "{{ c.id }}"}', ", ", "[TOOL_CALLS] [", "]"),
        before=_SHORT,
    ),
    "a name and a fence": template(
        calls=each(
            "<call>function<sep>{{ c.function.name }}\n```json\n{{ c.function.arguments | tojson }}\n```</call>",
            "\n", "<calls>", "</calls>",
        ),
    ),
    "fields": template(
        _THINK,
        each("<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}"
             "<parameter={{ k }}>\n" + _RAW + "\n</parameter>\n{% endfor %}</function>\n</tool_call>", "\n"),
    ),
    "keys and values": template(
        calls=each("<tool_call>{{ c.function.name }}\n{% for k, v in c.function.arguments.items() %}"
                   "<arg_key>{{ k }}</arg_key>\n<arg_value>" + _RAW + "</arg_value>\n{% endfor %}</tool_call>", "\n"),
    ),
    "python": template(
        calls=each("{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{% if not loop.first %}, "
                   "{% endif %}{{ k }}={% if v is string %}'{{ v }}'{% else %}{{ v }}{% endif %}{% endfor %})",
                   ", ", "<tool_call>[", "]</tool_call>"),
    ),
    "own quotes": template(
        calls=each("<tool_call>call:{{ c.function.name }}{% raw %}{{% endraw %}{% for k, v in c.function.arguments"
                   ".items() %}{% if not loop.first %},{% endif %}{{ k }}:{% if v is string %}<q>{{ v }}<q>{% else %}"
                   "{{ v }}{% endif %}{% endfor %}}</tool_call>"),
    ),
}  # fmt: skip
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<call>", "</call>", "<calls>",
         "</calls>", "<sep>", "<q>"]  # fmt: skip
_THOUGHT = "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
_CALLED = (
    "{% set c = m.tool_calls[0] %}<|start|>assistant to=functions.{{ c.function.name }}"
    "<|channel|>commentary json<|message|>{{ c.function.arguments | tojson }}<|call|>"
)
_SAID = (
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}"
)
CHANNELS = (
    f"{_TOLD}{{% for m in messages %}}{{% if m.role == 'assistant' %}}"
    f"{{% if m.thinking and loop.last %}}{_THOUGHT}{{% endif %}}"
    f"{{% if m.tool_calls %}}{_CALLED}{{% else %}}{_SAID}{{% endif %}}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


@pytest.fixture(params=["tokens", "special tokens", "text"])
def kind(request: pytest.FixtureRequest) -> str:
    """How the tokenizer encodes the delimiters of calls: as single tokens, as special tokens, or as text."""
    return str(request.param)


def tokenizer_for(folder: Path, name: str, kind: str = "tokens") -> Any:
    tokenizer = load_tokenizer(folder)
    if kind == "special tokens":
        tokenizer.add_special_tokens({"extra_special_tokens": MARKS})
    elif kind == "tokens":
        tokenizer.add_tokens(MARKS)
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def channels(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    names = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": names})
    tokenizer.eos_token = "<|return|>"
    tokenizer.chat_template = CHANNELS
    return tokenizer


def turn(*calls: tuple[str, Any], text: str = "", thought: str = "") -> dict[str, Any]:
    made = [
        {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": given}}
        for number, (name, given) in enumerate(calls)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": text}
    return {
        **message,
        **({"tool_calls": made} if made else {}),
        **({"reasoning_content": thought} if thought else {}),
    }


def written(tokenizer: Any, message: dict[str, Any]) -> list[int]:
    """The tokens that a model generates for a turn, without the end token."""
    renderer = renderer_of(tokenizer)
    reply = renderer.reply(renderer.prepared([ASKED, message]), 1, renderer.guarded_tools(TOOLS))
    ends = end_token_ids(tokenizer)
    return [token for token in renderer.encoder.encode(reply.text).ids if token not in ends]


def read(
    form: ReplyForm, tokens: list[int], stops: tuple[str, ...] = (), is_cut: bool = False, prompt: Any = (),
    functions: Any = FUNCTIONS,
) -> tuple[str, str, list[tuple[str, Any]]]:  # fmt: skip
    """Parse a reply token by token into reasoning, content and calls; checks that decided parts of a call never
    change.
    """
    reader = form.reader(functions, prompt)
    assert reader is not None
    text = ReplyText(form.tokenizer, stops, reader, form.marks)
    shown, settled = [], [""] * 10
    for token in tokens:
        shown.append(text.push(token))
        for place, call in enumerate([*reader.calls, *reader.pending]):
            assert stops or call.arguments.startswith(settled[place])
            settled[place] = call.settled if call.is_cut else call.arguments
        if text.is_stopped:
            break
    shown.append(text.finish(is_cut))
    if not text.is_stopped:
        assert all(call.arguments.startswith(part) for call, part in zip(reader.calls, settled, strict=False))
        assert not any(settled[len(reader.calls) :])
    calls = [(call.name, call.arguments if call.is_cut else json.loads(call.arguments)) for call in reader.calls]
    return "".join(each.thought for each in shown), "".join(each.said for each in shown), calls


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# --- parsing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_are_read_as_the_template_writes_them(tiny_llama: Path, name: str, kind: str) -> None:
    tokenizer = tokenizer_for(tiny_llama, name, kind)
    form = learned_form(tokenizer)
    prompt = encode_prompt(tokenizer, [ASKED], TOOLS)
    assert form.style is not None
    for calls in ([RAIN], [HEAT], [CLOCK]):
        assert read(form, written(tokenizer, turn(*calls)), prompt=prompt) == ("", "", calls)
    for text in ("Let me look.", "It is [5] {o'clock}."):
        assert read(form, written(tokenizer, turn(text=text)), prompt=prompt)[1:] == (text, [])
        assert read(form, written(tokenizer, turn(RAIN, text=text)), prompt=prompt)[1:] == (text, [RAIN])
    assert form.is_parallel == (name != "bare")
    if form.is_parallel:
        calls = [RAIN, CLOCK, HEAT]
        assert read(form, written(tokenizer, turn(*calls)), prompt=prompt) == ("", "", calls)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_that_is_cut_is_a_call_and_never_half_of_it_text(tiny_llama: Path, name: str) -> None:
    tokenizer = tokenizer_for(tiny_llama, name)
    form = learned_form(tokenizer)
    prompt = encode_prompt(tokenizer, [ASKED], TOOLS)
    tokens = written(tokenizer, turn(RAIN))
    seen = set()
    for length in range(len(tokens)):
        thought, said, calls = read(form, tokens[:length], is_cut=True, prompt=prompt)
        assert "weather" not in said + thought
        seen |= {str(given) for _, given in calls}
        whole = json.dumps(RAIN[1], ensure_ascii=False)
        assert all(given == RAIN[1] or whole.startswith(given) for _, given in calls), calls
    assert any("Øs" in given and "Øslo" not in given for given in seen)


@pytest.mark.parametrize("found", [
    '{"name": "other", "arguments": {}}', '{"name": "time", "argum', "{}", "[1]", "time", "<function=time",
])  # fmt: skip
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_only_looks_like_a_call_is_text(tiny_llama: Path, name: str, found: str) -> None:
    tokenizer = tokenizer_for(tiny_llama, name, "text")
    form = learned_form(tokenizer)
    text = form.style.opening.lstrip() + found if form.style else found
    behind = tokens_of(tokenizer, "</think>") if form.thinking else []
    for size in (1, 1000):
        tokens = tokens_of(tokenizer, f"It is {text}")
        assert read(form, behind[:0] + tokens)[1:] == (f"It is {text}", []), size


def test_names_of_control_tokens_in_pieces_are_text(tiny_llama: Path) -> None:
    tokenizer = tokenizer_for(tiny_llama, "tags after thinking")
    form = learned_form(tokenizer)
    spelled = [token for letter in '<think><tool_call>\n{"name": "time"' for token in tokens_of(tokenizer, letter)]
    assert read(form, spelled) == ("", '<think><tool_call>\n{"name": "time"', [])


def test_white_space_that_the_template_writes_before_a_reply_is_not_shown(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = template(" ")
    form = learned_form(tokenizer)
    assert read(form, written(tokenizer, turn(text="Rain."))) == ("", "Rain.", [])
    assert read(form, tokens_of(tokenizer, "  Rain.")) == ("", " Rain.", [])


def test_what_stands_around_words_is_written_by_a_format_and_not_shown(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<say>", "</say>"]})
    tokenizer.add_tokens(MARKS)
    around = template(_THINK + "<say>").replace("<|eot_id|>{% endfor %}", "</say><|eot_id|>{% endfor %}")
    tokenizer.chat_template = around
    form, ends = learned_form(tokenizer), end_token_ids(tokenizer)
    assert read(form, written(tokenizer, turn(text="Rain.", thought="Hm."))) == ("Hm.", "Rain.", [])
    grammar = Grammars(tokenizer, len(tokenizer), ends, form).of({"const": 5})
    assert follows(grammar, written(tokenizer, turn(text="5", thought="Hm.")), ends)
    assert not follows(grammar, tokens_of(tokenizer, "5"), ends)


def test_a_text_is_not_held_back_for_a_call(tiny_llama: Path) -> None:
    for name in ("tags", "a list", "bare", "python", "tags after thinking"):
        form = learned_form(tokenizer_for(tiny_llama, name))
        text = ReplyText(form.tokenizer, (), form.reader(FUNCTIONS), form.marks)
        # "{" may begin a bare call; what follows decides.
        for letter in "It [is] <5>, a} of course":
            shown = "".join(text.push(token).said for token in tokens_of(form.tokenizer, letter))
            assert shown.strip() == letter.strip(), name


# --- thinking ------------------------------------------------------------------------------------------------------


def test_reasoning_is_separated_from_content(tiny_llama: Path, kind: str) -> None:
    tokenizer = tokenizer_for(tiny_llama, "tags after thinking", kind)
    form = learned_form(tokenizer)
    for functions in ({}, FUNCTIONS):
        tokens = written(tokenizer, turn(text="Rain.", thought="Hm.\nSo <b>."))
        assert read(form, tokens, functions=functions) == ("Hm.\nSo <b>.", "Rain.", [])
        assert read(form, written(tokenizer, turn(text="Rain.")), functions=functions) == ("", "Rain.", [])
        assert read(form, tokens_of(tokenizer, " Rain."), functions=functions) == ("", " Rain.", [])
        cut = tokens_of(tokenizer, "<think>\nHm. ")
        assert read(form, cut, functions=functions, is_cut=True) == ("Hm.", "", [])
    assert read(form, written(tokenizer, turn(RAIN, thought="Hm."))) == ("Hm.", "", [RAIN])
    assert read(form, tokens_of(tokenizer, '<tool_call>\n{"name": "time", "arguments": {}}')) == ("", "", [CLOCK])


def test_the_prompt_may_open_the_thinking_or_have_it_done(tiny_llama: Path, kind: str) -> None:
    tokenizer = tokenizer_for(tiny_llama, "thinking opened by the prompt", kind)
    form = learned_form(tokenizer)
    prompt = encode_prompt(tokenizer, [ASKED])
    assert form.place_after(prompt) == "within"
    tokens = tokens_of(tokenizer, "Hm.\n</think>\n\nRain.")
    assert read(form, tokens, prompt=prompt) == ("Hm.", "Rain.", [])
    tokens = tokens_of(tokenizer, "Hm.\n</think>\n\n<tool_call>" + json.dumps({"name": "time", "arguments": {}}))
    assert read(form, tokens, prompt=prompt) == ("Hm.", "", [CLOCK])
    tokenizer = tokenizer_for(tiny_llama, "tags after thinking", kind)
    form = learned_form(tokenizer)
    assert form.place_after(encode_prompt(tokenizer, [ASKED])) == "before"
    prompt = encode_prompt(tokenizer, [ASKED], None, {"enable_thinking": False})
    assert form.place_after(prompt) == "behind"
    assert read(form, tokens_of(tokenizer, "Rain."), prompt=prompt) == ("", "Rain.", [])


def test_stop_strings_end_what_is_said_or_called_and_not_what_is_thought(tiny_llama: Path) -> None:
    tokenizer = tokenizer_for(tiny_llama, "tags after thinking")
    form = learned_form(tokenizer)
    tokens = written(tokenizer, turn(text="So it rains.", thought="It rains so"))
    assert read(form, tokens, stops=("rains",)) == ("It rains so", "So it ", [])
    tokens = written(tokenizer, turn(RAIN, thought="Øslo"))
    assert read(form, tokens, stops=("slo",)) == ("Øslo", "", [("weather", '{"city": "Ø')])


def test_channels_are_reasoning_content_or_calls(tiny_llama: Path) -> None:
    tokenizer = channels(tiny_llama)
    form = learned_form(tokenizer)
    assert form.writes_channels
    assert not form.is_parallel
    assert read(form, written(tokenizer, turn(text="Paris.", thought="Hm."))) == ("Hm.", "Paris.", [])
    assert read(form, written(tokenizer, turn(text="Paris."))) == ("", "Paris.", [])
    assert read(form, written(tokenizer, turn(RAIN, thought="Hm."))) == ("Hm.", "", [RAIN])
    assert read(form, tokens_of(tokenizer, "Paris.")) == ("", "Paris.", [])
    other = (
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.time <|message|>{"a": 1}'
    )
    assert read(form, tokens_of(tokenizer, other)) == ("One.", "I look.", [("time", {"a": 1})])
    assert read(form, tokens_of(tokenizer, other)[:-2], is_cut=True)[2] == [("time", '{"a":')]


def test_tokens_of_thinking_are_counted(tiny_llama: Path) -> None:
    tokenizer = tokenizer_for(tiny_llama, "tags after thinking")
    form = learned_form(tokenizer)
    text = ReplyText(tokenizer, (), form.reader({}), form.marks)
    places = []
    for token in tokens_of(tokenizer, "<think>\nHm.\n</think>\n\nRain."):
        places.append(text.num_decoded)
        text.push(token)
    text.finish(is_cut=False)
    assert text.num_thought(places) == len(tokens_of(tokenizer, "<think>\nHm.\n</think>"))
    assert [text.is_said(place) for place in places].count(True) == len("\n\nRain.")


# --- ids and turns -------------------------------------------------------------------------------------------------


def asked_again(form: ReplyForm, ids: list[str]) -> list[Any]:
    calls = [
        {"id": number, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
        for number in ids
    ]
    answers = [{"role": "tool", "tool_call_id": number, "content": f"rain {number}"} for number in ids]
    messages = [ASKED, {"role": "assistant", "content": "I look.", "tool_calls": calls}, *answers]
    return turns_of([ChatMessage.model_validate(message) for message in messages], form)


def test_ids_have_the_form_that_the_template_accepts(tiny_llama: Path) -> None:
    short, long = (learned_form(tokenizer_for(tiny_llama, name)) for name in ("a list", "tags"))
    assert len(long.new_call_id()) == len("call_") + 24
    assert len(short.new_call_id()) == 9
    for number in (short.new_call_id(), "call_0123456789abcdef01234567"):
        turns = asked_again(short, [number])
        assert turns[1]["tool_calls"][0]["id"] == turns[2]["tool_call_id"]
        assert encode_prompt(short.tokenizer, turns, TOOLS)
        assert asked_again(long, [number])[2]["tool_call_id"] == number


def test_several_calls_are_turns_of_their_own_where_one_may_be_in_a_turn(tiny_llama: Path) -> None:
    tokenizer = tokenizer_for(tiny_llama, "bare")
    turns = asked_again(learned_form(tokenizer), ["c1", "c2"])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant", "tool"]
    assert [turn["content"] for turn in turns[1:]] == ["I look.", "rain c1", "", "rain c2"]
    assert [turn["tool_calls"][0]["id"] for turn in turns[1::2]] == ["c1", "c2"]
    assert encode_prompt(tokenizer, turns, TOOLS)
    assert len(asked_again(learned_form(tokenizer_for(tiny_llama, "tags")), ["c1", "c2"])) == 4


# --- grammars ------------------------------------------------------------------------------------------------------


def follows(grammar: Any, tokens: list[int], ends: frozenset[int]) -> bool:
    """Whether the grammar allows these tokens, and an end after them."""
    state = grammar.start()
    for token in tokens:
        if not state.allowed()[token]:
            return False
        state.accept(token)
    return any(state.allowed()[end] for end in ends)


@pytest.mark.parametrize("name", [*TEMPLATES, "channels"])
def test_a_required_call_is_written_as_the_template_does(tiny_llama: Path, name: str, kind: str) -> None:
    tokenizer = channels(tiny_llama) if name == "channels" else tokenizer_for(tiny_llama, name, kind)
    form, ends = learned_form(tokenizer), end_token_ids(tokenizer)
    place = form.place_after(encode_prompt(tokenizer, [ASKED], TOOLS))
    grammar = Grammars(tokenizer, len(tokenizer), ends, form).of_call(FUNCTIONS, place)
    assert grammar.schema is None
    calls = [(RAIN[0], {"city": "Oslo", "days": 3}), (HEAT[0], {"city": "Rome", "unit": "C"}), CLOCK]
    for call in calls:
        message = turn(call)
        if name == "a list":
            message["tool_calls"][0]["id"] = "abc123def"
        assert follows(grammar, written(tokenizer, message), ends), call
    assert not follows(grammar, written(tokenizer, turn(text="Rain.")), ends)
    assert not follows(grammar, written(tokenizer, turn(("weather", {"days": 3}))), ends)
    assert not follows(grammar, written(tokenizer, turn(("weather", {"city": "Rome", "unit": "K"}))), ends)


def test_a_format_is_followed_after_thinking(tiny_llama: Path) -> None:
    any_object = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    for tokenizer in (tokenizer_for(tiny_llama, "tags after thinking"), channels(tiny_llama)):
        ends, form = end_token_ids(tokenizer), learned_form(tokenizer)
        grammar = Grammars(tokenizer, len(tokenizer), ends, form).of(any_object)
        for thought in ("", 'Hm {"a": 2}.'):
            assert follows(grammar, written(tokenizer, turn(text='{"a": 1}', thought=thought)), ends)
            assert not follows(grammar, written(tokenizer, turn(text='{"a": 2}', thought=thought)), ends)
    tokenizer = tokenizer_for(tiny_llama, "tags after thinking")
    grammars = Grammars(tokenizer, len(tokenizer), end_token_ids(tokenizer))
    assert grammars.of(any_object).schema is not None  # for engines that support only schemas
    assert grammars.of(any_object, "within").schema is None
    assert not follows(grammars.of(any_object, "behind"), tokens_of(tokenizer, "<think></think>"), frozenset())


@pytest.mark.parametrize("constant", ["<think>", "a</tool_call>b", "<|eot_id|>"])
def test_a_constant_that_names_a_control_token_is_written_as_text(tiny_llama: Path, constant: str) -> None:
    tokenizer = tokenizer_for(tiny_llama, "tags")
    ends = end_token_ids(tokenizer)
    state = Grammars(tokenizer, len(tokenizer), ends).of({"enum": [constant]}).start()
    said: list[int] = []
    while not any(state.allowed()[end] for end in ends):
        said.append(int(state.allowed().argmax()))
        state.accept(said[-1])
    assert tokenizer.decode(said) == json.dumps(constant)
    assert not set(said) & tokenizer.added_tokens_decoder.keys()
    with pytest.raises(Unfollowable):
        state.accept(said[0])


def test_arguments_of_several_kinds_are_followed_one_by_one(tiny_llama: Path) -> None:
    parameters = {
        "type": "object",
        "properties": {
            "city": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "place": {"$ref": "#/$defs/Place"},
            "any": {},
            "kind": {"$ref": "#/$defs/Kind"},
        },
        "required": ["place"],
        "$defs": {
            "Place": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
            "Kind": {"enum": ["a", "b"]},
        },
    }
    tokenizer = tokenizer_for(tiny_llama, "fields")
    ends, form = end_token_ids(tokenizer), learned_form(tokenizer)
    grammar = Grammars(tokenizer, len(tokenizer), ends, form).of_call({"weather": parameters}, "behind")
    for given, may_be in (
        ({"city": "Rome", "place": {"n": 1}, "any": "x", "kind": "b"}, True),
        ({"city": None, "place": {"n": 1}}, True),
        ({"place": {"n": 1}, "any": [1, "x"]}, True),
        ({"place": {"n": "x"}}, False),
        ({"place": {"n": 1}, "kind": "c"}, False),
        ({"city": "Rome"}, False),
    ):
        tokens = written(tokenizer, turn(("weather", given)))
        behind = tokens_of(tokenizer, "<think>\n\n</think>\n\n")
        assert tokens[: len(behind)] == behind
        assert follows(grammar, tokens[len(behind) :], ends) == may_be, given


def test_a_schema_that_refers_to_itself_is_refused(tiny_llama: Path) -> None:
    tokenizer = tokenizer_for(tiny_llama, "fields")
    grammars = Grammars(tokenizer, len(tokenizer), end_token_ids(tokenizer))
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}
    with pytest.raises(ValueError, match="recursive schema"):
        grammars.of_call({"f": schema})


def test_a_control_token_within_arguments_is_its_name(tiny_llama: Path) -> None:
    tokenizer = tokenizer_for(tiny_llama, "tags after thinking")
    form = learned_form(tokenizer)
    reader = form.reader(FUNCTIONS)
    assert reader is not None
    reader.push(form.marks.of('<tool_call>\n{"name": "weather", "arguments": {"city": "<think>"}}\n</tool_call>'))
    reader.finish(is_cut=False)
    assert form.marks.in_json(reader.calls[0].arguments) == '{"city": "<think>"}'


def test_what_cannot_be_followed_one_by_one_is_refused(tiny_llama: Path) -> None:
    tokenizer = tokenizer_for(tiny_llama, "fields")
    grammars = Grammars(tokenizer, len(tokenizer), end_token_ids(tokenizer))
    with pytest.raises(ValueError, match="pattern"):
        grammars.of_call({"f": {"type": "object", "properties": {"a": {"type": "string", "pattern": "a+"}}}})
    with pytest.raises(ValueError, match="oneOf"):
        grammars.of_call({"f": {"type": "object", "oneOf": [{"required": ["a"]}]}})


def test_a_template_without_a_place_for_tools_or_thinking_has_none(tiny_llama: Path) -> None:
    form = learned_form(load_tokenizer(tiny_llama))
    assert (form.style, form.thinking, form.words) == (None, None, "")
    assert form.reader(FUNCTIONS) is None
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = template(calls=each("<f {{ c.function.name }} {{ c.function.arguments | length }}>"))
    assert learned_form(tokenizer).style is None
