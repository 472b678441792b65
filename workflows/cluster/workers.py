"""The environment of the workers that the stages start, and whether the cluster can hold them."""

import time
from collections.abc import Sequence

from workflows.cluster.capacity import (
    Workers,
    how_many_fit,
    living_nodes,
    may_grow_beyond,
    nodes_of_cluster,
    sizes_text,
    why_too_few,
    workers_of,
)
from workflows.cluster.errors import ClusterError
from workflows.cluster.price import price_of_trainings, why_no_price
from workflows.cluster.ray_private import free_resources
from workflows.progress import Progress
from workflows.spec import PipelineSpec

# By default, glibc returns freed memory to the kernel and faults it in again, which halves the speed on CPUs.
_MALLOC = (
    "glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.hugetlb=1"
)

# The workers of the stage before give back their resources within this time.
_RELEASED_WITHIN_S = 10.0


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


def check_fits(spec: PipelineSpec, stages: Sequence[str], progress: Progress | None = None) -> None:
    """Raise ClusterError, with the numbers, if the cluster can never hold the workers of one of these stages. If they
    have to wait for nodes to start or for the work of others to end, print a note.
    """
    living = [node.resources for node in living_nodes()]
    at_most = nodes_of_cluster(spec.cluster)
    if "tune" in stages and (why := why_no_price(spec, price_of_trainings(spec, 1))):
        raise ClusterError(why)
    for stage, workers in workers_of(spec).items():
        if stage not in stages:
            continue
        fit = how_many_fit(living, workers.each)
        if fit < workers.count and not may_grow_beyond(spec.cluster) and (why := why_too_few(at_most, workers)):
            raise ClusterError(why if how_many_fit(at_most, workers.each) >= fit else why_too_few(living, workers))
        if progress is not None and fit < workers.count:
            progress.note(
                f"{workers.field}: needs {workers.text()}, and the nodes hold {fit}: "
                f"{sizes_text(living, workers.each)}; waiting for nodes to start"
            )
        elif progress is not None and stage != "deploy":  # which replaces the replicas that are there
            note_if_busy(workers, progress)


def note_if_busy(workers: Workers, progress: Progress) -> None:
    """Print a note if other work on the cluster holds the resources that these workers will wait for."""
    until = time.monotonic() + _RELEASED_WITHIN_S
    while how_many_fit(free := free_resources(), workers.each) < workers.count:
        if time.monotonic() > until:
            progress.note(
                f"{workers.field}: needs {workers.text()}, and what other work on the cluster leaves holds "
                f"{how_many_fit(free, workers.each)}: {sizes_text(free, workers.each)}; waiting for it to end"
            )
            return
        time.sleep(0.5)
