"""lm-eval through the endpoint's code, item by item against its own backend for Hugging Face models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from models.base.load import load_tokenizer
from models.base.sizes import describe
from models.errors import RayconteurError
from workflows.lm_eval.requests import Answer, EndpointRequest, likelihood_request, text_request
from workflows.store import Store
from workflows.suites.answering import AnsweringModel, engine_of
from workflows.suites.reply_cache import ReplyCache

WINDOW = 48
ITEMS = [
    {"text": f"Shelf {number} holds a tent with {number % 3} poles.", "choices": [" yes", " not at all", " 12"]}
    for number in range(6)
]
DATA = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "items.jsonl"}}, "test_split": "test"}
TASKS: dict[str, dict[str, Any]] = {
    "choice": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "0"},
    "reply": {
        "output_type": "generate_until", "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
    },
    "rolling": {"output_type": "loglikelihood_rolling", "doc_to_target": "{{(text + ' ') * 4}}"},
}  # fmt: skip


@pytest.fixture
def model(tiny_llama: Path, make_loud: Any, tmp_path: Path) -> Path:
    """A model folder with large logits, so that greedy tokens are not ties."""
    folder = tmp_path / "model"
    make_loud(tiny_llama).save_pretrained(folder)
    load_tokenizer(tiny_llama).save_pretrained(folder)
    return folder


def answering(model: Path, store: Path, in_bulk: bool = False) -> AnsweringModel:
    cache = ReplyCache(Store(str(store)), "model")
    return AnsweringModel(engine_of(lambda _: model, 1, "cpu", in_bulk), lambda: load_tokenizer(model), cache)


@pytest.mark.parametrize(("task", "chat"), [("choice", False), ("choice", True), ("reply", True), ("rolling", False)])
def test_answers_are_those_of_its_own_backend(task: str, chat: bool, model: Path, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'rayconteur[lm-eval]'")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from workflows.lm_eval.model import EndpointLM
    from workflows.lm_eval.tasks import task_dicts

    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (tmp_path / "task.yaml").write_text(json.dumps({"task": task, **DATA, "doc_to_text": "{{text}}", **TASKS[task]}))
    windowed = task == "rolling"
    theirs = HFLM(
        pretrained=str(model), dtype="float32", device="cpu", batch_size=1, max_length=WINDOW if windowed else None
    )

    def answers(lm: Any) -> list[Any]:
        loaded = TaskManager(include_defaults=False).load(task_dicts(tmp_path, "tasks"))
        found = lm_eval.evaluate(lm=lm, task_dict=loaded, apply_chat_template=chat, bootstrap_iters=0)
        return [reply for sample in found["samples"][task] for [reply] in sample["resps"]]

    with answering(model, tmp_path / "store") as asked:

        def ask(requests: Sequence[EndpointRequest]) -> list[Answer]:
            return [dict(answer) for answer in asked.ask(requests, lambda: None)]

        positions = WINDOW + 2 if windowed else describe(model)["max_positions"]
        ours = answers(EndpointLM(load_tokenizer(model), positions, ask))
    expected = answers(theirs)
    assert len(ours) == len(expected) == len(ITEMS) * (3 if task == "choice" else 1)
    if task == "reply":  # the endpoint leaves out a character that the limit of tokens has cut
        assert [text.rstrip("\ufffd") for text in ours] == [text.rstrip("\ufffd") for text in expected]
    elif windowed:
        assert ours == pytest.approx(expected, abs=1e-2)
    else:
        assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in expected], abs=1e-3)
        assert [is_greedy for _, is_greedy in ours] == [is_greedy for _, is_greedy in expected]


def test_answers_are_kept_in_the_store(model: Path, tmp_path: Path) -> None:
    requests = [likelihood_request([5, 6, 7, 8], 2), text_request("Once", True, {"max_tokens": 3, "temperature": 0})]
    ended: list[None] = []
    cache = ReplyCache(Store(str(tmp_path / "store")), "model")
    start = engine_of(lambda _: model, 1, "cpu", False)
    with AnsweringModel(start, lambda: load_tokenizer(model), cache) as asked:
        first = asked.ask(requests, lambda: ended.append(None))
        assert asked.has_started
    cache.save()
    with answering(model, tmp_path / "store") as asked:
        assert asked.ask([*requests[::-1], requests[0]], lambda: ended.append(None)) == [first[1], first[0], first[0]]
        assert not asked.has_started
    assert len(ended) == 5


def test_the_engines_give_the_same_answers(model: Path, tmp_path: Path) -> None:
    requests = [
        likelihood_request([5, 6, 7, 8], 2),
        text_request("Once upon", True, {"max_tokens": 6, "temperature": 0}),
    ]
    with answering(model, tmp_path / "torch") as asked:
        scored, said = asked.ask(requests, lambda: None)
    with answering(model, tmp_path / "openvino", in_bulk=True) as asked:
        also_scored, also_said = asked.ask(requests, lambda: None)
    assert (said, scored["is_greedy"]) == (also_said, also_scored["is_greedy"])
    assert scored["logprob"] == pytest.approx(also_scored["logprob"], abs=1e-3)  # type: ignore[arg-type]


def test_a_request_that_the_endpoint_refuses_is_one_sentence(model: Path, tmp_path: Path) -> None:
    refused = text_request("Once", True, {"max_tokens": 3, "temperature": 9})
    with (
        answering(model, tmp_path / "store") as asked,
        pytest.raises(RayconteurError, match=r"evaluate\.lm_eval: temperature"),
    ):
        asked.ask([refused], lambda: None)
