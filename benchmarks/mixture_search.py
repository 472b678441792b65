"""A search over the mixture of sources: how well small models predict it, and what it gains on SmolLM2.

    python benchmarks/mixture_search.py --data sgd.jsonl.gz chitchat.jsonl.gz instruct_mix.jsonl.gz kdconv.jsonl.gz

Runs `tune` with `searcher: mixture` and `--proxies` + `--unseen` small models. The regression is fitted on the first
`--proxies` of them, and predicts the others: their rank correlation (Spearman), beside that of other regressions.
Then SmolLM2 is trained on the chosen mixture and in proportion to tokens, with the settings of the search, and their
losses are compared conversation by conversation over all held-out ones, with a bootstrap interval (95 %). `--store`
keeps everything, so that an interrupted benchmark goes on. Prints two Markdown tables, and one JSON object as the
last line.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from scipy.stats import spearmanr

from models.base import adapters
from models.base.load import load_model, resolve
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.loss import supervised_loss_sum
from models.mixture_law import MixtureLaw
from models.packing import pack_trees
from models.trees import tree_of
from workflows.cluster.connection import ENVIRONMENT
from workflows.corpus.reader import corpus_files
from workflows.progress import Progress, table_text
from workflows.runs.run import run_stages
from workflows.search.mixture import losses_of
from workflows.search.records import read_search
from workflows.search.table import forecast_rows
from workflows.spec import PipelineSpec
from workflows.store import Store

RESAMPLES = 10_000


def pipeline(asked: argparse.Namespace, store: str) -> dict[str, Any]:
    """The search's pipeline file."""
    proxy = {"hidden_size": 32, "num_layers": 1, "max_steps": asked.proxy_steps, "learning_rate": 2e-3}
    searcher = {"name": "mixture", "proxies": asked.proxies + asked.unseen, "proxy": proxy}
    sources = [{"path": str(Path(file).resolve()), "limit": asked.limit} for file in asked.data]
    return {
        "name": "mixture",
        "store": store,
        "base_model": "builtin:smollm2-135m-instruct",
        "data": {"sources": sources, "fields": {"messages": "messages"}, "held_out_share": 0.04, "max_length": 512},
        "train": {
            "max_steps": asked.steps, "checkpoint_every_steps": asked.steps, "batch_tokens": 512,
            "learning_rate": 5e-4, "held_out_tokens": 16_384,
        },
        "tune": {"searcher": searcher},
    }  # fmt: skip


def run(values: dict[str, Any], last: str) -> tuple[Any, Any]:
    """The artifacts of a pipeline up to a stage, and the store."""
    spec = PipelineSpec.model_validate(values)
    store = Store(spec.store)
    with Progress() as progress:
        return run_stages(spec, store, progress, last, connect=lambda stages: None), store


def whole_law(weights: Any, losses: Any, total: Any, unseen: Any) -> Any:
    return MixtureLaw.fit(weights, total[:, None], total).predict(unseen)


def law_of_each(weights: Any, losses: Any, total: Any, unseen: Any) -> Any:
    return MixtureLaw.fit(weights, losses, total).predict(unseen)


def linear(weights: Any, losses: Any, total: Any, unseen: Any) -> Any:
    slopes, *_ = np.linalg.lstsq(weights, total, rcond=None)
    return unseen @ slopes


def quadratic(weights: Any, losses: Any, total: Any, unseen: Any) -> Any:
    pairs = [(one, other) for one in range(weights.shape[1]) for other in range(one, weights.shape[1])]
    known, asked = (
        np.column_stack([each[:, one] * each[:, other] for one, other in pairs]) for each in (weights, unseen)
    )
    slopes, *_ = np.linalg.lstsq(known, total, rcond=None)
    return asked @ slopes


REGRESSIONS = {
    "mixing law of each source (ours)": law_of_each, "mixing law of the whole": whole_law, "linear": linear,
    "quadratic": quadratic,
}  # fmt: skip


