#!/usr/bin/env bash
# In llguidance, \d has two meanings: 0 to 9 in the `pattern` of a JSON schema, a digit of any script in a Lark grammar.
#
# llguidance 1.7.6: {"type": "string", "pattern": "^\\d$"} accepts "5" and rejects the Arabic digit five; start: /\d/
# accepts both. A server that offers both forms (JSON schemas, and regular expressions or grammars) treats the same
# request differently: a phone number requested by \d{3}-\d{4} may have digits that other programs cannot parse. [0-9]
# has the same meaning in both. The script fails if this changes.
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
