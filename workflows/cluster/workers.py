"""The workers that each stage starts: how many, with which resources and environment, and whether they fit."""

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from workflows.cluster.capacity import kinds_to_come, nodes_of_cluster
from workflows.cluster.errors import ClusterError
from workflows.progress import Progress
from workflows.spec import PipelineSpec

# By default, glibc returns freed memory to the kernel and faults it in again, which halves the speed on CPUs.
_MALLOC = (
    "glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.hugetlb=1"
)


@dataclass(frozen=True)
class Workers:
    """A number of identical workers, and the field that requests them."""

    field: str
    count: int
    cpus: float
    gpus: float


def worker_environment(threads: float, gpus: float) -> dict[str, str]:
    """Environment variables for a worker process, set before it starts."""
    environment = {
        "OMP_NUM_THREADS": str(max(1, int(threads))),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if not gpus:
        environment |= {"DS_ACCELERATOR": "cpu", "GLIBC_TUNABLES": _MALLOC}
    return environment


def workers_of(spec: PipelineSpec) -> dict[str, Workers]:
    """The workers of each stage that has its own, by the stage's name."""
    train, evaluate, serve = spec.train, spec.evaluate, spec.serve
    training = Workers("train.num_workers", train.min_workers, train.cpus_per_worker, train.gpus_per_worker)
    judging = Workers(
        "evaluate.num_workers", evaluate.num_workers, evaluate.cpus_per_worker, evaluate.gpus_per_worker
    )
    serving = Workers(
        "serve.min_replicas", max(1, serve.min_replicas), serve.cpus_per_replica, serve.gpus_per_replica
    )
    converting = Workers("optimize.cpus_per_worker", 1, spec.optimize_cpus, 0)
    return {
        "reference": training,
        "tune": training,
        "train": training,
        "evaluate": judging,
        "optimize": converting,
        "deploy": serving,
    }


def check_fits(spec: PipelineSpec, stages: Sequence[str], progress: Progress | None = None) -> None:
    """Raise ClusterError, with both numbers, if the cluster can never have the workers of one of these stages. If it
    has to grow for them, print a note.
    """
    now = ray.cluster_resources()
    may_come = nodes_of_cluster(spec.cluster)
    grows_unasked = kinds_to_come(spec.cluster) == []  # with provider `local`, the file does not state resources
    for workers in [workers for stage, workers in workers_of(spec).items() if stage in stages]:
        for name, resource, each in (("CPUs", "CPU", workers.cpus), ("GPUs", "GPU", workers.gpus)):
            need, have = workers.count * each, now.get(resource, 0.0)
            most = max(have, sum(node.get(resource, 0.0) for node in may_come))
            if need > most and not grows_unasked:
                scales = f" and scales up to {most:g}" if most > have else ""
                raise ClusterError(
                    f"{workers.field}: {workers.count} workers with {each:g} {name} each need {need:g}, the cluster "
                    f"has {have:g}{scales}; request less or enlarge the cluster"
                )
            if need > have and progress is not None:
                progress.note(f"{workers.field}: needs {need:g} {name}, the cluster has {have:g}; waiting for nodes")
