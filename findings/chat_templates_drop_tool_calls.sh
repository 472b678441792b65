#!/usr/bin/env bash
# Some chat templates drop tool calls without an error.
#
# trl 1.16.0 and axolotl 0.19.0 ship the chat templates of many model families. An assistant message may have several
# calls. Some templates write only the first one (gpt-oss), others write no call and an empty turn (LFM2, Falcon-H1),
# without an exception or a warning. A model that is fine-tuned on such a conversation learns to call once instead of
# twice, or to reply with nothing. The list below shows the outputs. The script fails if the list changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jinja2==3.1.6
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/packages" trl==1.16.0 axolotl==0.19.0
cat > "$folder/look.py" <<'PY'
import json
import sys
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


def refuse(words):
    raise jinja2.exceptions.TemplateError(words)


class Generation(jinja2.ext.Extension):
    """{% generation %} of transformers: its content as it is."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
)
environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: "today"}


def call(name):
    return {"id": name[:9].ljust(9, "0"), "type": "function", "function": {"name": name, "arguments": {"city": "Oslo"}}}


tools = [{"type": "function", "function": {"name": name, "description": "It tells.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}} for name in ("firsttool", "secondtool")]  # fmt: skip
messages = [
    {"role": "user", "content": "Tell me both."},
    {"role": "assistant", "content": "", "tool_calls": [call("firsttool"), call("secondtool")]},
]
first_alone, none = [], []
for file in sorted(Path(sys.argv[1]).rglob("*.jinja")):
    if "training" in file.name:
        continue
    try:
        template = environment.from_string(file.read_text())
        told = template.render(messages=messages[:1], tools=tools, bos_token="<s>", eos_token="</s>", documents=None)
        text = template.render(messages=messages, tools=tools, bos_token="<s>", eos_token="</s>", documents=None)
    except Exception:
        continue  # refused, which is fine
    name = f"{file.relative_to(sys.argv[1]).parts[0]}/{file.stem}"
    if "firsttool" not in told:
        continue  # no place for tools: nobody would expect calls
    seen = [text.count(word) > told.count(word) for word in ("firsttool", "secondtool")]
    if seen == [True, False]:
        first_alone.append(name)
    elif seen == [False, False]:
        none.append(name)
print("the first call alone:", ", ".join(first_alone))
print("no call at all:", ", ".join(none))
PY
"$folder/venv/bin/python" "$folder/look.py" "$folder/packages" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
the first call alone: trl/gptoss
no call at all: axolotl/falcon_h1, trl/lfm2
SEEN
