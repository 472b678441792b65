"""lm-eval's tasks: the fields, what decides the key, what the tasks ask, and what becomes of a model's answers."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from models.base.load import load_tokenizer
from workflows.lm_eval.files import lm_eval_settings
from workflows.lm_eval.requests import Answer, EndpointRequest, chat_request, likelihood_request, text_request
from workflows.lm_eval.results import TaskResult
from workflows.lm_eval.tasks import LmEvalTasks
from workflows.spec import EvaluateSpec
from workflows.spec.errors import SpecError
from workflows.spec.read import read_spec
from workflows.stage import StageFailed

DATA = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "items.jsonl"}}, "test_split": "test"}
ITEMS = [
    {"text": "Ice is", "choices": [" cold", " a song", " loud"], "label": 0},
    {"text": "Fish live in", "choices": [" books", " water", " the attic"], "label": 1},
    {"text": "A dog says", "choices": [" nothing but the truth", " woof", " 12"], "label": 1},
]
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}", "target_delimiter": "", "fewshot_split": "test",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "reply": {
        "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["\n", "b", "c", "d", "e"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "fewshot_split": "test",
    },
    "rolling": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}{{choices[label]}}",
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
        ],
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three tasks over one file."""
    found = tmp_path / "tasks"
    found.mkdir()
    (found / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    for name, task in TASKS.items():
        write_task(found, name, **task)
    return found


def write_task(folder: Path, name: str, **fields: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **DATA, **fields}))


def evaluate_of(*entries: Any) -> EvaluateSpec:
    return EvaluateSpec.model_validate({"lm_eval": [*entries]})


def answer(request: EndpointRequest) -> Answer:
    """An answer that depends on the request alone."""
    number = int(hashlib.sha256(request.key.encode()).hexdigest()[:6], 16)
    return {"logprob": -1.0 - number / (1 << 24), "is_greedy": number % 2 == 0, "text": f" w{number % 7}a"}


def results_of(evaluate: EvaluateSpec, tiny_llama: Path, positions: int = 512) -> list[TaskResult]:
    tasks, tokenizer = LmEvalTasks(evaluate), load_tokenizer(tiny_llama)
    requests = tasks.requests(tokenizer, positions)
    assert len({request.key for request in requests}) == len(requests)
    return tasks.results(tokenizer, positions, {request.key: answer(request) for request in requests})


