"""optimize: checkpoint to release.

    rayconteur optimize PIPELINE

Leaves in the store: `model/`, a plain Hugging Face folder with the adapter merged, measured against the checkpoint.
"""

import tempfile
from pathlib import Path
from typing import Any

import ray

from workflows.cluster import worker_environment
from workflows.pipeline import Context
from workflows.spec import PipelineSpec
from workflows.store import Store

_PROBE_CONVERSATIONS = 8


def run(context: Context) -> dict[str, Any]:
    """Merge, convert and measure in one task on the cluster."""
    store, spec = context.store, context.spec
    store.clear("optimize", context.key)
    task = ray.remote(_release).options(
        num_cpus=spec.evaluate.cpus_per_worker,
        runtime_env={"env_vars": worker_environment(spec.evaluate.cpus_per_worker, gpus=0)},
    )
    corpus = context.inputs["train"].inputs["prepare"]
    figures: dict[str, Any] = ray.get(
        task.remote(spec.model_dump(), store.uri, context.inputs["train"].key, corpus, context.key)
    )
    return figures


def _release(raw_spec: dict[str, Any], store_uri: str, checkpoint: str, corpus: str, key: str) -> dict[str, Any]:
    import torch

    from models.base import cache_folder, resolve
    from models.compress import release
    from workflows.corpus import open_split

    spec, store = PipelineSpec.model_validate(raw_spec), Store(store_uri)
    rows = open_split(store, "prepare", corpus, "corpus", "held_out", ["input_ids", "supervised"])
    probe = [(row["input_ids"], row["supervised"]) for row in rows.take(min(_PROBE_CONVERSATIONS, len(rows)))]
    with tempfile.TemporaryDirectory() as name:
        figures = release(
            resolve(spec.base_model),
            store.local_folder("train", checkpoint, "model", cache_folder()),
            Path(name),
            torch.bfloat16 if spec.optimize.weights == "bf16" else torch.float32,
            probe,
        )
        store.add_folder(name, "optimize", key, "model")
    return figures
