"""Compare lm-eval's answers through the endpoint's code, item by item, with those of its own Hugging Face backend.

    pip install -c constraints.txt 'rayconteur[lm-eval]'
    python benchmarks/lm_eval_parity.py [--items 60] [--chat-items 20] [--model NAME]

Three tasks written here: replies to generate, multiple choice by log-likelihood, and the perplexity of texts, many of
them longer than the window of 128 tokens that both sides get. Both compute in float32, ours on torch and on OpenVINO.
Per variant: tokens scored, the largest difference of a log-likelihood, answers whose greedy flag or text differs,
seconds. Then the two steps of `evaluate`: all requests, and lm-eval's results; twice, so that no engine starts the
second time. The last line is a JSON object; the exit code is 1 if anything differs.
"""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from models.base.load import load_tokenizer, resolve
from models.base.sizes import describe
from workflows.lm_eval.model import EndpointLM
from workflows.lm_eval.requests import EndpointRequest
from workflows.lm_eval.tasks import LmEvalTasks, task_dicts
from workflows.spec import EvaluateSpec
from workflows.store import Store
from workflows.suites.answering import AnsweringModel, engine_of
from workflows.suites.reply_cache import ReplyCache

# Sums over some hundred tokens in float32, with another order of summation.
MAX_APART = 5e-3
WINDOW = 128
THREADS = 2

THINGS = {
    "tent": ("two rooms", "a single pole", "three windows", "no floor"),
    "lantern": ("a glass shade", "a solar panel", "a crank on its side", "two batteries"),
    "stove": ("one burner", "a wind guard made of steel", "folding legs", "a gas valve"),
    "backpack": ("a rain cover", "six pockets", "padded straps and a hip belt", "no zip at all"),
    "kettle": ("a long spout", "a whistle", "a wooden handle", "an enamel coat"),
    "hammock": ("two ropes", "a mosquito net", "strong steel hooks", "a pillow"),
}
PLACES = ("by the lake", "in the old mill", "on the north ridge", "behind the station", "near the harbour")
TASKS: dict[str, dict[str, Any]] = {
    "replies": {
        "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n", "?"], "max_gen_toks": 16, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "choices": {
        "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    },
    "texts": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    },
}  # fmt: skip


def write_tasks(folder: Path, num_items: int) -> None:
    """A folder for each task: its YAML file, and its items as JSON lines."""
    rng = random.Random(1)
    names = [*THINGS]
    items: dict[str, list[dict[str, Any]]] = {name: [] for name in TASKS}
    for number in range(num_items):
        thing, place = names[number % len(names)], rng.choice(PLACES)
        facts = rng.sample(THINGS[thing], 2)
        other = [fact for name in names if name != thing for fact in THINGS[name]]
        label = rng.randrange(4)
        wrong = rng.sample(other, 3)
        choices = [*wrong[:label], facts[0], *wrong[label:]]
        told = f"Shelf {number + 1} {place} holds a {thing} with {facts[0]} and {facts[1]}."
        asked = f"{told} Question: What does the {thing} on shelf {number + 1} have? Answer:"
        items["choices"].append({"text": asked, "choices": choices, "label": label})
        items["replies"].append({"text": f"{told} Say in one sentence what it is good for.", "answer": facts[0]})
        sentences = [
            f"The {rng.choice(names)} {rng.choice(PLACES)} has {rng.choice(THINGS[rng.choice(names)])}."
            for _ in range(1 + number % 12)
        ]
        items["texts"].append({"text": " ".join([told, *sentences])})
    for name, task in TASKS.items():
        (folder / name).mkdir()
        lines = "".join(json.dumps(item) + "\n" for item in items[name])
        (folder / name / "items.jsonl").write_text(lines)
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "items.jsonl"}}}
        splits = {"test_split": "test", "fewshot_split": "test"}
        (folder / name / "task.yaml").write_text(json.dumps({"task": name, **data, **splits, **task}))


