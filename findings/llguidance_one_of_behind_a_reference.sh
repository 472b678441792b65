#!/usr/bin/env bash
# llguidance supports a JSON schema's `oneOf` of two disjoint alternatives, but rejects the same alternatives behind "$ref".
#
# llguidance 1.7.6: {"oneOf": [A, B]}, whose A and B require different constants of one property, compiles.
# {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]} with the same A and B in "$defs", which is how pydantic writes
# a discriminated union, does not compile: "oneOf constraints are not supported". The test for disjoint alternatives does
# not follow references. The script fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llguidance==1.7.6 pydantic==2.14.3
cat > "$folder/look.py" <<'PY'
import json
from typing import Annotated, Literal

from llguidance import LLMatcher, LLTokenizer
from pydantic import BaseModel, Field, TypeAdapter


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


def follows(schema):
    matcher = LLMatcher(LLTokenizer("byte"), f"start: %json {json.dumps(schema)}", log_level=0)
    if matcher.is_error():
        return "refused: " + str("oneOf constraints are not supported" in matcher.get_error())
    text = b'{"kind":"dog"}'
    return "followed: " + str(matcher.try_consume_tokens(list(text)) == len(text))


written = TypeAdapter(Annotated[Cat | Dog, Field(discriminator="kind")]).json_schema()
written.pop("discriminator")
inline = {"oneOf": [written["$defs"][name] for name in ("Cat", "Dog")]}
print("inline", follows(inline))
print("behind $ref", follows(written))
PY
"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
inline followed: True
behind $ref refused: True
SEEN
