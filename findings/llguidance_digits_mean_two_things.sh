#!/usr/bin/env bash
# In llguidance one regular expression means two things: as the `pattern` of a JSON schema \d is 0 to 9, as a rule of a Lark
# grammar it is a digit of any script.
#
# llguidance 1.7.6: {"type": "string", "pattern": "^\\d$"} takes "5" and refuses the Arabic digit five; start: /\d/ takes
# both. An endpoint that offers both forms (a schema's pattern, and a regular expression or grammar of its own) answers
# one and the same request in one way or the other: a phone number asked for by \d{3}-\d{4} comes in digits that no
# other program reads. [0-9] means the same in both. The script fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llguidance==1.7.6
cat > "$folder/look.py" <<'PY'
import json

from llguidance import LLMatcher, LLTokenizer

FIVE = "\u0665"


def takes(grammar, text):
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens)


schema = "start: %json " + json.dumps({"type": "string", "pattern": r"^\d$"})
print("pattern", takes(schema, '"5"'), takes(schema, f'"{FIVE}"'))
print("grammar", takes(r"start: /\d/", "5"), takes(r"start: /\d/", FIVE))
print("[0-9]", takes("start: /[0-9]/", "5"), takes("start: /[0-9]/", FIVE))
PY
"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
pattern True False
grammar True True
[0-9] True False
SEEN
