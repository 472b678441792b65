"""plan: what a run would do, what it asks for and what is there; changes nothing."""

import os
from typing import Any

from workflows.cluster.capacity import Resources, nodes_of_cluster, trials_at_once, why_none_fits
from workflows.cluster.cluster_file import read_cluster_file
from workflows.corpus.files.sources import PACKED, source_files
from workflows.runs.plan_cluster import lines_on, plan_on, training_memory_gb
from workflows.runs.state import StageState
from workflows.spec import PipelineSpec
from workflows.spec.space import trials_wanted
from workflows.store import Store
from workflows.training.foresight import troubles
from workflows.training.readings import known_reading, reading_text
from workflows.training.steps import num_steps, steps_per_epoch

# For conversations that are not tokenized yet: English chat text, JSON around it, and gzip.
_BYTES_PER_TOKEN = 4.6
_PACKED_FACTOR = 4.0


def plan_of(
    spec: PipelineSpec,
    store: Store,
    states: list[StageState],
    endpoint_lives: bool,
    cluster_file: str | None = None,
) -> dict[str, Any]:
    """The plan as plain data; on a cluster that is not there yet if its file is given."""
    stages = [_row(state.stage.name, state.artifact is not None, state.reason) for state in states]
    stages.append(_row("deploy", endpoint_lives, "no endpoint of this release answers"))
    training = _training(spec, store, states[0])
    where = (
        {"cluster": plan_on(spec, read_cluster_file(cluster_file), training["tokens"])}
        if cluster_file
        else {"resources": _resources(spec)}
    )
    will_train = any(state.stage.name in ("tune", "train") and state.artifact is None for state in states)
    found = troubles(spec) if will_train else []
    return {"pipeline": spec.name, "stages": stages, **where, "training": training, "troubles": found}


def _row(stage: str, up_to_date: bool, reason: str) -> dict[str, Any]:
    return {"stage": stage, "up_to_date": up_to_date, "reason": "" if up_to_date else reason}


def _resources(spec: PipelineSpec) -> dict[str, Any]:
    train, evaluate, serve = spec.train, spec.evaluate, spec.serve
    most = {"train": train.max_workers, "reference": train.min_workers}
    asked = {
        "train": (train.min_workers, train.cpus_per_worker, float(train.gpus_per_worker)),
        "evaluate": (evaluate.num_workers, evaluate.cpus_per_worker, evaluate.gpus_per_worker),
        "deploy": (max(1, serve.min_replicas), serve.cpus_per_replica, serve.gpus_per_replica),
    }
    if spec.train.objective.reference != "none":
        asked = {"reference": asked["train"], **asked}
    there = _there(spec)
    rows: dict[str, Any] = {}
    if spec.tune is not None:
        del asked["train"]  # it takes the winner's checkpoint
        nodes = _nodes(spec, there)
        rows["tune"] = {
            "workers": train.min_workers,
            "cpus": train.min_workers * train.cpus_per_worker,
            "gpus": float(train.min_workers * train.gpus_per_worker),
            "trials": trials_wanted(spec.tune),
            "at_once": trials_at_once(spec, nodes),
            "fits": not why_none_fits(nodes, train),
            "why_not": why_none_fits(nodes, train),
        }
    for stage, (workers, cpus, gpus) in asked.items():
        fits = workers * cpus <= there["cpus"] and workers * gpus <= there["gpus"]
        up_to = {"most_workers": most[stage]} if most.get(stage, workers) != workers else {}
        rows[stage] = {"workers": workers, **up_to, "cpus": workers * cpus, "gpus": workers * gpus, "fits": fits}
    return {"there": there, "asked": rows}


def _there(spec: PipelineSpec) -> dict[str, Any]:
    if spec.cluster.address is not None:
        import ray

        have = ray.cluster_resources()
        return {"cpus": have.get("CPU", 0.0), "gpus": have.get("GPU", 0.0), "memory_gb": have.get("memory", 0) / 1e9}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpus = len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])
    return {"cpus": spec.cluster.num_cpus or os.cpu_count() or 1, "gpus": gpus, "memory_gb": round(memory, 1)}


