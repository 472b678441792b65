"""optimize: checkpoint to release.

    rayconteur optimize PIPELINE

Leaves in the store: `model/`, a plain Hugging Face folder with the adapter merged, and for CPUs `openvino/`, the same
as an OpenVINO model, both measured against the checkpoint.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from workflows.cluster import worker_environment
from workflows.pipeline import Context
from workflows.spec import PipelineSpec
from workflows.store import Store

if TYPE_CHECKING:
    from models.compress import Probe  # at run time it would import torch

_PROBE_CONVERSATIONS = 16


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
    from models.base import cache_folder, resolve
    from models.compress import release
    from workflows.corpus import open_split

    spec, store = PipelineSpec.model_validate(raw_spec), Store(store_uri)
    rows = open_split(store, "prepare", corpus, "corpus", "held_out", ["input_ids", "supervised"])
    conversations = [(row["input_ids"], row["supervised"]) for row in rows.take(min(_PROBE_CONVERSATIONS, len(rows)))]
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        probe, figures = release(
            resolve(spec.base_model),
            store.local_folder("train", checkpoint, "model", cache_folder()),
            model,
            spec.optimize.weights,
            conversations,
            spec.optimize.max_perplexity_increase,
        )
        store.add_folder(str(model), "optimize", key, "model")
        exported = _export(spec, model, Path(name) / "openvino", probe)
        if exported["openvino"] == "exported":
            store.add_folder(str(Path(name) / "openvino"), "optimize", key, "openvino")
    return {**figures, **exported}


def _export(spec: PipelineSpec, model: Path, target: Path, probe: "Probe") -> dict[str, Any]:
    """The figures of the OpenVINO export; `openvino` is "exported", or says why there is none."""
    from models.compress import release_for_openvino
    from models.openvino_export import folder_refusal

    if not spec.serve.may_use_openvino:
        return {"openvino": "serve.engine and serve.gpus_per_replica have no use for it"}
    refusal = folder_refusal(model)
    if refusal is None:
        return {**release_for_openvino(model, target, spec.optimize.weights, probe), "openvino": "exported"}
    if spec.serve.engine == "openvino":
        raise ValueError(f"serve.engine: openvino cannot serve this model: {refusal}; take auto or torch")
    if spec.optimize.weights == "int8":
        raise ValueError(f"optimize.weights: int8 needs an OpenVINO export, and there is none: {refusal}; take bf16")
    return {"openvino": refusal}
