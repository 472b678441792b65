"""A user's filter: found beside the pipeline file, imported in other processes, its faults told by line."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workflows.corpus.errors import UnusableLine
from workflows.corpus.user_code import files_beside
from workflows.corpus.user_filter import UserFilter
from workflows.stage import StageFailed

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
FILTER = """
import json, os.path
from shop_words import BAD

def keep(conversation):
    return not any(word in message["content"] for message in conversation["messages"] for word in BAD)

def tools(conversation):
    return conversation["tools"] is not None

def fails(conversation):
    return {}["topic"]

def quiet(conversation):
    raise ValueError

def leaves(conversation):
    raise SystemExit(3)

def counts(conversation):
    return len(conversation["messages"])

def changes(conversation):
    conversation["messages"].pop()
    conversation["messages"][0]["content"] = ""
    return True

async def late(conversation):
    return True

LIST = []
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCONTEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "here"
    (found / "shop_pack" / "deep").mkdir(parents=True)
    (found / "shop_filter.py").write_text(FILTER)
    (found / "shop_words.py").write_text("BAD = ['darn']\n")
    (found / "unused.py").write_text("")
    (found / "shop_pack" / "__init__.py").write_text("")
    (found / "shop_pack" / "deep" / "rules.py").write_text(
        "from pathlib import Path\nfrom .. import deep\nimport shop_words\n"
        "WORDS = Path(__file__).with_name('words.txt').read_text().split()\n"
        "def keep(conversation): return conversation['messages'][0]['content'] in WORDS\n"
    )
    (found / "shop_pack" / "deep" / "words.txt").write_text("hi ho")
    return found


def reason(folder: Path, name: str, **given: Any) -> str | None:
    return UserFilter.of(f"{folder}/{name}").reason(MESSAGES, **given)


def test_true_keeps_and_false_leaves_out(folder: Path) -> None:
    assert reason(folder, "shop_filter:keep") is None
    bad: list[Any] = [{"role": "user", "content": "darn it"}]
    keep = UserFilter.of(f"{folder}/shop_filter:keep")
    assert keep.reason(bad) == "data.filter: shop_filter:keep returned False"
    assert reason(folder, "shop_filter:tools", tools=[{}]) is None
    assert reason(folder, "shop_filter:tools") == "data.filter: shop_filter:tools returned False"


@pytest.mark.parametrize(("name", "words"), [
    ("fails", "raised KeyError: 'topic' (shop_filter.py:12)"), ("quiet", "raised ValueError (no message) (shop_fi"),
    ("leaves", "raised SystemExit: 3 (shop_filter.py:18)"),
    ("counts", "returned 2 (int); it must return True or False"),
])  # fmt: skip
def test_what_goes_wrong_on_a_line_is_the_reason_of_that_line(folder: Path, name: str, words: str) -> None:
    with pytest.raises(UnusableLine) as raised:
        reason(folder, f"shop_filter:{name}")
    assert str(raised.value).startswith(f"data.filter: shop_filter:{name} {words}")


def test_a_filter_cannot_change_the_messages(folder: Path) -> None:
    assert reason(folder, "shop_filter:changes") is None
    assert MESSAGES[0]["content"] == "hi"
    assert len(MESSAGES) == 2


def test_numpys_booleans_are_booleans(folder: Path) -> None:
    (folder / "shop_filter.py").write_text("import numpy as np\ndef keep(c): return np.int64(3) > 2\n")
    assert isinstance(np.int64(3) > 2, np.bool_)
    assert reason(folder, "shop_filter:keep") is None


def test_what_travels_is_the_module_and_what_it_imports_there(folder: Path) -> None:
    (folder / "json.py").write_text("")  # the standard library's is meant
    assert sorted(files_beside("shop_filter", folder)) == ["shop_filter.py", "shop_words.py"]
    assert sorted(files_beside("shop_pack.deep.rules", folder)) == [
        "shop_pack/__init__.py", "shop_pack/deep/rules.py", "shop_pack/deep/words.txt", "shop_words.py",
    ]  # fmt: skip
    assert files_beside("numpy", folder) == {}


ELSEWHERE = """
import pickle, sys
keep = pickle.load(sys.stdin.buffer)
print(keep.reason([{"role": "user", "content": "hi"}]), keep.reason([{"role": "user", "content": "darn"}]))
"""


