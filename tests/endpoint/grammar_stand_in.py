"""A stand-in compiler that uses the time and memory that its grammar states: tests need no expensive grammar."""

import re
import time
from typing import Any

from serve.grammar.compile import compiled


def stand_in(tokens: Any, lark: str) -> Any:
    """Sleep for "sleep N s" in the grammar, allocate N MiB for "take N MiB", then compile as usual."""
    if found := re.search(r"sleep (\d+) s", lark):
        time.sleep(int(found[1]))
    if found := re.search(r"take (\d+) MiB", lark):
        taken = [bytearray(1 << 20) for _ in range(int(found[1]))]
        time.sleep(len(taken))  # after allocating all of it
    if "end at once" in lark:
        raise SystemExit(1)
    return compiled(tokens, lark)
