"""The pipeline file: all mistakes at once, each with its line; overrides; the reference of fields."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from workflows.cli.commands import command
from workflows.spec import DpoSpec, KtoSpec, OrpoSpec, PipelineSpec, SimpoSpec
from workflows.spec.describe import all_fields
from workflows.spec.errors import SpecError
from workflows.spec.read import read_spec

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
name: shop
data:
  sources:
    - path: talk.jsonl
      limt: 3
  held_out_share: 0.9
train:
  adapter:
    rank: eight
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


def test_five_mistakes_give_five_located_errors(tmp_path: Path) -> None:
    file = write(tmp_path, FIVE_MISTAKES)
    problems = problems_of(file)
    for problem, (line, field, words) in zip(problems, [
        (1, "base_model", ["is required", "`builtin:smollm2-135m-instruct`"]),
        (5, "data.sources.0.limt", ["unknown field", "did you mean data.sources.0.limit?"]),
        (6, "data.held_out_share", ["got 0.9", "less than or equal to 0.5", "default 0.05"]),
        (9, "train.adapter.rank", ["got 'eight'", "valid integer", "int >= 1, <= 1024, default 16"]),
        (10, "train.precision", ["got 'bf61'", "'auto', 'bf16' or 'fp32'", "did you mean bf16?"]),
    ], strict=True):  # fmt: skip
        assert problem.startswith(f"{file}:{line}: {field}: ")
        assert [word for word in words if word not in problem] == []


def test_the_command_prints_them_all_and_exits_with_2(tmp_path: Path) -> None:
    file = write(tmp_path, FIVE_MISTAKES)
    command = [sys.executable, "-m", "workflows", "run", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"error: {problem}" for problem in problems_of(file)]


@pytest.mark.parametrize(("text", "words"), [
    ("", "yaml:1: name: is required"),
    ("# nothing\n", "yaml:1: data: is required"),
    ("- a\n- b\n", "yaml:1: a pipeline file is a mapping of fields"),
    ("only words\n", "yaml:1: a pipeline file is a mapping of fields"),
    ("name: x\ndata: [\n", "yaml:3: not YAML"),
    (GOOD + "\tepochs: 3\n", "yaml:8: not YAML"),
    (GOOD + "---\nname: y\n", "yaml:8: not YAML"),
    ("name: x\nstore: a\nname: y\n", "yaml:3: name: is set twice, first on line 1"),
    (GOOD + "  epochs: 1\n  epochs: 2\n", "yaml:9: train.epochs: is set twice, first on line 8"),
    (GOOD + "serve:\n  min_replicas: 5\n", "yaml:8: serve: min_replicas (5) is above max_replicas (2)"),
    (GOOD + "1: x\n", "yaml:8: 1: unknown field; known here: name, store"),
    (GOOD + "  epochs: .inf\n", "yaml:8: train.epochs: got inf; must be a finite number"),
])  # fmt: skip
def test_broken_files_are_located(tmp_path: Path, text: str, words: str) -> None:
    assert words in "\n".join(problems_of(write(tmp_path, text)))


MERGED = """name: x
data:
  sources:
    - &first {path: x.jsonl, limit: 10, weight: 1.0}
    - &second {<<: *first, path: y.jsonl}
    - <<: [*second, {weight: 2.0, limit: 3, split: all}]
      limit: 5
evaluate:
  max_new_tokens: 0
  <<: {max_new_tokens: 7}