def agreement(proxies: Any, names: Sequence[str], fitted: int) -> dict[str, dict[str, float]]:
    """Of each regression on the first `fitted` small models: rank correlation and error on the others."""
    weights, losses, total = losses_of(proxies, names)
    found = {}
    print(f"\n| regression of {fitted} small models | Spearman on {len(total) - fitted} unseen | mean error, nats |")
    print("|---|---|---|")
    for name, predict in REGRESSIONS.items():
        predicted = predict(weights[:fitted], losses[:fitted], total[:fitted], weights[fitted:])
        rank = float(spearmanr(predicted, total[fitted:]).statistic)
        error = float(np.abs(predicted - total[fitted:]).mean())
        print(f"| {name} | {rank:.3f} | {error:.4f} |")
        found[name] = {"spearman": rank, "error": error}
    print(f"\nlosses of the small models: {total.min():.3f} to {total.max():.3f}\n")
    return found


def held_out_losses(values: dict[str, Any]) -> tuple[Any, Any]:
    """Train; (N,) the summed loss and (N,) the targets of each held-out conversation."""
    done, store = run(values, "train")
    folder = store.local_folder("train", done["train"].key, "model")
    base = load_model(resolve(values["base_model"]), torch.float32, PACKED_ATTENTION)
    model = adapters.load(base, folder).eval()
    rows = corpus_files(store, done["prepare"].key, "held_out").to_table().to_pylist()
    batches = [pack_trees([tree_of(row)]) for row in rows]
    with torch.inference_mode():
        losses = np.array([float(supervised_loss_sum(model, batch)) for batch in batches])
    return losses, np.array([len(each.targets) for each in batches])


def interval(one: Any, other: Any, targets: Any) -> tuple[float, float, float]:
    """The mean difference in nats a token, and its 95 % interval by a bootstrap over conversations."""
    picks = np.random.default_rng(0).integers(0, len(targets), (RESAMPLES, len(targets)))
    drawn = (one - other)[picks].sum(1) / targets[picks].sum(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float((one - other).sum() / targets.sum()), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--proxies", type=int, default=64)
    parser.add_argument("--unseen", type=int, default=16)
    parser.add_argument("--proxy-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--limit", type=int, default=3000, help="lines of each file")
    parser.add_argument("--store", default=tempfile.mkdtemp())
    asked = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    # With the default port, another cluster's dashboard answers for this one, and Ray Train removes its workers
    # (findings/ray_dashboard_of_another_cluster.sh).
    without_dashboard = {"include_dashboard": False, "dashboard_port": 0}
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR", **without_dashboard)
    values, began = pipeline(asked, asked.store), time.perf_counter()
    done, store = run(values, "tune")
    took = time.perf_counter() - began
    key = done["tune"].key
    search, proxies = read_search(store, key), read_search(store, f"{key}/proxies")
    assert search is not None
    assert search.forecast is not None
    found = agreement(proxies, search.forecast.sources, asked.proxies)
    print(table_text(*forecast_rows(search)))
    trials = sorted(search.trials, key=lambda trial: trial.number)
    compared = []
    for trial in trials[:2]:
        weights = trial.values.values()
        sources = [
            {**each, "weight": weight} for each, weight in zip(values["data"]["sources"], weights, strict=True)
        ]
        compared.append(held_out_losses({**values, "tune": None, "data": {**values["data"], "sources": sources}}))
    (chosen, targets), (proportional, _) = compared
    mean, low, high = interval(chosen, proportional, targets)
    print(
        f"\nchosen against in proportion, all {len(targets):,} held-out conversations: {mean:+.4f} nats a token "
        f"[{low:+.4f}, {high:+.4f}]; the search took {took / 60:.0f} min"
    )
    result = {
        "regressions": found, "spearman_of_the_search": search.forecast.spearman, "difference": mean,
        "interval": [low, high], "conversations": len(targets), "search_s": took,
    }  # fmt: skip
    print(json.dumps(result))
    ray.shutdown()


if __name__ == "__main__":
    main()
