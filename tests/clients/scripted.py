"""Replies that a conversation scripts itself, so that a model without tool training can take part in a tool loop.

The reply to a user's text with `[[add({"a": 2, "b": 3}) => It is 5.]]` is first that call, then, after the tool's
result, that text; ` & ` separates calls of one turn. Other conversations go to the engine unchanged.
"""

import json
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from serve.engines.base import Engine, GenerationRequest, TokenEvent

Submit = Callable[[GenerationRequest], AsyncGenerator[TokenEvent, None]]

_SCRIPT = re.compile(r"\[\[(.+?)\]\]", re.DOTALL)
_CALL = re.compile(r"([\w-]+)\((\{.*\})\)", re.DOTALL)
_TURN = "<|im_start|>assistant\n"
# The log-probability reported for scripted tokens.
_LOGPROB = -0.125


def follow_scripts(engine: Engine, tokenizer: Any) -> None:
    """Make `engine` generate scripted replies; otherwise it works as before."""
    real: Submit = engine.submit

    async def submit(request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        line = next_line(tokenizer.decode(request.prompt_ids))
        if line is None:
            async with aclosing(real(request)) as events:
                async for event in events:
                    yield event
            return
        said = [*tokenizer(written(line), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        last = min(len(said), request.max_new_tokens) - 1
        logprob = None if request.num_logprobs is None else _LOGPROB
        for place, token_id in enumerate(said[: last + 1]):
            reason = None if place < last else "stop" if last == len(said) - 1 else "length"
            yield TokenEvent(token_id, reason, logprob)

    engine.submit = submit  # type: ignore[method-assign]


def next_line(prompt: str) -> str | None:
    """The next reply of the last script in a prompt; None without one, or after its end."""
    scripts = list(_SCRIPT.finditer(prompt))
    if not scripts:
        return None
    lines = [line.strip() for line in scripts[-1][1].split(" => ")]
    num_said = prompt.count(_TURN, scripts[-1].end()) - 1
    return lines[num_said] if 0 <= num_said < len(lines) else None


def written(line: str) -> str:
    """A line of a script, as this folder's template writes it."""
    calls = [_CALL.fullmatch(part) for part in line.split(" & ")]
    if not all(calls):
        return line
    found = [{"name": call[1], "arguments": json.loads(call[2])} for call in calls if call]
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in found)