class NotingHFLM(HFLM):  # type: ignore[misc]
    """lm-eval's own backend; notes the numbers of tokens that it scores."""

    def _loglikelihood_tokens(self, requests: Any, **more: Any) -> Any:
        self.lengths = getattr(self, "lengths", [])
        self.lengths += [(len(context), len(continuation)) for _, context, continuation in requests]
        return super()._loglikelihood_tokens(requests, **more)


class NotingEndpointLM(EndpointLM):
    """Ours; notes the same."""

    def _loglikelihood_tokens(self, requests: Any, **more: Any) -> Any:
        self.lengths = getattr(self, "lengths", [])
        self.lengths += [(len(context), len(continuation)) for _, context, continuation in requests]
        return super()._loglikelihood_tokens(requests, **more)


@dataclass(frozen=True)
class Variant:
    """A task, and how it is asked."""

    task: str
    chat: bool = False
    shots: int = 0
    windowed: bool = False
    limit: int | None = None

    @property
    def name(self) -> str:
        return f"{self.task}{', chat' * self.chat}{f', {self.shots} examples' if self.shots else ''}"


def variants(chat_items: int) -> list[Variant]:
    """All of them; those with long prompts on fewer items."""
    return [
        Variant("choices"), Variant("texts", windowed=True), Variant("replies"),
        Variant("choices", chat=True, limit=chat_items), Variant("replies", chat=True, shots=2, limit=chat_items),
    ]  # fmt: skip


def evaluated(lm: Any, folder: Path, variant: Variant) -> tuple[list[Any], dict[str, Any], float]:
    """The model's answers to each item, the task's metrics, and seconds."""
    began = time.perf_counter()
    found = simple_evaluate(
        model=lm, tasks=task_dicts(folder / variant.task, "tasks"), num_fewshot=variant.shots or None,
        apply_chat_template=variant.chat, fewshot_as_multiturn=variant.chat, bootstrap_iters=0,
        limit=variant.limit,
    )  # fmt: skip
    assert found is not None
    samples = sorted(found["samples"][variant.task], key=lambda sample: sample["doc_id"])
    answers = [[reply[0] for reply in sample["resps"]] for sample in samples]
    return answers, found["results"][variant.task], time.perf_counter() - began


