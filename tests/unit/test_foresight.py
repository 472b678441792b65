"""What would make training fail is reported before anything runs, with the field."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoConfig, AutoModelForCausalLM

from models.base.load import load_tokenizer
from models.training.deepspeed_names import found_mistakes
from workflows.cli.commands import command
from workflows.spec import PipelineSpec
from workflows.training import foresight
from workflows.training.foresight import check_worker, troubles

Build = Callable[..., PipelineSpec]
LORA = {"target_modules": ["q_proj"]}
TARGETS = "train.adapter.target_modules"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that imports DeepSpeed takes seconds; test_deepspeed_names.py shows that it answers the same."""
    monkeypatch.setattr(foresight, "mistakes", found_mistakes)


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def spec_of(model: Path) -> Build:
    def build(data: dict[str, Any] | None = None, train: dict[str, Any] | None = None) -> PipelineSpec:
        data = {"sources": [{"path": "talk.jsonl"}], **(data or {})}
        values = {"name": "talk", "base_model": str(model), "data": data, "train": train or {}}
        return PipelineSpec.model_validate(values)

    return build


def change(folder: Path, file: str, **values: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    ("data", "train"),
    [
        ({}, {}),
        ({"max_length": 2048}, {"adapter": LORA}),
        ({"new_tokens": ["Brindlewick"]}, {"adapter": LORA, "deepspeed": {"prescale_gradients": True}}),
        ({"new_tokens": ["Brindlewick"]}, {"adapter": None, "frozen": ["model.layers.*"]}),
    ],
)
def test_there_is_no_note_if_all_is_well(spec_of: Build, data: dict[str, Any], train: dict[str, Any]) -> None:
    assert troubles(spec_of(data, train)) == []


@pytest.mark.parametrize(
    ("data", "train", "words"),
    [
        ({"max_length": 2049}, {}, "data.max_length: 2049 exceeds the 2048 positions of "),
        ({}, {"adapter": {"target_modules": ["q_prj"]}}, f"{TARGETS}: no layer has the name 'q_prj'"),
        ({}, {"adapter": {"target_modules": ["lm_head"]}}, f"{TARGETS}: lm_head shares its matrix with the"),
        ({}, {"adapter": {"target_modules": ["norm"]}}, f"{TARGETS}: Target module LlamaRMSNorm"),
        ({}, {"adapter": None, "frozen": ["layers.0.*"]}, "train.frozen: 'layers.0.*' matches no parameter"),
        ({"new_tokens": ["a b"]}, {"adapter": None, "frozen": ["*embed*"]}, "train.frozen: *embed* freeze"),
        ({}, {"deepspeed": {"stge": 1}}, "train.deepspeed.stge: DeepSpeed "),
        (
            {"new_tokens": ["a b"]},
            {"objective": {"name": "distill", "teacher": "owner/name"}},
            "data.new_tokens: the teacher of train.objective distill has no such tokens",
        ),
    ],
)  # fmt: skip
def test_what_would_fail_is_reported_with_its_field(
    spec_of: Build, data: dict[str, Any], train: dict[str, Any], words: str
) -> None:
    [told] = troubles(spec_of(data, train))
    assert told.startswith(words)


@pytest.mark.parametrize(
    ("template", "data", "words"),
    [
        ("{{ messages", {}, r"data\.chat_template: the chat template is not valid Jinja: line 1"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", {}, "writes no token at the end of a reply"),
        (None, {"chat_template_kwargs": {"messages": 1}}, r"data\.chat_template_kwargs: messages is set by"),
        (None, {"chat_template_kwargs": {"a b": 1}}, r"data\.chat_template_kwargs: 'a b' is not a valid name"),
    ],
)
def test_a_chat_template_is_tried(
    spec_of: Build, tmp_path: Path, template: str | None, data: dict[str, Any], words: str
) -> None:
    if template is not None:
        (tmp_path / "own.jinja").write_text(template)
        data = {"chat_template": str(tmp_path / "own.jinja")}
    [found] = troubles(spec_of(data))
    assert re.search(words, found)


def test_all_problems_are_reported_at_once(spec_of: Build) -> None:
    train = {"adapter": {"target_modules": ["x"]}, "deepspeed": {"a": 1}}
    assert len(troubles(spec_of({"max_length": 4096}, train))) == 3


def test_a_scaling_of_positions_is_counted(spec_of: Build, model: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "rope_theta": 1e4}
    change(model, "config.json", rope_parameters=scaling)
    assert troubles(spec_of({"max_length": 8192})) == []
    assert "exceeds the 8192 positions" in troubles(spec_of({"max_length": 8193}))[0]


def test_tokens_without_an_embedding(spec_of: Build, model: Path) -> None:
    """The tiny tokenizer has 256 byte tokens and four control tokens, which its template writes."""
    tokenizer = load_tokenizer(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(model)
    assert troubles(spec_of()) == [], "no text has it"
    tokenizer.add_tokens(["Brindlewick"])
    tokenizer.save_pretrained(model)
    [told] = troubles(spec_of())
    assert told.startswith("base_model: 1 tokens of the tokenizer have no embedding, since the model has 260: Brin")
    assert troubles(spec_of({"new_tokens": ["Brindlewick"]})) == []
    config = AutoConfig.from_pretrained(model)
    config.vocab_size = 258
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    assert "<|start_header_id|>" in troubles(spec_of())[0], "its template writes it"


def test_a_worker_checks_the_corpus_too(spec_of: Build, model: Path) -> None:
    class Split:
        def __init__(self, largest: int) -> None:
            self.largest_token = lambda: largest

    check_worker(spec_of(), model, [Split(259), Split(3)])  # type: ignore[list-item]
    with pytest.raises(
        ValueError, match=r"^base_model: the corpus has the token .* \(260\), but the model only has 260 embeddings"
    ):
        check_worker(spec_of(), model, [Split(3), Split(260)])  # type: ignore[list-item]


@pytest.mark.parametrize("ending", ["plan", "run --to train"])
def test_the_command_reports_it_and_fails(model: Path, tmp_path: Path, ending: str) -> None:
    (tmp_path / "talk.jsonl").write_text('{"messages": []}\n')
    file = tmp_path / "talk.yaml"
    file.write_text(
        f"name: talk\nstore: {tmp_path / 'store'}\nbase_model: {model}\n"
        f"data: {{sources: [{{path: {tmp_path / 'talk.jsonl'}}}], max_length: 5000}}\n"
    )
    name, *options = ending.split()
    done = CliRunner().invoke(command, [name, str(file), *options])
    assert done.exit_code == 1
    assert "data.max_length: 5000 exceeds the 2048 positions" in done.output


def test_a_broken_config_is_named(spec_of: Build, model: Path) -> None:
    (model / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"^base_model: .*config\.json is not JSON"):
        troubles(spec_of())
