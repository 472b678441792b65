"""Whether a cluster's nodes hold the workers of a stage: a worker runs on a single node."""

from collections.abc import Callable
from typing import Any

import pytest

from workflows.cluster import workers
from workflows.cluster.capacity import RayNode, Resources, how_many_fit, nodes_of_cluster, workers_of
from workflows.cluster.errors import ClusterError
from workflows.cluster.workers import check_fits
from workflows.spec import ClusterSpec, PipelineSpec


class Notes:
    """A display that keeps its notes."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def note(self, text: str) -> None:
        self.found.append(text)


@pytest.fixture
def check(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Checks a stage against nodes of a cluster; returns the notes."""
    monkeypatch.setattr(workers, "_RELEASED_WITHIN_S", 0.0)

    def run(
        nodes: list[Resources], stage: str = "train", free: list[Resources] | None = None, **fields: Any
    ) -> list[str]:
        spec = PipelineSpec.model_validate(tiny | {"cluster": {"address": "auto"}} | fields)
        found = [RayNode(str(number), "10.0.0.1", node) for number, node in enumerate(nodes)]
        for module in ("workers", "capacity"):
            monkeypatch.setattr(f"workflows.cluster.{module}.living_nodes", lambda: found)
        monkeypatch.setattr(workers, "free_resources", lambda: nodes if free is None else free)
        notes = Notes()
        check_fits(spec, [stage], notes)  # type: ignore[arg-type]
        return notes.found

    return run


def train(**fields: Any) -> dict[str, Any]:
    return {"train": {"batch_tokens": 256, **fields}}


@pytest.mark.parametrize(("nodes", "fields", "words"), [
    ([{"CPU": 2.0}] * 2, train(cpus_per_worker=3),
     "train.cpus_per_worker: needs 1 worker of 3 CPUs, and no node is large enough for one: 2 nodes of 2 CPUs; "
     "request less per worker or add a larger node"),
    ([{"CPU": 1.5}] * 4, train(num_workers=2, cpus_per_worker=2),
     "train.cpus_per_worker: needs 2 workers of 2 CPUs each, and no node is large enough for one: 4 nodes of 1.5 C"),
    ([{"CPU": 64.0}, {"CPU": 2.0, "GPU": 1.0}], train(cpus_per_worker=4, gpus_per_worker=1),
     "train.cpus_per_worker, train.gpus_per_worker: needs 1 worker of 4 CPUs, 1 GPU, and no node is large enough for "
     "one: 1 node of 2 CPUs, 1 GPU; 1 node of 64 CPUs, 0 GPUs; "),
    ([{"CPU": 3.0}] * 3, train(num_workers=4, cpus_per_worker=2),
     "train.num_workers: needs 4 workers of 2 CPUs each, the nodes hold 3: 3 nodes of 3 CPUs; request le"),
    ([{"CPU": 8.0, "memory": 4e9}] * 2, train(memory_gb_per_worker=5),
     "train.memory_gb_per_worker: needs 1 worker of 1 CPU, 5 GB, and no node is large enough for one: 2 nodes of 8 "
     "CPUs, 4 GB; "),
    ([{"CPU": 8.0}], train(gpus_per_worker=1),
     "train.gpus_per_worker: needs 1 worker of 1 CPU, 1 GPU, and no node is large enough for one: 1 node of 8 "
     "CPUs, 0 GPUs; "),
    ([], train(), "train.cpus_per_worker: needs 1 worker of 1 CPU, and no node is large enough for one: there are "
     "no n"),
])  # fmt: skip
def test_workers_that_no_single_node_holds_are_refused_with_the_numbers(
    check: Callable[..., list[str]], nodes: list[Resources], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ClusterError) as refused:
        check(nodes, **fields)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(("stage", "fields", "field"), [
    ("tune", {**train(cpus_per_worker=3), "tune": {"space": {"train.seed": [0, 1]}, "trials": 2}}, "train"),
    ("reference", {"train": {"objective": "dpo", "cpus_per_worker": 3}}, "train"),
    ("evaluate", {"evaluate": {"cpus_per_worker": 3}}, "evaluate"),
    ("optimize", {"optimize": {"cpus_per_worker": 3}}, "optimize"),
])  # fmt: skip
def test_every_stage_looks_at_single_nodes(
    check: Callable[..., list[str]], stage: str, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(ClusterError, match=rf"^{field}\.cpus_per_worker: needs 1 worker of 3 CPUs, and no node is"):
        check([{"CPU": 2.0}, {"CPU": 2.0}], stage, **fields)


def test_replicas_look_at_single_nodes_and_their_gpus_may_be_on_several(check: Callable[..., list[str]]) -> None:
    with pytest.raises(ClusterError, match=r"^serve\.cpus_per_replica: needs 1 worker of 3 CPUs, and no node is"):
        check([{"CPU": 2.0}] * 2, "deploy", serve={"cpus_per_replica": 3})
    gpus = {"gpus_per_replica": 2, "cpus_per_replica": 2, "engine": "vllm", "precision": "bf16"}
    assert check([{"CPU": 2.0, "GPU": 1.0}] * 2, "deploy", serve=gpus) == []


def test_busy_nodes_are_waited_for_and_it_is_said(check: Callable[..., list[str]]) -> None:
    nodes, two = [{"CPU": 4.0}], train(num_workers=2, cpus_per_worker=2)
    assert check(nodes, **two) == []
    assert check(nodes, free=[{"CPU": 3.0}], **two) == [
        "train.num_workers: needs 2 workers of 2 CPUs each, and what other work on the cluster leaves holds 1: 1 "
        "node of 3 CPUs; waiting for it to end"
    ]
    # An update replaces the replicas that hold the resources.
    assert check(nodes, "deploy", free=[{"CPU": 0.0}]) == []


def test_nodes_that_can_start_are_waited_for_if_they_are_large_enough(check: Callable[..., list[str]]) -> None:
    def scaled(**size: float) -> dict[str, Any]:
        return {"cluster": {"address": "auto", "scales_to": {"cpus": 64, **size}}}

    three = train(cpus_per_worker=3)
    assert check([{"CPU": 2.0}], **three, **scaled()) == [
        "train.num_workers: needs 1 worker of 3 CPUs, and the nodes hold 0: 1 node of 2 CPUs; waiting for nodes "
        "to start"
    ]
    with pytest.raises(ClusterError, match="no node is large enough for one: 32 nodes of 2 CPUs"):
        check([{"CPU": 2.0}], **three, **scaled(cpus_per_node=2))
    assert len(check([{"CPU": 2.0}], **three, **scaled(cpus_per_node=4))) == 1


def test_the_nodes_of_a_maximum() -> None:
    scale = {"cpus": 48, "gpus": 3, "cpus_per_node": 16, "gpus_per_node": 2, "memory_gb_per_node": 64}
    nodes = nodes_of_cluster(ClusterSpec.model_validate({"address": "auto", "scales_to": scale}))
    assert [(node["CPU"], node["GPU"], node["memory"]) for node in nodes] == [
        (16, 2, 64e9), (16, 2, 64e9), (16, 0, 64e9),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="cpus_per_node and gpus_per_node belong together"):
        ClusterSpec.model_validate({"scales_to": {"cpus": 48, "gpus": 3, "gpus_per_node": 2}})


def test_fractions_of_workers(tiny: dict[str, Any]) -> None:
    each = workers_of(PipelineSpec.model_validate(tiny | train(cpus_per_worker=0.1)))["train"].each
    assert how_many_fit([{"CPU": 0.3}] * 2, each) == 6
