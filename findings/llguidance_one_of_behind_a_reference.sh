#!/usr/bin/env bash
# llguidance follows a JSON schema's `oneOf` of two alternatives that cannot both match, and refuses the same two
# alternatives where they stand behind "$ref".
#
# llguidance 1.7.6: with {"oneOf": [A, B]}, whose A and B ask for different constants of one property, a reply is
# followed. With {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]} and the same A and B under "$defs", which is how
# pydantic writes a union with a discriminator, the schema does not compile: "oneOf constraints are not supported". Its
# test for alternatives that cannot overlap does not look through references. The script fails if this changes.
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
