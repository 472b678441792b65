#!/usr/bin/env bash
# Mistral's chat template drops the system message from the prompt after a tool's result.
#
# axolotl 0.19.0 ships the templates of Mistral v0.3 (mistral_v2v3) and the tekken one (mistral_v3_tekken). Both write the
# system message into the last user message, but only if that is the last message of the conversation. After a tool's
# result, the last message is the tool's, so the prompt has no system message, and there is no error. In a conversation
# with a tool call, the model reads its instructions before the call but not when it answers. The list below shows the
# outputs. The script fails if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jinja2==3.1.6
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/packages" axolotl==0.19.0
cat > "$folder/look.py" <<'PY'
import json
import sys
from pathlib import Path

import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
environment.globals["strftime_now"] = lambda form: "today"


def refuse(words):
    raise ValueError(words)


environment.globals["raise_exception"] = refuse
call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
tool = {"type": "function", "function": {"name": "weather", "description": "It tells.", "parameters": {}}}
messages = [
    {"role": "system", "content": "Speak like a pirate."},
    {"role": "user", "content": "How is Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [call]},
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "Rain."},
]
for file in sorted(Path(sys.argv[1]).rglob("*.jinja")):
    try:
        template = environment.from_string(file.read_text())
        has = [
            "pirate" in template.render(messages=messages[:count], tools=[tool], bos_token="<s>", eos_token="</s>",
                                        add_generation_prompt=True, documents=None)
            for count in (2, 4)
        ]  # fmt: skip
    except Exception:
        continue
    if has == [True, False]:
        print(f"{file.stem}: the system text is in the prompt before the call, not in the one after its result")
PY
"$folder/venv/bin/python" "$folder/look.py" "$folder/packages/axolotl" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
mistral_v2v3: the system text is in the prompt before the call, not in the one after its result
mistral_v3_tekken: the system text is in the prompt before the call, not in the one after its result
SEEN
