"""What usages are made of; only Python's own library, as each client's environment has no other.

@usage("streams a reply")
def _(endpoint): ...                 # raises where the client does not get what its documentation says

run_all()                            # python FILE URL [PART OF A NAME]: a JSON line for each usage
"""

import asyncio
import inspect
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

MAX_SECONDS = 90


@dataclass(frozen=True)
class Endpoint:
    """Where to ask."""

    root: str
    model: str = "smollm2"
    key: str = "any"
    engine: str = os.environ.get("ENGINE", "torch")
    folder: str = os.environ.get("MODEL_FOLDER", "")
    """its model and tokenizer, in float32"""

    @property
    def url(self) -> str:
        """What clients take as their base URL."""
        return f"{self.root}/v1"


_USAGES: list[tuple[str, Callable[[Endpoint], Any]]] = []


def usage(name: str) -> Callable[[Callable[[Endpoint], Any]], Callable[[Endpoint], Any]]:
    """Marks one usage of this file's client, a function or a coroutine function."""

    def mark(function: Callable[[Endpoint], Any]) -> Callable[[Endpoint], Any]:
        _USAGES.append((name, function))
        return function

    return mark


Kind = TypeVar("Kind", bound=Exception)


def raised(kind: type[Kind], function: Callable[[], Any]) -> Kind:
    """The error of that kind which the function must raise."""
    try:
        function()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def says(error: BaseException) -> str:
    """All that an error tells, with what it was raised from."""
    told: list[str] = []
    current: BaseException | None = error
    while current is not None:
        text = f"{type(current).__name__}: {current}"
        if not any(text in other for other in told):
            told.append(text)
        nested = current.exceptions[0] if isinstance(current, BaseExceptionGroup) else None
        current = nested or current.__cause__ or current.__context__
    return " | ".join(told)


def run_all() -> None:
    """Try each usage and print what became of it."""
    endpoint = Endpoint(sys.argv[1])
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    signal.signal(signal.SIGALRM, _late)
    # One loop for all: clients keep connections between calls.
    loop = asyncio.Runner()
    for name, function in _USAGES:
        if wanted not in name:
            continue
        start = time.monotonic()
        said = ""
        signal.alarm(MAX_SECONDS)
        try:
            if inspect.iscoroutinefunction(function):
                loop.run(function(endpoint))
            else:
                function(endpoint)
        except Exception as error:
            said = says(error) or repr(error)
            if wanted:
                traceback.print_exc()
        finally:
            signal.alarm(0)
        line = {"usage": name, "works": not said, "said": said, "seconds": round(time.monotonic() - start, 1)}
        print("\n" + json.dumps(line), flush=True)


def _late(*_: Any) -> None:
    raise TimeoutError(f"not done after {MAX_SECONDS} s")