def test_an_entry_is_a_name_a_folder_or_a_section(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text(
        "name: x\nbase_model: random:tiny-llama\nstore: store\ndata: {sources: [{path: data.jsonl}]}\n"
        "evaluate: {lm_eval: [ifeval, ./tasks, {task: gsm8k, limit: 5, golden: true}]}\n"
    )
    by_name, local, section = read_spec(tmp_path / "pipeline.yaml").evaluate.lm_eval
    assert (by_name.task, by_name.is_folder, by_name.limit, by_name.chat_template) == ("ifeval", False, None, True)
    assert (local.task, local.is_folder, local.shown_name) == (str(tmp_path / "tasks"), True, "tasks")
    assert (section.limit, section.golden) == (5, True)


def test_a_file_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text(
        "name: x\nbase_model: random:tiny-llama\nstore: store\ndata: {sources: [{path: data.jsonl}]}\n"
        "evaluate: {lm_eval: [tasks/mine.yaml]}\n"
    )
    with pytest.raises(SpecError, match=r"evaluate\.lm_eval\.0.*'tasks/mine\.yaml'; give its folder"):
        read_spec(tmp_path / "pipeline.yaml")


def test_the_key_of_an_old_artifact_stays() -> None:
    assert "lm_eval" not in EvaluateSpec().result_fields()


def test_the_content_of_a_folder_decides_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.13")
    evaluate = evaluate_of(str(folder), "ifeval")
    before = lm_eval_settings(evaluate)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "words.pyc").write_text("x")
    assert lm_eval_settings(evaluate) == before
    (folder / "items.jsonl").write_text(json.dumps(ITEMS[0]) + "\n")
    assert lm_eval_settings(evaluate) != before
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.14")
    assert lm_eval_settings(evaluate_of("ifeval")) != {"version": "0.4.13", "tasks": before["tasks"]}


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("{folder}/lacking", r"evaluate\.lm_eval\.0\.task: cannot read the folder"),
        ("{folder}/empty", r"evaluate\.lm_eval\.0\.task: the folder .* has no task"),
        ("s3://bucket/tasks", r"evaluate\.lm_eval\.0\.task: got s3://bucket/tasks; lm-eval reads tasks from this"),
    ],
)
def test_a_folder_without_tasks(folder: Path, task: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.13")
    (folder / "empty").mkdir()
    with pytest.raises(StageFailed, match=why):
        lm_eval_settings(evaluate_of(task.format(folder=folder)))


def test_the_error_without_lm_eval_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", is_missing)
    for work in (lm_eval_settings, LmEvalTasks):
        with pytest.raises(StageFailed, match=r"evaluate\.lm_eval: .*'rayconteur\[lm-eval\]'"):
            work(evaluate_of("ifeval"))


def test_answers_are_read_from_responses() -> None:
    chat = chat_request([{"role": "user", "content": "Hi"}], False, {"max_tokens": 4})
    assert chat.read({"choices": [{"message": {"content": None}}]}) == {"text": ""}
    assert not chat.is_scored
    text = text_request("Hi", True, {})
    assert text.read({"choices": [{"text": " you"}]}) == {"text": " you"}
    scored = likelihood_request([5, 6, 7, 8], 2)
    told = {
        "tokens": [f"token_id:{number}" for number in (5, 6, 7, 8)],
        "token_logprobs": [None, -9.0, -0.5, -0.25],
        "top_logprobs": [None, {"token_id:1": -0.1}, {"token_id:7": -0.5}, {"token_id:9": -0.2, "token_id:8": -0.25}],
    }
    response: dict[str, Any] = {"choices": [{"logprobs": told}]}
    assert scored.read(response) == {"logprob": -0.75, "is_greedy": False}
    told["top_logprobs"][3] = {"token_id:8": -0.25}  # type: ignore[index]
    assert scored.read(response) == {"logprob": -0.75, "is_greedy": True}
    assert len({request.key for request in (scored, likelihood_request([5, 6, 7, 8], 3), text, chat)}) == 4
    sent = EndpointRequest(**json.loads(json.dumps(dataclasses.asdict(scored))))  # as a row for a worker
    assert (sent, sent.key) == (scored, scored.key)


class TestWithLmEval:
    """Tests of tasks that lm-eval runs."""

    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        pytest.importorskip("lm_eval", reason="needs lm-eval: pip install -c constraints.txt 'rayconteur[lm-eval]'")

    def test_scores_of_items_add_up_to_the_tasks_figures(self, folder: Path, tiny_llama: Path) -> None:
        found = {result.name: result for result in results_of(evaluate_of(str(folder)), tiny_llama)}
        assert [*found] == ["choice", "reply", "rolling"]
        for result in found.values():
            assert result.field == "evaluate.lm_eval.0"
            assert [item.id for item in result.items] == ["0", "1", "2"]
        choice = found["choice"].metrics[0]
        assert (choice.name, choice.higher_is_better) == ("acc", True)
        assert choice.value == pytest.approx(sum(choice.scores.values()) / 3)
        assert [reply.partition(": ")[0] for reply in found["choice"].items[0].replies] == ITEMS[0]["choices"]
        replies = [item.replies for item in found["choice"].items]
        best = [max(each, key=lambda reply: float(reply.rpartition(": ")[2])) for each in replies]
        right = [
            float(reply.startswith(item["choices"][item["label"]])) for reply, item in zip(best, ITEMS, strict=True)
        ]
        assert [*choice.scores.values()] == right
        rolling = found["rolling"].metrics[0]
        assert (rolling.name, rolling.higher_is_better) == ("word_perplexity", False)
        assert [*rolling.weights.values()] == [3.0, 4.0, 4.0]
        total = sum(rolling.scores[each] * rolling.weights[each] for each in rolling.scores)
        assert rolling.value == pytest.approx(math.exp(total / 11))
        assert TaskResult.from_json(found["rolling"].to_json()) == found["rolling"]

    def test_prompts_are_chats_or_texts(self, folder: Path, tiny_llama: Path) -> None:
        tokenizer = load_tokenizer(tiny_llama)
        chats = LmEvalTasks(evaluate_of({"task": str(folder), "num_fewshot": 1})).requests(tokenizer, 512)
        replies = [request for request in chats if not request.is_scored]
        assert {request.route for request in replies} == {"/v1/chat/completions"}
        assert [message["role"] for message in replies[0].body["messages"]] == ["user", "assistant", "user"]  # type: ignore[attr-defined]
        assert replies[0].body["messages"][-1]["content"] == "Ice is"  # type: ignore[index]
        expected = tokenizer.apply_chat_template(replies[0].body["messages"], add_generation_prompt=True)["input_ids"]
        prompts = [request.body["prompt"] for request in chats if request.is_scored]
        assert any(prompt[: len(expected)] == expected for prompt in prompts)  # type: ignore[index]
        texts = LmEvalTasks(evaluate_of({"task": str(folder), "chat_template": False})).requests(tokenizer, 512)
        assert [request.body["prompt"] for request in texts if not request.is_scored] == [
            item["text"] for item in ITEMS
        ]

    def test_a_reply_ends_before_every_stop_string(self, folder: Path, tiny_llama: Path) -> None:
        evaluate = evaluate_of({"task": str(folder), "chat_template": False})
        [request, *_] = [
            each for each in LmEvalTasks(evaluate).requests(load_tokenizer(tiny_llama), 512) if not each.is_scored
        ]
        assert request.body["stop"] == ["\n", "b", "c", "d"]  # an endpoint takes four
        assert (request.body["max_tokens"], request.body["temperature"]) == (8, 0)
        tasks, tokenizer = LmEvalTasks(evaluate), load_tokenizer(tiny_llama)
        answers: dict[str, Answer] = {}
        for each in tasks.requests(tokenizer, 512):
            answers[each.key] = {"logprob": -1.0, "is_greedy": False, "text": " cold e"}
        [reply] = [result for result in tasks.results(tokenizer, 512, answers) if result.name == "reply"]
        assert [item.replies for item in reply.items] == [[" cold "]] * 3

    def test_each_of_several_samples_has_its_seed(self, folder: Path, tiny_llama: Path) -> None:
        sampled = {**TASKS["reply"], "repeats": 3}
        sampled["generation_kwargs"] = {"until": [], "do_sample": True, "temperature": 0.7, "top_p": 0.9}
        write_task(folder, "reply", **sampled)
        requests = LmEvalTasks(evaluate_of(str(folder))).requests(load_tokenizer(tiny_llama), 512)
        replies = [request.body for request in requests if not request.is_scored]
        assert len(replies) == 9
        assert sorted(str(body["seed"]) for body in replies) == sorted("012" * 3)
        assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in replies} == {(0.7, 0.9, 256)}

    def test_long_texts_are_scored_in_windows(self, folder: Path, tiny_llama: Path) -> None:
        long = " ".join(f"word{number}" for number in range(60))
        (folder / "items.jsonl").write_text(json.dumps({"text": long, "choices": [" end"], "label": 0}) + "\n")
        tokenizer = load_tokenizer(tiny_llama)
        requests = LmEvalTasks(evaluate_of(str(folder))).requests(tokenizer, 34)
        windows = [request for request in requests if request.is_scored and request.num_context]
        scored = [(len(request.body["prompt"]), request.num_context) for request in windows]  # type: ignore[arg-type]
        assert max(length for length, _ in scored) == 33
        ids = tokenizer.encode(f"{long} end")
        assert sum(length - context for length, context in scored if context) >= len(ids)

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"generation_kwargs": {"num_beams": 4}}, r"generation_kwargs\.num_beams: got 4; the endpoint has until"),
            ({"doc_to_text": "{{lacking.text}}"}, "UndefinedError"),
            ({"dataset_kwargs": {"data_files": {"test": "lacking.jsonl"}}}, "lacking.jsonl"),
            ({"output_type": "wish"}, "Got invalid output_type 'wish'"),
            ({"unsafe_code": True}, "unsafe"),
        ],
    )
    def test_a_broken_task_is_one_sentence(
        self, folder: Path, tiny_llama: Path, fields: dict[str, Any], why: str
    ) -> None:
        write_task(folder, "reply", **{**TASKS["reply"], **fields})
        with pytest.raises(StageFailed, match=rf"evaluate\.lm_eval\.0: lm-eval cannot run .*{why}"):
            LmEvalTasks(evaluate_of(str(folder))).requests(load_tokenizer(tiny_llama), 512)

    @pytest.mark.parametrize(
        ("content", "why"), [("task: [", "cannot read .*reply.yaml"), ("group: x", "has the key")]
    )
    def test_a_file_that_is_no_task(self, folder: Path, tiny_llama: Path, content: str, why: str) -> None:
        for name in ("choice", "rolling"):
            (folder / f"{name}.yaml").unlink()
        (folder / "reply.yaml").write_text(content)
        with pytest.raises(StageFailed, match=rf"evaluate\.lm_eval\.0\.task: .*{why}"):
            LmEvalTasks(evaluate_of(str(folder))).requests(load_tokenizer(tiny_llama), 512)

    def test_the_tasks_of_a_group_are_one_result(
        self, folder: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lm_eval.tasks import TaskManager

        data = {"dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}}}
        for name in ("first", "second"):
            write_task(folder / "group", name, **{**TASKS["choice"], **data})
        group = {"group": "both", "task": ["first", "second"]}
        mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
        (folder / "group" / "both.yaml").write_text(json.dumps({**group, "aggregate_metric_list": [mean]}))
        manager = TaskManager(include_path=str(folder / "group"), include_defaults=False)
        monkeypatch.setattr("workflows.lm_eval.tasks._manager", lambda include_defaults: manager)
        [result] = results_of(evaluate_of("both"), tiny_llama)
        assert (result.name, len(result.items)) == ("both", 6)
        assert {item.task for item in result.items} == {"first", "second"}
        [metric] = result.metrics
        assert len(metric.scores) == 6
        assert metric.value == pytest.approx(sum(metric.scores.values()) / 6)
        with pytest.raises(StageFailed, match=r"evaluate\.lm_eval\.0\.task: lm-eval has no task.*'neither'"):
            results_of(evaluate_of("neither"), tiny_llama)


def test_windows_are_the_same_twice(folder: Path, tiny_llama: Path) -> None:
    """Few-shot examples are drawn at random, and both runs of lm-eval must draw the same."""
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install -c constraints.txt 'rayconteur[lm-eval]'")
    evaluate = evaluate_of({"task": str(folder), "num_fewshot": 1})
    keys: list[Sequence[str]] = []
    for _ in range(2):
        requests = LmEvalTasks(evaluate).requests(load_tokenizer(tiny_llama), 512)
        keys.append([request.key for request in requests])
    assert keys[0] == keys[1]
