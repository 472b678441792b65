"""optimize: converts the checkpoint to a release.

    rayconteur optimize PIPELINE

Writes to the store: `model/`, a plain Hugging Face folder with the adapter merged; for CPUs `openvino/`, the same as
an OpenVINO model; if `optimize.targets` names them, `vllm/`, compressed tensors for GPUs, and `gguf/`, a file for
llama.cpp; for an adversarial pair `discriminator/`, with which the endpoint chooses the best of several replies. Each
format is measured against the checkpoint, and refused if its perplexity is too high.
"""

from dataclasses import replace

import ray

from workflows.cluster.workers import worker_environment
from workflows.figures import OptimizeFigures, Part, TrainFigures
from workflows.release.make import make_release
from workflows.release.table import forms_text
from workflows.spec import AdversarialSpec
from workflows.stage import Context


def run(context: Context) -> OptimizeFigures:
    """Merge, convert and measure, in one task on the cluster."""
    store, spec = context.store, context.spec
    store.clear("optimize", context.key)
    task = ray.remote(make_release).options(
        num_cpus=spec.optimize_cpus,
        runtime_env={"env_vars": worker_environment(spec.optimize_cpus, gpus=0)},
    )
    corpus, trained = context.inputs["prepare"].key, context.inputs["train"]
    figures: OptimizeFigures = ray.get(task.remote(spec.model_dump(), store.uri, trained.key, corpus, context.key))
    if isinstance(objective := spec.train.objective, AdversarialSpec):
        accuracy = TrainFigures.from_json(trained.figures).held_out["accuracy"]
        figures = replace(figures, discriminator=_discriminator(accuracy, objective.min_accuracy))
        word = figures.to_json()["discriminator"]
        context.progress.note(f"optimize: the discriminator, for best_of: {word}")
    context.progress.result("release", figures.to_json(), forms_text(figures))
    return figures


def _discriminator(accuracy: float, least: float) -> Part:
    """Whether the release includes the discriminator."""
    if accuracy >= least:
        return Part()
    return Part(f"its accuracy on held-out pairs is {accuracy:.1%}, below train.objective.min_accuracy ({least:.1%})")
