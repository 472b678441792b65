"""Our exception classes: one tree for users' mistakes, and every class survives pickling."""

import ast
import importlib
import inspect
import pickle
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from models.errors import RayconteurError

ROOT = Path(__file__).parents[2]
BUILTIN = {"Exception", "ValueError", "RuntimeError", "OSError"}

# Where the code may raise a plain ValueError, and what turns it into the user's message.
PLAIN = {
    "workflows/spec/": "pydantic, with the field",
    "models/training/deepspeed_config.py": "pydantic, with the field",
    "workflows/cluster/cluster_file.py": "pydantic, with the field",
    "workflows/cluster/connection.py": "the same file, with the address",
    "workflows/cluster/ray_private.py": "workflows/cluster/connection.py, with the address",
    "workflows/scorecard/questions.py": "workflows/json_lines.py, with the line",
    "workflows/json_lines.py": "the same file, with the line",
    "models/scorers/": "workflows/json_lines.py, with the line",
    "workflows/suites/layouts.py": "workflows/json_lines.py, with the line",
    "workflows/judge/labels.py": "workflows/json_lines.py, with the line",
    "workflows/corpus/files/text.py": "the same file, with the line",
    "models/chat/form.py": "models/chat and workflows/corpus, with the message's key",
    "models/chat/calls.py": "the same file, with the tool",
    "serve/grammar/": "serve/grammar/formats.py, as an answer with status 400",
    "serve/engines/": "nobody: a request that serve/replies should not have made",
}

# Arguments for the classes that take more than a text.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "ApiError": (429, "Too many requests.", "messages", "queue_full", {"Retry-After": "1"}),
    "EndpointError": ("401: a key is needed", 401),
    "Fault": ("content", "is empty"),
    "MessageError": (3, "content", "message 3 (user) is empty"),
    "SpecError": ([],),
    "TrainingDiverged": ("train: the loss is nan", [3, 5]),
}


@cache
def classes() -> dict[str, list[tuple[str, str]]]:
    """All classes that we define, by name: their modules, and their first base class. Read from the syntax tree,
    because some modules import libraries that are not installed here.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for package in ("models", "serve", "workflows"):
        for file in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef) and node.bases:
                    base = ast.unparse(node.bases[0]).rpartition(".")[2]
                    found.setdefault(node.name, []).append((module, base))
    return found


def base_of(name: str) -> str:
    return classes()[name][0][1]


def is_exception(name: str) -> bool:
    return name in BUILTIN or (name in classes() and is_exception(base_of(name)))


EXCEPTIONS = [name for name in classes() if is_exception(name)]


def drawn(name: str, depth: int = 0) -> list[str]:
    """The tree of a class, as drawn in the docstring."""
    below = sorted(child for child in EXCEPTIONS if base_of(child) == name)
    return [f"{'    ' * depth}{name}", *(line for child in below for line in drawn(child, depth + 1))]


def test_the_docstring_draws_the_tree() -> None:
    text = inspect.getdoc(RayconteurError) or ""
    tree = text[text.index("    RayconteurError\n") :].splitlines()
    names = [re.match(r" {4}( *\w+)", line) for line in tree]
    assert [name[1] for name in names if name] == drawn("RayconteurError")


def test_no_other_error_of_ours_is_a_value_error() -> None:
    """Otherwise the command line would write a traceback for a user's mistake."""
    assert [name for name in EXCEPTIONS if base_of(name) == "ValueError"] == ["RayconteurError"]


def test_a_plain_value_error_is_raised_only_where_somebody_words_it() -> None:
    files = [file for package in ("models", "serve", "workflows") for file in (ROOT / package).rglob("*.py")]
    raising = [str(file.relative_to(ROOT)) for file in files if "raise ValueError(" in file.read_text()]
    assert [name for name in raising if not name.startswith(tuple(PLAIN))] == []
    assert [place for place in PLAIN if not any(name.startswith(place) for name in raising)] == []


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_error_survives_pickling(name: str) -> None:
    [(module, _)] = classes()[name]  # another class of this name
    kind = getattr(importlib.import_module(module), name)
    error = kind(*ARGUMENTS.get(name, ("data.sources: nothing found",)))
    error.add_note("from a worker")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
