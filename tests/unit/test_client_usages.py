"""The parts of `make test-clients`: scripted replies, and the files that list clients and results."""

import re
import tomllib
from pathlib import Path

import pytest
from clients.scripted import next_line, written

FOLDER = Path(__file__).parent.parent / "clients"
SAID = "<|im_start|>user\n2 and 3? [[add({}) => It is 5.]]<|im_end|>\n"
REPLY = "<|im_start|>assistant\n"


@pytest.mark.parametrize(("prompt", "line"), [
    (SAID + REPLY, "add({})"),
    (SAID + REPLY + "a call<|im_end|>\n<|im_start|>tool\n5<|im_end|>\n" + REPLY, "It is 5."),
    (SAID + REPLY + "a call" + REPLY + "It is 5." + REPLY, None),
    (REPLY + "Hi" + SAID + REPLY, "add({})"),
    (SAID + REPLY + "a call" + "[[Yes.]]" + REPLY, "Yes."),
    ("<|im_start|>user\nHi<|im_end|>\n" + REPLY, None),
])  # fmt: skip
def test_a_script_is_replied_line_by_line(prompt: str, line: str | None) -> None:
    assert next_line(prompt) == line


def test_calls_are_written_as_the_template_writes_them() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    assert written('add({"a":2})') == call
    assert written('add({"a":2}) & add({"a":2})') == f"{call}\n{call}"
    assert written("add is a function (so they say)") == "add is a function (so they say)"


def test_every_client_is_pinned_and_has_usages() -> None:
    found = tomllib.loads((FOLDER / "clients.toml").read_text())
    assert {path.name for path in (FOLDER / "usages").iterdir()} - {"common"} == set(found)
    for name, client in found.items():
        packages = client.get("npm") or client["pip"]
        assert all(re.fullmatch(r"@?[\w/-]+(\[\w+\])?(==|@)[\w.]+", package) for package in packages), packages
        assert list((FOLDER / "usages" / name).glob("try_*"))


def test_verdicts_are_regular_expressions_with_a_reason() -> None:
    for verdict in tomllib.loads((FOLDER / "verdicts.toml").read_text())["verdict"]:
        assert verdict.pop("why")
        assert verdict.keys() <= {"client", "usage", "endpoint", "said"}
        assert all(re.compile(pattern) for pattern in verdict.values())
