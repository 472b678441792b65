"""Check that every machine of a cluster can read the folders and files that the pipeline names.

check_reach(spec, store)
"""

import glob
import uuid
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workflows.cluster.capacity import RayNode, living_nodes
from workflows.cluster.errors import ClusterError
from workflows.spec import PipelineSpec
from workflows.spec.paths import local_paths
from workflows.store import Store

_ANSWER_WITHIN_S = 120.0
_READ_HERE = "tune.warm_start."
"""files that only the search's own process reads"""


def check_reach(spec: PipelineSpec, store: Store) -> None:
    """Raise ClusterError, with the field and the machines, for a path that some machines do not have. To check the
    store, this machine writes a temporary file there.
    """
    nodes = living_nodes()
    machines = sorted({node.address for node in nodes})
    paths = {field: path for field, path in local_paths(spec).items() if not field.startswith(_READ_HERE)}
    marker = Path(store.root) / f"seen-by-all-{uuid.uuid4().hex}"
    if store.is_local:
        paths["store"] = str(marker)
    if len(machines) < 2 or not paths:
        return
    if store.is_local:
        marker.touch()
    try:
        missing = _missing(nodes, list(paths.values()))
    finally:
        marker.unlink(missing_ok=True)
    problems = []
    for field, path in paths.items():
        if blind := sorted(machine for machine, lacks in missing.items() if path in lacks):
            what = store.root if field == "store" else path
            problems.append(
                f"{field}: {what} is missing on {', '.join(blind)}, of {', '.join(machines)}; all machines of a "
                "cluster must reach it: use s3://, gs://, or a shared folder"
            )
    if problems:
        raise ClusterError("\n".join(problems))


def _missing(nodes: list[RayNode], paths: list[str]) -> dict[str, list[str]]:
    """The paths that each machine does not have."""
    asked = {}
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_unseen)
        asked[node.address] = task.remote(paths)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_WITHIN_S)
    answers = {}
    for machine, answer in asked.items():
        try:
            answers[machine] = ray.get(answer, timeout=0)
        except ray.exceptions.RayError:  # lost, or too slow: its first task will fail instead
            continue
    return answers


def _unseen(paths: list[str]) -> list[str]:
    return [path for path in paths if not glob.glob(path, recursive=True)]