def compared(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """How far answers to the same items are apart."""
    pairs = [
        (one, other) for mine, his in zip(ours, theirs, strict=True) for one, other in zip(mine, his, strict=True)
    ]
    if isinstance(pairs[0][0], str):
        return {"answers": len(pairs), "differ": sum(one != other for one, other in pairs)}
    scored = [(one, other) if isinstance(one, tuple) else ((one, None), (other, None)) for one, other in pairs]
    return {
        "answers": len(pairs),
        "differ": sum(mine[1] != his[1] for mine, his in scored),
        "apart": max(abs(mine[0] - his[0]) for mine, his in scored),
        "largest": max(abs(his[0]) for _, his in scored),
    }


def line(name: str, engine: str, found: dict[str, Any]) -> str:
    apart = f"{found['apart']:.1e} of {found['largest']:.0f}" if "apart" in found else ""
    return (
        f"{name:24} {engine:9} {found['answers']:7} {found.get('tokens', ''):>7} {apart:>17} {found['differ']:7} "
        f"{found['seconds']:.0f} {found['hf_seconds']:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--chat-items", type=int, default=20)
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model_folder = resolve(options.model)
    tokenizer, positions = load_tokenizer(model_folder), describe(model_folder)["max_positions"]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "tasks"
        folder.mkdir()
        write_tasks(folder, options.items)
        titles = ("answers", "tokens", "apart, of", "differ", "s", "hf s")
        print(f"{'task':24} {'engine':9} {titles[0]:>7} {titles[1]:>7} {titles[2]:>17} {titles[3]:>7}", *titles[4:])
        theirs: dict[Variant, Any] = {}
        caches = {engine: ReplyCache(Store(str(Path(made) / "store")), engine) for engine in ("torch", "openvino")}
        for variant in variants(options.chat_items):
            theirs[variant] = by_hugging_face(model_folder, folder, variant)
            for engine, cache in caches.items():
                with answering(model_folder, cache, engine == "openvino") as model:
                    found = one(model, tokenizer, positions, folder, variant, theirs[variant])
                rows[f"{variant.name} ({engine})"] = found
                print(line(variant.name, engine, found), flush=True)
        two_steps = in_two_steps(model_folder, tokenizer, positions, folder, Path(made), theirs)
    passed = two_steps["same_metrics"] and all(
        row["same_tokens"] and not row["differ"] and row.get("apart", 0) <= MAX_APART for row in rows.values()
    )
    result = {"benchmark": "lm_eval_parity", "model": options.model, "items": options.items, "passed": passed}
    print(json.dumps({**result, "max_apart": MAX_APART, "variants": rows, "two_steps": two_steps}))
    sys.exit(not passed)


def answering(model_folder: Path, cache: ReplyCache, in_bulk: bool = False) -> AnsweringModel:
    start = engine_of(lambda _: model_folder, THREADS, "cpu", in_bulk)
    return AnsweringModel(start, lambda: load_tokenizer(model_folder), cache)


def by_hugging_face(model_folder: Path, folder: Path, variant: Variant) -> tuple[list[Any], Any, list[Any], float]:
    window = {"max_length": WINDOW} if variant.windowed else {}
    lm = NotingHFLM(pretrained=str(model_folder), dtype="float32", device="cpu", batch_size=8, **window)
    answers, metrics, seconds = evaluated(lm, folder, variant)
    return answers, metrics, getattr(lm, "lengths", []), seconds


def one(
    model: AnsweringModel, tokenizer: Any, positions: int, folder: Path, variant: Variant, theirs: Any
) -> dict[str, Any]:
    """A variant through the endpoint's code, against lm-eval's own backend."""

    def ask(requests: Sequence[EndpointRequest]) -> Any:
        return model.ask(requests, lambda: None)

    lm = NotingEndpointLM(tokenizer, WINDOW + 2 if variant.windowed else positions, ask)
    answers, metrics, seconds = evaluated(lm, folder, variant)
    expected, his_metrics, lengths, his_seconds = theirs
    found = compared(answers, expected)
    mine = getattr(lm, "lengths", [])
    if mine:
        found["tokens"] = sum(scored for _, scored in mine)
    names = [name for name, value in his_metrics.items() if isinstance(value, float) and "stderr" not in name]
    return {
        **found,
        "same_tokens": mine == lengths,
        "metrics": {name: [metrics[name], his_metrics[name]] for name in names},
        "seconds": seconds,
        "hf_seconds": his_seconds,
    }


def in_two_steps(
    model_folder: Path, tokenizer: Any, positions: int, folder: Path, made: Path, theirs: Any
) -> dict[str, Any]:
    """As `evaluate` does it: all requests first, then lm-eval's results; and again, from the store."""
    tasks = LmEvalTasks(EvaluateSpec.model_validate({"lm_eval": [
        {"task": f"{folder}/{name}", "chat_template": False} for name in ("replies", "choices")
    ]}))  # fmt: skip
    requests = tasks.requests(tokenizer, positions)
    seconds, asked = [], []
    for _ in range(2):
        cache = ReplyCache(Store(str(made / "store")), "two_steps")
        began = time.perf_counter()
        with answering(model_folder, cache) as model:
            answers = model.ask(requests, lambda: None)
            asked.append(model.has_started)
        cache.save()
        seconds.append(time.perf_counter() - began)
    results = tasks.results(tokenizer, positions, {r.key: dict(a) for r, a in zip(requests, answers, strict=True)})
    expected = {
        variant.task: metrics for variant, (_, metrics, *_) in theirs.items() if variant == Variant(variant.task)
    }
    same = all(
        metric.value == expected[result.name][f"{metric.name},none"]
        for result in results
        for metric in result.metrics
    )
    return {"requests": len(requests), "seconds": seconds, "engine_started": asked, "same_metrics": same}


if __name__ == "__main__":
    main()
