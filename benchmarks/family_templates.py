"""Chat templates with the behaviour of published ones that are in no package, in our own words (families.py).

Each names the published template whose behaviour it has.
"""

_CHATML_ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

# Qwen/Qwen3-4B-Thinking-2507, July 2025: like Qwen3's, but the prompt opens the thinking. Thinking is written only
# after the last user message: into every reply that has some, and as an empty block into a last reply without.
QWEN3_THINKING_2507 = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "# Tools\n\nThese functions can be called:\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
    "</tools>\n\nWrite a call as JSON:\n<tool_call>\n"
    '{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n'
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% set last = namespace(question=messages | length - 1, found=false) %}"
    "{% for m in messages[::-1] %}{% if not last.found and m.role == 'user' %}"
    "{% set last.question = messages | length - loop.index %}{% set last.found = true %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% set words, thought = m.content, m.reasoning_content or '' %}"
    "{% if not thought and '</think>' in m.content %}"
    "{% set words = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% endif %}"
    "{% if loop.index0 > last.question and (loop.last or thought) %}"
    "<think>\n{{ thought.strip('\n') }}\n</think>\n\n{{ words.lstrip('\n') }}{% else %}{{ words }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{% if words or not loop.first %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}"
    "{% if loop.first or loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
    "\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)

# microsoft/Phi-4-mini-instruct, February 2025: a token for each role, only <|end|> between turns; tools are text in
# `tools` of the system message, so a conversation's own tools are not written; a conversation ends with eos.
PHI_4_MINI = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}{{ m.content }}"
    "{% if m.role == 'system' and m.tools %}<|tool|>{{ m.tools }}<|/tool|>{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)

# THUDM/GLM-4-9B-0414, April 2025: a turn begins with its role's token and ends where the next one begins; system
# messages come first; a call is a turn whose role is followed by `metadata`, so `tool_calls` and role `tool` are not
# written.
GLM_4 = (
    "[gMASK]<sop>{% if tools %}<|system|>\n# Tools\n{% for tool in tools %}\n## {{ tool.function.name }}\n\n"
    "{{ tool.function | tojson(indent=4) }}\nWrite the arguments of a call as JSON.\n{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}<|system|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<|user|>\n{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|assistant|>{{ m.metadata or '' }}\n{{ m.content }}"
    "{% elif m.role == 'observation' %}<|observation|>\n{{ m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# HuggingFaceTB/SmolLM3-3B, July 2025: always has a system turn with a date; thinking is a mode of the whole
# conversation (`enable_thinking`, or /no_think in the system message), and replies contain it in their text; a tool's
# result is a user turn; calls are not written.
SMOLLM3 = (
    "{% set thinks = enable_thinking is not defined or enable_thinking %}"
    "{% set given = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% if '/no_think' in given %}{% set thinks = false %}"
    "{% elif '/think' in given %}{% set thinks = true %}{% endif %}"
    "{% set given = given.replace('/no_think', '').replace('/think', '').rstrip() %}"
    "<|im_start|>system\n## Metadata\n\nToday Date: {{ strftime_now('%d %B %Y') }}\n"
    "Reasoning Mode: {{ '/think' if thinks else '/no_think' }}\n\n## Custom Instructions\n\n"
    "{{ given or 'You help.' }}\n\n"
    "{% if tools %}### Tools\n\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n\n"
    "{% endif %}<|im_end|>\n"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{% if not thinks %}<think>\n\n</think>\n{% endif %}"
    "{{ m.content.lstrip('\n') }}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    + _CHATML_ASKS[: -len("{% endif %}")]
    + "{% if not thinks %}<think>\n\n</think>\n{% endif %}{% endif %}"
)

OWN_WORDS = {
    "qwen3_thinking_2507": QWEN3_THINKING_2507,
    "phi_4_mini": PHI_4_MINI,
    "glm_4": GLM_4,
    "smollm3": SMOLLM3,
}
