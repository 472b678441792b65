"""The pipeline file: all mistakes at once, each with its place; overrides; the reference."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from workflows.spec_file import SpecError, read_spec, reference

GOOD = """\
name: shop
base_model: random:tiny-llama
data:
  sources:
    - path: talk.jsonl
train:
  learning_rate: 1e-4
"""
FIVE_MISTAKES = """\
name: Shop!
base_model: random:tiny-llama
data:
  sources:
    - path: talk.jsonl
      limt: 3
  held_out_share: 0.9
train:
  learing_rate: 1e-4
  precision: bf61
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "pipeline.yaml"
    file.write_text(text)
    return file


def problems_of(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as raised:
        read_spec(file, list(overrides))
    return [str(problem) for problem in raised.value.problems]


def test_five_mistakes_give_five_located_errors(tmp_path):
    file = write(tmp_path, FIVE_MISTAKES)
    problems = problems_of(file)
    assert len(problems) == 5
    for problem, (line, field, got, hint) in zip(problems, [
        (1, "name", "'Shop!'", "^[a-z0-9]"),
        (6, "data.sources.0.limt", "unknown field", "did you mean data.sources.0.limit?"),
        (7, "data.held_out_share", "got 0.9", "less than or equal to 0.5"),
        (9, "train.learing_rate", "unknown field", "did you mean train.learning_rate?"),
        (10, "train.precision", "'bf61'", "did you mean bf16?"),
    ], strict=True):  # fmt: skip
        assert problem.startswith(f"{file}:{line}: {field}: ")
        assert got in problem
        assert hint in problem


def test_the_command_prints_them_all_and_exits_with_2(tmp_path):
    file = write(tmp_path, FIVE_MISTAKES)
    done = subprocess.run(
        [sys.executable, "-m", "workflows", "run", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 5
    assert "Traceback" not in done.stderr


def test_a_missing_field_is_named(tmp_path):
    problems = problems_of(write(tmp_path, "name: x\n"))
    assert [problem.split(": ")[1:3] for problem in problems] == [
        ["base_model", "is required; `builtin"],
        ["data", "is required; prepare"],
    ] or all("is required" in problem for problem in problems)
    assert len(problems) == 2


@pytest.mark.parametrize(("text", "words"), [
    ("", "name: is required"),
    ("- a\n- b\n", "a mapping of fields"),
    ("name: [\n", "not YAML"),
    ("name: x\nname: y\n", "pipeline.yaml:2: name: stands twice, first on line 1"),
])  # fmt: skip
def test_broken_files_are_located(tmp_path, text, words):
    assert words in "\n".join(problems_of(write(tmp_path, text)))


@pytest.mark.parametrize(("written", "number"), [("1e-4", 1e-4), ("2E-1", 0.2), (".5", 0.5), ("5e-1", 0.5)])
def test_numbers_as_people_write_them(tmp_path, written, number):
    spec = read_spec(write(tmp_path, GOOD), [f"train.learning_rate={written}"])
    assert spec.train.learning_rate == number


def test_no_is_a_word(tmp_path):
    assert read_spec(write(tmp_path, GOOD), ["serve.model_name=no"]).serve.model_name == "no"


def test_overrides_reach_everything(tmp_path):
    spec = read_spec(
        write(tmp_path, GOOD),
        ["train.adapter.rank=4", "data.sources.0.limit=7", "train.zero={stage: 2}", "evaluate.gate.min_fact_share=1"],
    )
    assert spec.train.adapter is not None
    assert (spec.train.adapter.rank, spec.data.sources[0].limit, spec.train.zero.stage) == (4, 7, 2)
    assert read_spec(write(tmp_path, GOOD), ["train.adapter=null"]).train.adapter is None


@pytest.mark.parametrize(("override", "words"), [
    ("train.zero.stge=1", "--set train.zero.stge=1: train.zero.stge: unknown field; did you mean train.zero.stage?"),
    ("train.epochs=-1", "--set train.epochs=-1: train.epochs: got -1"),
    ("data.sources.3.limit=1", "no entry of a list of 1"),
    ("nonsense", "must be field=value"),
    ("name.first=x", "--set name.first=x: name: got"),
])  # fmt: skip
def test_wrong_overrides_say_which(tmp_path, override, words):
    assert words in "\n".join(problems_of(write(tmp_path, GOOD), override))


def test_the_spec_is_frozen(tmp_path):
    spec = read_spec(write(tmp_path, GOOD))
    with pytest.raises(ValidationError):
        spec.name = "other"


def test_data_paths_start_at_the_file(tmp_path):
    spec = read_spec(write(tmp_path, GOOD), ["base_model=./model", "evaluate.questions=q.jsonl"])
    assert spec.data.sources[0].path == str(tmp_path / "talk.jsonl")
    assert spec.base_model == str(tmp_path / "model")
    assert spec.evaluate.questions == str(tmp_path / "q.jsonl")


def test_how_a_stage_runs_is_not_what_it_makes(tmp_path):
    fields = read_spec(write(tmp_path, GOOD)).train.result_fields()
    assert "learning_rate" in fields
    assert not {"cpus_per_worker", "gpus_per_worker", "max_failures"} & set(fields)


def test_the_reference_explains_every_field():
    rows = reference()
    paths = [row.path for row in rows]
    assert len(paths) == len(set(paths)) > 50
    assert {"train.learning_rate", "data.sources.0.path", "train.adapter.rank", "serve.max_replicas"} <= set(paths)
    assert [row.path for row in rows if not row.description] == []
    rank = next(row for row in rows if row.path == "train.adapter.rank")
    assert (rank.type, rank.default) == ("int >= 1, <= 1024", "16")