def _nodes(spec: PipelineSpec, there: dict[str, Any]) -> list[Resources]:
    if spec.cluster.address is not None:
        return nodes_of_cluster(spec.cluster)
    return [{"CPU": there["cpus"], "GPU": there["gpus"], "memory": there["memory_gb"] * 1e9}]


def _training(spec: PipelineSpec, store: Store, prepare: StageState) -> dict[str, Any]:
    train, corpus = spec.train, prepare.artifact
    if corpus is not None:
        tokens = corpus.figures["tokens"]
        in_epoch = steps_per_epoch(train, store, prepare.key)
    else:
        tokens = _estimated_tokens(spec)
        per_step = train.pass_tokens * train.passes * train.max_workers
        in_epoch = max(1, -(-tokens // per_step))
    steps = num_steps(train, in_epoch)
    memory = training_memory_gb(spec.base_model, train)
    reading = known_reading(spec)
    return {
        "tokens_per_epoch": tokens,
        # A teacher's replies have other lengths than those that they replace.
        "tokens_are_estimated": corpus is None or train.objective.reference == "replies",
        "steps": steps,
        "pair_steps": train.pair_steps,
        "tokens": int(tokens * steps / in_epoch),
        "memory_gb_per_worker": None if memory is None else round(memory, 1),
        "is_of_a_trial": spec.tune is not None,
        "conversations_are": reading_text(reading) if reading and reading.how != "packed" else None,
    }


def _estimated_tokens(spec: PipelineSpec) -> int:
    """From the sizes of the files alone; a `limit` is not looked at."""
    total = 0.0
    for file in source_files(spec):
        total += file.size * (_PACKED_FACTOR if file.path.endswith((*PACKED, ".parquet")) else 1.0) / _BYTES_PER_TOKEN
    return max(1, int(total * (1 - spec.data.held_out_share)))


def plan_text(plan: dict[str, Any]) -> str:
    """The plan as a person reads it."""
    lines = [f"pipeline {plan['pipeline']}"]
    for row in plan["stages"]:
        word = "up to date" if row["up_to_date"] else f"will run: {row['reason']}"
        lines.append(f"  {row['stage']:<9} {word}")
    if "cluster" in plan:
        lines += lines_on(plan["cluster"])
    else:
        lines += _resource_lines(plan["resources"])
    training = plan["training"]
    about = "about " if training["tokens_are_estimated"] else ""
    memory = training["memory_gb_per_worker"]
    what = "a trial" if training["is_of_a_trial"] else "training"
    pair = (
        f" of likelihood training, then up to {training['pair_steps']:,} of the pair, as long again for the control"
        if training["pair_steps"]
        else ""
    )
    lines.append(
        f"{what}: {about}{training['tokens']:,} tokens in {about}{training['steps']:,} steps{pair}, "
        + (f"about {memory:g} GB a worker" if memory else "memory unknown until the base model is here")
    )
    if training["conversations_are"] is not None:
        lines.append(f"  {training['conversations_are']}")
    lines += [f"WILL FAIL: {trouble}" for trouble in plan["troubles"]]
    return "\n".join(lines)


def _resource_lines(resources: dict[str, Any]) -> list[str]:
    there = resources["there"]
    lines = [f"there: {there['cpus']:g} CPUs, {there['gpus']:g} GPUs, {there['memory_gb']:g} GB of memory"]
    for stage, row in resources["asked"].items():
        verdict = "fits" if row["fits"] else "DOES NOT FIT"
        gpus = f", {row['gpus']:g} GPUs" if row["gpus"] else ""
        more = f" (up to {row['most_workers']})" if "most_workers" in row else ""
        if "at_once" in row:
            trials = f"{row['trials']} trials, " if row["trials"] else ""
            more = f" a trial; {trials}{row['at_once']} at once"
        lines.append(f"  {stage:<9} needs {row['workers']} x worker{more}: {row['cpus']:g} CPUs{gpus}: {verdict}")
        if row.get("why_not"):
            lines.append(f"            {row['why_not']}")
    return lines
