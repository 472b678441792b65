"""JSON schemas in OpenVINO's pipeline: replies are JSON of the schema, without extra white space."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from models.export.openvino_export import export
from serve.engines.base import GenerationRequest
from serve.engines.openvino import OpenVINOEngine
from serve.engines.openvino_ebnf import ebnf_of
from serve.engines.openvino_schema import rewritten, unsure
from serve.grammar.json_grammar import Grammars


def whole(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


YES, FEW = {"type": "boolean"}, {"enum": ["a.b", "a", 'q"\\ é🦜\n', 5, None, {"x": [1, 2]}]}
SCHEMAS: dict[str, Any] = {
    "a bare word": YES,
    "constants": FEW,
    "an object": whole(yes=YES, few=FEW),
    "names": whole(**{"a b": YES, "é🦜": YES, "a-b.c/d": YES}),
    "what may be left out": {"type": "object", "properties": dict.fromkeys("abcd", YES), "required": ["b", "d"]},
    "all may be left out": {"properties": dict.fromkeys("abc", YES)},
    "several kinds": whole(a={"anyOf": [{"type": "null"}, YES, whole(b=YES)]}, b={"type": ["boolean", "null"]}),
    "numbers": whole(a={"type": "integer"}, b={"type": "number"}),
    "nothing": {"type": "object", "properties": {}, "additionalProperties": False},
    "an empty list": whole(a={"type": "array", "items": False}),
    "a definition": {"$defs": {"c": whole(d=YES)}, **whole(a={"$ref": "#/$defs/c"}, b={"$ref": "#/properties/a"})},
    "itself": {"$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}, whole(n={"$ref": "#/$defs/n"})]}},
               "$ref": "#/$defs/n"},
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenVINOEngine]:
    folder = tmp_path_factory.mktemp("export")
    export(tiny_llama, folder, "fp32")
    engine = OpenVINOEngine(folder, "fp32", 8, num_threads=1)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", SCHEMAS)
def test_replies_are_json_of_the_schema_with_one_space(name: str, engine: OpenVINOEngine, tiny_llama: Path) -> None:
    from models.base.load import load_tokenizer

    tokenizer, ends, schema = load_tokenizer(tiny_llama), frozenset({257}), SCHEMAS[name]
    assert unsure(schema) is None
    grammar = Grammars(tokenizer, engine.vocab_size, ends).of(schema)
    assert grammar.schema is not None

    async def reply(seed: int) -> str:
        request = GenerationRequest(
            [1, 2, 3], 300, temperature=2.0, seed=seed, grammar=grammar, end_token_ids=ends
        )  # fmt: skip
        events = [event async for event in engine.submit(request)]
        assert events[-1].finish_reason == "stop"
        return str(tokenizer.decode([event.token_id for event in events[:-1]]))

    async def replies() -> list[str]:
        return await asyncio.gather(*map(reply, range(6)))

    for text in asyncio.run(replies()):
        found = json.loads(text)
        if name != "itself":  # for which the validator would not terminate
            jsonschema.validate(found, schema)
        if name != "numbers":  # 1.50 is read as 1.5
            assert text == json.dumps(found, ensure_ascii=False)
        else:
            assert text.count(" ") == 3


def test_no_rule_begins_with_itself() -> None:
    schema = {"$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"const": 1}]}}, "$ref": "#/$defs/n"}
    rules = dict(line.split(" ::= ") for line in ebnf_of(rewritten(schema)).splitlines() if " ::= " in line)

    def begins(name: str, seen: tuple[str, ...] = ()) -> None:
        assert name not in seen
        for first in (alternative.split(" ")[0] for alternative in rules[name].split(" | ")):
            if first in rules:
                begins(first, (*seen, name))

    begins("root")
