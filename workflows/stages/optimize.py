"""optimize: checkpoint to release.

    rayconteur optimize PIPELINE

Leaves in the store: `model/`, a plain Hugging Face folder with the adapter merged; for CPUs `openvino/`, the same as
an OpenVINO model; and where `optimize.targets` names them `vllm/`, compressed tensors for GPUs, and `gguf/`, a
file for llama.cpp. Of an adversarial pair also `discriminator/`, with which the endpoint takes the best of several
replies. Each is measured against the checkpoint, and refused where its perplexity is too high.
"""

from typing import Any

import ray

from workflows.cluster.workers import worker_environment
from workflows.release.make import make_release
from workflows.release.table import forms_text
from workflows.spec import AdversarialSpec
from workflows.stage import DISCRIMINATOR, SHIPPED, Context


def run(context: Context) -> dict[str, Any]:
    """Merge, convert and measure in one task on the cluster."""
    store, spec = context.store, context.spec
    store.clear("optimize", context.key)
    task = ray.remote(make_release).options(
        num_cpus=spec.optimize_cpus,
        runtime_env={"env_vars": worker_environment(spec.optimize_cpus, gpus=0)},
    )
    corpus = context.inputs["train"].inputs["prepare"]
    trained = context.inputs["train"]
    figures: dict[str, Any] = ray.get(task.remote(spec.model_dump(), store.uri, trained.key, corpus, context.key))
    if isinstance(objective := spec.train.objective, AdversarialSpec):
        accuracy = trained.figures["held_out_accuracy"]
        is_kept = accuracy >= objective.min_accuracy
        figures[DISCRIMINATOR] = (
            SHIPPED
            if is_kept
            else f"left out: its accuracy on held-out pairs is {accuracy:.1%}, below train.objective.min_accuracy "
            f"({objective.min_accuracy:.1%})"
        )
        context.progress.note(f"optimize: the discriminator, for best_of: {figures[DISCRIMINATOR]}")
    context.progress.result("release", figures, forms_text(figures))
    return figures
