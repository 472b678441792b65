"""EleutherAI's lm-evaluation-harness over HTTP, compared item by item with its Hugging Face backend in float32."""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from trial import Endpoint, run_all, usage

# Tolerances for log-likelihoods of texts of a dozen tokens: float32 with another order of summation; bf16.
MAX_APART = {"torch": 2e-3}
OTHERS_APART = 1.5
FACTS = [
    ("The capital of France is", [" Paris", " a horse", " blue"], 0),
    ("Two and two are", [" four", " forty apples", " Rome"], 0),
    ("Fish live in", [" a book", " water", " the attic of my house"], 1),
    ("At night the sky is", [" dark", " edible", " seven"], 0),
    ("A dog says", [" nothing but the truth", " woof"], 1),
    ("Ice is", [" frozen water", " a kind of music", " 12"], 0),
]
FOLDER = Path(tempfile.mkdtemp())
COMMON = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(FOLDER / "facts.jsonl")}}}
TASKS: dict[str, dict[str, Any]] = {
    "ours_choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    },
    "ours_reply": {
        "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "ours_rolling": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}{{choices[label]}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}  # fmt: skip


def write_tasks() -> None:
    """Custom tasks as a user writes them: YAML, and a file of JSON lines."""
    lines = [json.dumps({"text": text, "choices": choices, "label": label}) for text, choices, label in FACTS]
    (FOLDER / "facts.jsonl").write_text("\n".join(lines) + "\n")
    for name, task in TASKS.items():
        (FOLDER / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **COMMON, **task}))


def evaluated(model: str, task: str, arguments: dict[str, Any], **more: Any) -> list[Any]:
    """The model's answer to each item."""
    found = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=[task], log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False), **more,
    )  # fmt: skip
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


@functools.cache
def by_hugging_face(folder: str, task: str) -> list[Any]:
    return evaluated("hf", task, {"pretrained": folder, "dtype": "float32", "device": "cpu"})


def over_http(endpoint: Endpoint, task: str, **arguments: Any) -> list[Any]:
    told = {
        "model": endpoint.model, "base_url": f"{endpoint.url}/completions", "tokenizer_backend": "huggingface",
        "tokenizer": endpoint.folder, "max_retries": 1, "max_length": 512, **arguments,
    }  # fmt: skip
    return evaluated("local-completions", task, told)


def same_likelihoods(endpoint: Endpoint, found: list[Any], expected: list[Any]) -> None:
    most = MAX_APART.get(endpoint.engine, OTHERS_APART)
    for one, other in zip(found, expected, strict=True):
        for (mine, _), (theirs, _) in zip(one, other, strict=True):
            assert abs(mine - theirs) <= most, f"{mine} here, {theirs} by its own backend"
    if endpoint.engine == "torch":
        greedy = [[is_greedy for _, is_greedy in one] for one in found]
        assert greedy == [[is_greedy for _, is_greedy in one] for one in expected]


@usage("local-completions: multiple choice, as token ids, against its hf backend")
def _(endpoint: Endpoint) -> None:
    expected = by_hugging_face(endpoint.folder, "ours_choice")
    same_likelihoods(endpoint, over_http(endpoint, "ours_choice"), expected)


@usage("local-completions: multiple choice, as texts")
def _(endpoint: Endpoint) -> None:
    expected = by_hugging_face(endpoint.folder, "ours_choice")
    same_likelihoods(endpoint, over_http(endpoint, "ours_choice", tokenized_requests=False), expected)


@usage("local-completions: multiple choice, batches of 4, 2 at once")
def _(endpoint: Endpoint) -> None:
    expected = by_hugging_face(endpoint.folder, "ours_choice")
    found = over_http(endpoint, "ours_choice", num_concurrent=2, batch_size=4)
    same_likelihoods(endpoint, found, expected)


@usage("local-completions: generation against its hf backend")
def _(endpoint: Endpoint) -> None:
    found = over_http(endpoint, "ours_reply")
    assert len(found) == len(FACTS)
    if endpoint.engine == "torch":
        assert found == by_hugging_face(endpoint.folder, "ours_reply")


@usage("local-completions: rolling log-likelihood (perplexity)")
def _(endpoint: Endpoint) -> None:
    found = over_http(endpoint, "ours_rolling")
    expected = by_hugging_face(endpoint.folder, "ours_rolling")
    most = MAX_APART.get(endpoint.engine, OTHERS_APART)
    assert all(abs(one[0] - other[0]) <= most for one, other in zip(found, expected, strict=True))


@usage("local-chat-completions: generation with the chat template")
def _(endpoint: Endpoint) -> None:
    told = {"model": endpoint.model, "base_url": f"{endpoint.url}/chat/completions", "max_retries": 1}
    found = evaluated("local-chat-completions", "ours_reply", told, apply_chat_template=True)
    assert len(found) == len(FACTS)


@usage("local-chat-completions: few shots as turns, a system instruction")
def _(endpoint: Endpoint) -> None:
    told = {"model": endpoint.model, "base_url": f"{endpoint.url}/chat/completions", "max_retries": 1}
    more = {"num_fewshot": 2, "fewshot_as_multiturn": True, "system_instruction": "Be brief."}
    found = evaluated("local-chat-completions", "ours_reply", told, apply_chat_template=True, **more)
    assert len(found) == len(FACTS)


@usage("local-completions with the endpoint's own tokenizer (/tokenizer_info)")
def _(endpoint: Endpoint) -> None:
    expected = by_hugging_face(endpoint.folder, "ours_choice")
    found = over_http(endpoint, "ours_choice", tokenizer_backend="remote", tokenizer=None)
    same_likelihoods(endpoint, found, expected)


@usage("lm-eval run, from the command line")
def _(endpoint: Endpoint) -> None:
    arguments = (
        f"model={endpoint.model},base_url={endpoint.url}/completions,tokenizer={endpoint.folder},max_retries=1"
    )
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments,
        "--tasks", "ours_choice", "--include_path", str(FOLDER),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-600:]
    assert "ours_choice" in done.stdout


write_tasks()
run_all()