base_model: random:tiny-llama
"""


def test_merges_fill_in_what_a_mapping_does_not_set(tmp_path: Path) -> None:
    """As in YAML 1.1: own keys win, then earlier mappings of a list, wherever the `<<` stands."""
    spec = read_spec(write(tmp_path, MERGED.replace("max_new_tokens: 0", "max_new_tokens: 9")))
    found = [(Path(source.path).name, source.limit, source.weight) for source in spec.data.sources]
    assert found == [("x.jsonl", 10, 1.0), ("y.jsonl", 10, 1.0), ("y.jsonl", 5, 1.0)]
    assert spec.evaluate.max_new_tokens == 9


@pytest.mark.parametrize(("before", "after", "words"), [
    ("limit: 10", "limt: 10", ["yaml:4: data.sources.0.limt: unknown", "yaml:4: data.sources.1.limt: unknown"]),
    ("limit: 5", "<<: {path: z}", ["yaml:7: data.sources.2.<<: is set twice, first on line 6; merge a list"]),
    ("path: y.jsonl", "path: y.jsonl, path: z", ["yaml:5: data.sources.1.path: is set twice, first on line 5"]),
    ("<<: {max_new_tokens: 7}", "<<: 7", ["yaml:10: not YAML: `<<` merges a mapping or a list of mappings, got a s"]),
    ("<<: {max_new_tokens: 7}", "<<: [*first, [1]]", ["yaml:10: not YAML: `<<` merges a mapping or a list of map"]),
    ("", "", ["yaml:9: evaluate.max_new_tokens: got 0"]),
])  # fmt: skip
def test_mistakes_in_merged_fields_are_located_where_they_stand(
    tmp_path: Path, before: str, after: str, words: list[str]
) -> None:
    found = "\n".join(problems_of(write(tmp_path, MERGED.replace(before, after))))
    assert [each for each in words if each not in found] == [], found


@pytest.mark.parametrize("text", ["&here\n  adapter: [*here]\n", "[" * 2000], ids=["a circle", "depth"])
def test_a_file_without_an_end_is_refused(tmp_path: Path, text: str) -> None:
    [problem] = problems_of(write(tmp_path, GOOD.replace("train:\n  learning_rate: 1e-4", f"train: {text}")))
    assert "pipeline.yaml" in problem


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in problems_of(file)[0]
    assert "cannot be read" in problems_of(tmp_path)[0]
    assert problems_of(tmp_path / "none.yaml") == [f"{tmp_path / 'none.yaml'}: there is no such file"]


@pytest.mark.parametrize("written", ["5", "{rank: x}", "[1]"])
def test_one_mistake_in_a_field_of_several_types_is_one_error(tmp_path: Path, written: str) -> None:
    [problem] = problems_of(write(tmp_path, GOOD), f"train.adapter.target_modules={written}")
    assert "train.adapter.target_modules" in problem


@pytest.mark.parametrize(
    ("written", "number"), [("1e-4", 1e-4), ("2E-1", 0.2), (".5", 0.5), ("5e-1", 0.5), ("1E0", 1.0), ("1.e-2", 0.01)]
)
def test_numbers_as_people_write_them(tmp_path: Path, written: str, number: float) -> None:
    file = write(tmp_path, GOOD.replace("1e-4", written))
    assert read_spec(file).train.learning_rate == number
    assert read_spec(file, ["train.batch_tokens=1E5"]).train.batch_tokens == 100_000


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "2026-11-23"])
def test_strings_stay_strings(tmp_path: Path, word: str) -> None:
    assert read_spec(write(tmp_path, f"{GOOD}serve:\n  model_name: {word}\n")).serve.model_name == word
    assert read_spec(write(tmp_path, GOOD), [f"serve.model_name={word}"]).serve.model_name == word


def test_overrides_reach_everything(tmp_path: Path) -> None:
    spec = read_spec(
        write(tmp_path, GOOD),
        ["train.adapter.rank=4", "data.sources.0.limit=7", "train.zero={stage: 2}", "evaluate.gate.min_fact_share=1"],
    )
    assert spec.train.adapter is not None
    assert (spec.train.adapter.rank, spec.data.sources[0].limit, spec.train.zero.stage) == (4, 7, 2)
    assert (spec.evaluate.gate.min_fact_share, spec.train.learning_rate) == (1.0, 1e-4)


def test_null_leaves_the_adapter_out(tmp_path: Path) -> None:
    assert read_spec(write(tmp_path, GOOD)).train.adapter is not None
    assert read_spec(write(tmp_path, GOOD + "  adapter: null\n")).train.adapter is None
    assert read_spec(write(tmp_path, GOOD), ["train.adapter=null"]).train.adapter is None
    again = read_spec(write(tmp_path, GOOD + "  adapter: null\n"), ["train.adapter.rank=2"]).train.adapter
    assert again is not None
    assert again.rank == 2


@pytest.mark.parametrize(("override", "words"), [
    ("train.zero.stge=1", "--set train.zero.stge=1: train.zero.stge: unknown field; did you mean train.zero.stage?"),
    ("train.epochs=-1", "--set train.epochs=-1: train.epochs: got -1; must be greater than 0"),
    ("train.epochs=[", "--set train.epochs=[: train.epochs: the value is not YAML"),
    ("train={epochs: -1}", "--set train={epochs: -1}: train.epochs: got -1"),
    ("data.sources.3.limit=1", "--set data.sources.3.limit=1: data.sources.3.limit: 3 is not an index of a list"),
    ("data.sources.path=x", "'path' is not an index of a list of 1"),
    ("nonsense", "--set nonsense: must be field=value"),
    ("name.first=x", "--set name.first=x: name: got"),
])  # fmt: skip
def test_wrong_overrides_say_which(tmp_path: Path, override: str, words: str) -> None:
    [problem] = problems_of(write(tmp_path, GOOD), override)
    assert words in problem


def test_mistakes_in_the_file_and_in_overrides_are_reported_together(tmp_path: Path) -> None:
    file = write(tmp_path, FIVE_MISTAKES)
    problems = problems_of(file, "train.seed=-1", "base_model=x/y")
    assert len(problems) == 5
    assert [problem for problem in problems if problem.startswith("--set train.seed=-1: train.seed: got -1")]


def test_the_spec_is_frozen(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, GOOD))
    with pytest.raises(ValidationError, match="frozen"):
        spec.train.zero.stage = 3


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, GOOD), ["base_model=./model", "evaluate.questions=q.jsonl"])
    assert spec.data.sources[0].path == str(tmp_path / "talk.jsonl")
    assert spec.base_model == str(tmp_path / "model")
    assert spec.evaluate.questions == str(tmp_path / "q.jsonl")
    spec = read_spec(write(tmp_path, GOOD), ["base_model=owner/name", "data.sources.0.path=s3://bucket/x"])
    assert (spec.base_model, spec.data.sources[0].path) == ("owner/name", "s3://bucket/x")


def test_settings_of_how_a_stage_runs_are_not_in_its_key(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, GOOD))
    trained, evaluated = spec.train.result_fields(), spec.evaluate.result_fields()
    assert trained["learning_rate"] == 1e-4
    assert trained["zero"] == {"stage": 0, "offload": None, "offload_folder": None}
    assert not {"cpus_per_worker", "gpus_per_worker", "max_failures"} & set(trained)
    assert not {"num_workers", "cpus_per_worker", "gpus_per_worker"} & set(evaluated)
    assert "num_workers" in trained, "the number of workers changes which conversations share a step"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["num_workers=[4, 1]"], r"train.num_workers: got \[4, 1\]; must be from 1 to 65536, or \[min, max\]"),
        (["num_workers=[1, 2, 3]"], r"train.num_workers: got \[1, 2, 3\]"),
        (["num_workers=0"], r"train.num_workers: got 0; must be from 1"),
        (["batch_tokens=most"], r"train.batch_tokens: got 'most'; "),
        (["zero={offload: cpu}"], r"train.zero: offload cpu needs stage 1 or more, and stage is 0"),
        (["zero={stage: 2, offload: nvme, offload_folder: /x}"], r"offload nvme needs stage 3 or more"),
        (["zero={stage: 3, offload: nvme}"], r"offload_folder is for offload: nvme, which needs it"),
        (["frozen=[model.embed_tokens.*]"], r"train: frozen is for training all weights"),
        (["adapter.quantize=nf4", "zero.stage=3"], r"train: adapter.quantize keeps weights"),
        (["deepspeed={gradient_clipping: 1}"], r"train.deepspeed: gradient_clipping is set by train.gradient_clip"),
        (
            ["adapter.method=adalora"],
            r"train.adapter.method: got 'adalora'; must be 'lora', 'rslora', 'dora' or 'mua'",
        ),
        (["adapter={method: mua, alpha: 16}"], r"train.adapter: alpha \(now 16\) is for the other methods; mua has"),
    ],
)
def test_wrong_training_is_located(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        read_spec(write(tmp_path, GOOD), [f"train.{override}" for override in overrides])
    assert len(caught.value.problems) == 1


def test_the_alpha_that_is_used_enters_a_key_as_it_always_has(tmp_path: Path) -> None:
    old = {
        "method": "lora",
        "rank": 16,
        "alpha": 32.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
        "quantize": None,
    }
    spec = write(tmp_path, GOOD)
    for overrides in ([], ["train.adapter.alpha=32"], ["train.adapter.method=lora"]):
        assert read_spec(spec, overrides).train.result_fields()["adapter"] == old
    mua = read_spec(spec, ["train.adapter.method=mua", "train.adapter.rank=8"]).train.result_fields()["adapter"]
    assert mua == {**old, "method": "mua", "rank": 8, "alpha": 8}


def test_workers_are_a_number_or_a_range(tmp_path: Path) -> None:
    train = read_spec(write(tmp_path, GOOD), ["train.num_workers=[1, 4]", "train.batch_tokens=auto"]).train
    assert (train.min_workers, train.max_workers) == (1, 4)
    train = read_spec(write(tmp_path, GOOD), ["train.num_workers=3"]).train
    assert (train.min_workers, train.max_workers) == (3, 3)


def test_a_step_of_auto_is_one_pass_of_the_usual_size(tmp_path: Path) -> None:
    overrides = ["train.batch_tokens=auto", "train.gradient_accumulation=4"]
    train = read_spec(write(tmp_path, GOOD), overrides).train
    assert (train.pass_tokens, train.passes) == (4 * 2048, 1)
    train = read_spec(write(tmp_path, GOOD), ["train.batch_tokens=500", *overrides[1:]]).train
    assert (train.pass_tokens, train.passes) == (500, 4)


def test_the_reference_explains_every_field() -> None:
    rows = all_fields()
    paths = [row.path for row in rows]
    assert len(paths) == len(set(paths)) > 50
    assert {"train.learning_rate", "data.sources.0.path", "train.adapter.rank", "serve.max_replicas"} <= set(paths)
    assert [row.path for row in rows if not (row.description and row.default and row.type)] == []
    found = {row.path: (row.type, row.default) for row in rows}
    assert found["train.adapter.rank"] == ("int >= 1, <= 1024", "16")
    assert found["train.precision"] == ("auto | bf16 | fp32", "auto")
    assert found["name"][1] == "required"
    assert found["train.max_steps"] == ("int | null >= 1, <= 1000000000", "null")


def test_an_objective_is_a_word_or_a_section(tmp_path: Path) -> None:
    assert read_spec(write(tmp_path, GOOD)).train.objective.name == "sft"
    worded = write(tmp_path, GOOD + "  objective: dpo\n")
    assert read_spec(worded).train.objective == DpoSpec(beta=0.1)
    assert read_spec(worded, ["train.objective.beta=0.2"]).train.objective == DpoSpec(beta=0.2)
    assert read_spec(worded, ["train.objective=simpo"]).train.objective == SimpoSpec()
    assert read_spec(worded, ["train.objective={name: kto, beta: 2}"]).train.objective == KtoSpec(beta=2.0)
    both = ["train.objective=orpo", "train.objective.weight=0.5"]
    assert read_spec(write(tmp_path, GOOD), both).train.objective == OrpoSpec(weight=0.5)
    section = write(tmp_path, GOOD + "  objective:\n    name: dpo\n    beta: 0.3\n")
    assert read_spec(section, ["train.objective.label_smoothing=.1"]).train.objective == DpoSpec(
        beta=0.3, label_smoothing=0.1
    )
    again = PipelineSpec.model_validate(read_spec(section).model_dump())
    assert again == read_spec(section)
    distilled = read_spec(worded, ["train.objective={name: distill, teacher: ../big}"]).train.objective
    assert distilled.model_dump()["teacher"] == str(tmp_path.parent / "big")


NAMES = "'sft', 'dpo', 'orpo', 'kto', 'simpo', 'distill', 'distill_replies', 'adversarial', 'spin'"


@pytest.mark.parametrize(("text", "words"), [
    ("  objective: dop\n", f"8: train.objective: got 'dop'; must be one of {NAMES}; did you mean dpo?"),
    ("  objective:\n    name: dop\n", f"9: train.objective.name: got 'dop'; must be one of {NAMES}; did you mean"),
    ("  objective:\n    beta: 1\n", "8: train.objective.name: is required; must be one of sft, dpo"),
    ("  objective: distill\n", "8: train.objective.teacher: is required; The model to learn from"),
    ("  objective: 5\n", "8: train.objective: got 5; must be"),
    ("  objective:\n    name: dpo\n    bta: 1\n",
     "10: train.objective.bta: unknown field; did you mean train.objective.beta?"),
    ("  objective:\n    name: sft\n    beta: 1\n", "10: train.objective.beta: unknown field; known here: name"),
    ("  objective:\n    name: simpo\n    beta: -1\n",
     "10: train.objective.beta: got -1; must be greater than 0; allowed: float > 0, <= 100, default 2"),
    ("  objective:\n    name: kto\n    beta: high\n",
     "10: train.objective.beta: got 'high'; must be a valid number, unable to parse string as a number; allowed: "
     "float > 0, <= 100, default 0.1"),
])  # fmt: skip
def test_a_wrong_objective_is_located(tmp_path: Path, text: str, words: str) -> None:
    file = write(tmp_path, GOOD + text)
    [problem] = problems_of(file)
    assert problem.startswith(f"{file}:{words}")


def test_a_wrong_objective_on_the_command_line(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD + "  objective: dpo\n")
    [problem] = problems_of(file, "train.objective.beta=0")
    assert problem.startswith("--set train.objective.beta=0: train.objective.beta: got 0; must be greater than 0")
    [problem] = problems_of(file, "train.objective=kot")
    assert problem.startswith("--set train.objective=kot: train.objective: got 'kot'; must be one of")


def test_the_reference_tells_objectives_apart() -> None:
    found = {row.path: (row.type, row.default) for row in all_fields()}
    names = "sft | dpo | orpo | kto | simpo | distill | distill_replies | adversarial | spin"
    assert found["train.objective"] == (names, "sft")
    assert found["train.objective.beta [dpo]"] == ("float > 0, <= 100", "0.1")
    assert found["train.objective.beta [simpo]"] == ("float > 0, <= 100", "2")
    assert found["train.objective.teacher [distill]"] == ("str length >= 1", "required")


OPEN = GOOD + "serve:\n  port: 9000\n  host: 0.0.0.0\n"


@pytest.mark.parametrize(("host", "is_open"), [
    ("127.0.0.1", False), ("127.8.9.1", False), ("localhost", False), ("'::1'", False),
    ("0.0.0.0", True), ("'::'", True), ("10.0.0.1", True), ("shop.example", True), ("localhost.example", True),
])  # fmt: skip
def test_an_endpoint_that_others_reach_needs_keys(tmp_path: Path, host: str, is_open: bool) -> None:
    file = write(tmp_path, GOOD + f"serve:\n  host: {host}\n")
    assert read_spec(file).serve.is_open == is_open
    assert not read_spec(file, ["serve.keys=required"], may_be_open=False).serve.is_open
    if not is_open:
        read_spec(file, may_be_open=False)
        return
    with pytest.raises(SpecError, match=r"pipeline\.yaml:9: serve\.host: got .*rayconteur keys create") as raised:
        read_spec(file, may_be_open=False)
    assert "--insecure" in str(raised.value)


@pytest.mark.parametrize("verb", ["plan", "run", "deploy"])
def test_these_commands_refuse_an_open_endpoint_at_once(tmp_path: Path, verb: str) -> None:
    file = write(tmp_path, OPEN.replace("talk.jsonl", str(tmp_path / "none.jsonl")))
    refused = CliRunner().invoke(command, [verb, str(file)])
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"error: {file}:10: serve.host: got '0.0.0.0', where other machines reach")
    store = f"store={tmp_path / 'store'}"
    for more in (["--insecure"], ["--set", "serve.keys=required"], ["--set", "serve.host=127.0.0.1"]):
        let_in = CliRunner().invoke(command, [verb, str(file), "--set", store, *more])
        assert "data.sources.0.path: nothing found" in let_in.stderr, "it comes to the next mistake"


FROM_NOTHING = {"base_model": "new", "train": {"adapter": None}}


RULES = {"suites": [{"path": "suites/rules.jsonl"}]}
BY_RULES = {"space": {"train.seed": [1, 2]}, "trials": 2, "metric": "suite_rules"}


@pytest.mark.parametrize(("values", "words"), [
    ({"base_model": "new"}, "set train.adapter: null"),
    ({"new_model": {"hidden_size": 8}}, "new_model needs base_model: new"),
    ({**FROM_NOTHING, "new_model": {"architecture": "transformer", "hidden_size": 100}}, "a multiple of 64"),
    ({**FROM_NOTHING, "new_model": {"architecture": "transformer", "noise_size": 2}}, "are for architecture: lstm"),
    ({"train": {"objective": "adversarial", "zero": {"stage": 3}}}, "use zero.stage 0, 1 or 2"),
    ({"train": {"objective": {"name": "adversarial", "gradient": "gumbel"}}}, "set train.adapter: null"),
    ({"train": {"objective": "adversarial"},
      "tune": {"space": {"train.seed": [1, 2]}, "trials": 2, "scheduler": "asha"}}, "the last checkpoint counts"),
    ({"train": {"evaluate_every_steps": 5}}, "train.evaluate_every_steps: 5 needs evaluate.suites"),
    ({"tune": BY_RULES, "evaluate": {"suites": [{"path": "ruled.jsonl"}]}}, "did you mean suite_ruled?"),
    ({"tune": BY_RULES, "evaluate": {"suites": [{"path": "rules.jsonl", "scorer": "perplexity"}]}}, "given replies"),
    ({"tune": BY_RULES, "evaluate": RULES, "train": {"zero": {"stage": 3}}}, "use train.zero.stage 0, 1 or 2"),
    ({"tune": BY_RULES, "evaluate": RULES, "train": {"objective": "adversarial"}}, "take another metric"),
])  # fmt: skip
def test_invalid_new_models_and_pairs_are_reported(values: dict[str, Any], words: str) -> None:
    good = {"name": "pair", "base_model": "random:tiny-gpt2", "data": {"sources": [{"path": "a.jsonl"}]}}
    with pytest.raises(ValueError, match=words):
        PipelineSpec.model_validate({**good, **values})