@pytest.mark.parametrize("name", ["shop_filter", "shop_pack.deep.rules"])
def test_another_process_without_the_folder_imports_it(folder: Path, tmp_path: Path, name: str) -> None:
    """As a worker of Ray on another node does."""
    keep = UserFilter.of(f"{folder}/{name}:keep")
    away = folder.rename(tmp_path / "away")
    environment = {**os.environ, "RAYCONTEUR_CACHE": str(tmp_path / "other"), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=pickle.dumps(keep), capture_output=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.stdout.decode().strip() == f"None data.filter: {name}:keep returned False", done.stderr.decode()
    assert away.is_dir()


def test_what_a_job_gets_is_found_beside_its_pipeline_file(folder: Path, tmp_path: Path) -> None:
    keep = UserFilter.of(f"{folder}/shop_pack.deep.rules:keep")
    packed = tmp_path / "packed"
    packed.mkdir()
    keep.code.write(packed)
    there = UserFilter.of(f"{packed}/shop_pack.deep.rules:keep")
    assert there.key == keep.key
    # Ray puts the working directory first on the path of the job's processes.
    sys.path.insert(0, str(packed))
    assert UserFilter.of(f"{packed}/shop_pack.deep.rules:keep").key == keep.key
    assert there.reason(MESSAGES) is None


def test_the_key_changes_with_the_code_and_not_with_the_folder(folder: Path, tmp_path: Path) -> None:
    first = UserFilter.of(f"{folder}/shop_filter:keep")
    moved = folder.rename(tmp_path / "moved")
    assert UserFilter.of(f"{moved}/shop_filter:keep").key == first.key
    (moved / "shop_words.py").write_text("BAD = []\n")
    assert UserFilter.of(f"{moved}/shop_filter:keep").key != first.key
    # The same process goes on with the new code.
    assert first.reason([{"role": "user", "content": "darn"}]) is not None
    assert UserFilter.of(f"{moved}/shop_filter:keep").reason([{"role": "user", "content": "darn"}]) is None
    assert first.reason([{"role": "user", "content": "darn"}]) is not None


def test_an_installed_function_needs_no_file(folder: Path) -> None:
    assert reason(folder, "operator:truth") is None
    assert UserFilter.of("operator:not_").reason(MESSAGES) == "data.filter: operator:not_ returned False"


@pytest.mark.parametrize(("name", "words"), [
    ("keep", "got 'keep'; name a function by its module, as in mymodule:keep"),
    ("a.py:keep:x", "got 'a.py:keep:x'; name a function"),
    ("shop_filter:kep", r"kep of shop_filter\.py beside the pipeline file is not defined; did you mean keep\?"),
    ("shop_filter:zzz", r"zzz of shop_filter\.py beside .* is not defined; define it there, with one argument"),
    ("shop_filter:LIST", r"LIST of shop_filter\.py beside .* is no function, its type is list; name a function"),
    ("shop_filter:late", r"late of shop_filter\.py beside .* is async; define it without"),
    ("operator:zzz", r"zzz of /.*/operator\.py is not defined; define"),
    ("nowhere:keep", r"nowhere cannot be imported on \S+: ModuleNotFoundError: No module named 'nowhere'; put "
     r"nowhere.py or the package nowhere/ beside the pipeline file"),
    ("needs:keep", r"needs cannot be imported on \S+: ModuleNotFoundError: No module named 'lacking' "
     r"\(needs.py:1\); put lacking beside the pipeline file, and it is sent to all nodes with needs, or install"),
    ("broken:keep", r"broken cannot be imported on \S+: SyntaxError: .*broken.py, line 1"),
    ("leaving:keep", r"leaving cannot be imported on \S+: SystemExit: 1 \(leaving.py:1\)"),
    ("tarfile:keep", "the module tarfile beside the pipeline file has the name of another one, of Python's standard"),
    ("models:keep", "the module models beside the pipeline file has the name of another one, of this program"),
    ("yaml:keep", "the module yaml beside the pipeline file has the name of another one, /"),
])  # fmt: skip
def test_what_cannot_be_imported_is_refused_by_name(folder: Path, name: str, words: str) -> None:
    (folder / "needs.py").write_text("import lacking\n")
    (folder / "broken.py").write_text("def keep(:\n")
    (folder / "leaving.py").write_text("raise SystemExit(1)\n")
    for taken in ("tarfile", "models", "yaml"):
        (folder / f"{taken}.py").write_text("def keep(c): return True\n")
    with pytest.raises(StageFailed, match=rf"^data\.filter: {words}"):
        reason(folder, name)


def test_too_much_code_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.corpus.user_code.MAX_CODE", 10)
    with pytest.raises(StageFailed, match=r"^data\.filter: .* MB in shop_filter\.py, shop_words\.py beside"):
        UserFilter.of(f"{folder}/shop_filter:keep")


def test_a_filter_travels(folder: Path) -> None:
    keep = UserFilter.of(f"{folder}/shop_filter:keep")
    keep.function()
    again = pickle.loads(pickle.dumps(keep))
    assert again == keep
    assert again.key == keep.key
