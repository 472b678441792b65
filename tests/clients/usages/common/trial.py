"""Define and run usages. Imports only the standard library, because each client has its own environment.

@usage("streams a reply")
def _(endpoint): ...                 # raises if the client does not get what its documentation promises

run_all()                            # python FILE URL [PART OF A NAME]: prints a JSON line for each usage
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
    """The endpoint under test."""

    root: str
    model: str = "smollm2"
    key: str = "any"
    engine: str = os.environ.get("ENGINE", "torch")
    folder: str = os.environ.get("MODEL_FOLDER", "")
    """the folder of its model and tokenizer, in float32"""

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"{self.root}/v1"


_USAGES: list[tuple[str, Callable[[Endpoint], Any]]] = []


def usage(name: str) -> Callable[[Callable[[Endpoint], Any]], Callable[[Endpoint], Any]]:
    """Mark a function or coroutine function as a usage of this file's client."""

    def mark(function: Callable[[Endpoint], Any]) -> Callable[[Endpoint], Any]:
        _USAGES.append((name, function))
        return function

    return mark


Kind = TypeVar("Kind", bound=Exception)


def raised(kind: type[Kind], function: Callable[[], Any]) -> Kind:
    """Call the function and return the error of this kind, which it must raise."""
    try:
        function()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def says(error: BaseException) -> str:
    """The text of an error and of all its causes."""
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
    """Run each usage and print its outcome."""
    endpoint = Endpoint(sys.argv[1])
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    signal.signal(signal.SIGALRM, _late)
    # One event loop for all, because clients keep connections between calls.
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
