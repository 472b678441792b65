"""`plan --cluster`: a 7B model on the shipped cluster files, costs, and unusable files."""

import json
from pathlib import Path

import pytest
import yaml

from workflows.cluster import capacity
from workflows.cluster.capacity import kinds_to_come, nodes_of_cluster
from workflows.cluster.cluster_file import ClusterFileError, NodeKind, read_cluster_file
from workflows.cluster.fit import Need, fit_stage, hours
from workflows.runs.plan_cluster import lines_on, plan_on
from workflows.spec import ClusterSpec, PipelineSpec

ROOT = Path(__file__).parents[2]
LLAMA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
FULL = {"adapter": None, "gpus_per_worker": 1, "zero": {"stage": 3}}


@pytest.fixture
def planned(tmp_path):
    """The plan for training a 7B model on 10 million tokens, with one of our cluster files."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))

    def plan(train, file="cluster.yaml", **more):
        values = {"name": "big", "base_model": str(tmp_path), "data": {"sources": [{"path": "x.jsonl"}]}}
        more = {"evaluate": {"gpus_per_worker": 1}, "serve": {"gpus_per_replica": 1}, **more}
        spec = PipelineSpec.model_validate({**values, "train": train, **more})
        return plan_on(spec, read_cluster_file(ROOT / file), tokens=10_000_000)

    return plan


@pytest.mark.parametrize("file", ["cluster.yaml", "clusters/kuberay-cluster.yaml"])
def test_full_training_of_7b_does_not_fit_on_four_gpus_of_24_gb_but_the_alternatives_do(planned, file):
    plan = planned({**FULL, "num_workers": 4}, file)
    row = plan.stages["train"]
    assert not row.fits
    # 18 bytes per weight (arXiv:1910.02054, gradients in float32) over four workers are 30 GB without activations
    assert "about 61.1 GB of GPU memory" in row.why_not
    told = row.would_fit[0]
    assert "--set train.adapter='{rank: 16}' --set train.batch_tokens=512" in told
    smaller = {**FULL, "num_workers": 4, "adapter": {"rank": 16}, "batch_tokens": 512}
    better = planned(smaller, file).stages["train"]
    assert better.fits
    assert list(better.nodes.values()) == [4] == list(better.come_up.values())
    assert any("DOES NOT FIT" in line for line in lines_on(plan))


def test_lora_of_it_fits_on_one(planned):
    plan = planned({"adapter": {"rank": 16}, "gpus_per_worker": 1, "batch_tokens": 512})
    row = plan.stages["train"]
    assert row.nodes == {"gpu-worker": 1}
    assert row.price_per_hour == 1.323
    # 4 operations a token and frozen weight, at 40 % of 121 TFLOPS
    assert row.hours == pytest.approx(4 * 6.74e9 * 1e7 / (0.4 * 121e12) / 3600, rel=0.01)
    assert row.price == pytest.approx(row.hours * 1.323)
    assert plan.stages["evaluate"].nodes == {"gpu-worker": 1}


def test_both_whole_models_of_an_evaluation_do_not_fit_on_one_gpu(planned):
    stages = planned({**FULL, "num_workers": 8, "batch_tokens": 512}).stages
    assert "about 27.0 GB of GPU memory" in stages["evaluate"].why_not
    assert stages["deploy"].fits


def test_more_workers_than_nodes_is_reported_with_both_numbers(planned):
    row = planned({**FULL, "num_workers": 16, "batch_tokens": 512}).stages["train"]
    assert "16 x worker" in row.why_not
    assert (
        "the cluster has the capacity for 8 (gpu-worker: 1 a node, at most 8 nodes); raise max_workers" in row.why_not
    )


def test_plan_shows_how_many_trials_run_at_once(planned):
    tune = {"space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}, "trials": 20}
    lora = {"adapter": {"rank": 16}, "gpus_per_worker": 1, "batch_tokens": 512, "num_workers": 2}
    stages = planned(lora, tune=tune).stages
    assert "train" not in stages
    assert stages["tune"].trials_at_once == 4


def kind(name, **fields):
    shape = {"cpus": 16.0, "gpus": 0.0, "fewest": 0, "most": 4, "is_spot": False, "memory_gb": None}
    return NodeKind(name=name, **{**shape, "gpu_memory_gb": None, "tflops": None, "price_per_hour": None, **fields})


def test_work_without_gpus_avoids_gpu_nodes_if_others_have_capacity():
    kinds = [kind("gpu", gpus=1.0), kind("cpu", fewest=1, most=2)]
    fit = fit_stage(Need("evaluate", 32, 1, 0), kinds)
    assert (fit.nodes, fit.come_up) == ({"cpu": 2}, {"cpu": 1})
    assert fit_stage(Need("evaluate", 40, 1, 0), kinds).nodes == {"cpu": 2, "gpu": 1}


def test_on_demand_nodes_come_before_spot_nodes_and_memory_counts():
    kinds = [kind("spot", gpus=4.0, is_spot=True), kind("lasting", gpus=4.0, most=1, memory_gb=100.0)]
    assert fit_stage(Need("train", 8, 1, 1), kinds).nodes == {"lasting": 1, "spot": 1}
    assert fit_stage(Need("train", 4, 1, 1, memory_gb=50), kinds).nodes == {"lasting": 1, "spot": 1}


def test_hours_go_by_the_slowest_gpu_and_are_unknown_without_a_rate():
    kinds = [kind("a", gpus=1.0, most=1, tflops=100.0), kind("b", gpus=1.0, most=1, tflops=50.0)]
    fit = fit_stage(Need("train", 2, 1, 1), kinds)
    assert hours(3600 * 2 * 50e12 * 0.4, fit, kinds) == pytest.approx(1.0)
    assert hours(1e18, fit, [kinds[0], kind("b", gpus=1.0)]) is None


@pytest.mark.parametrize(("content", "said"), [
    ("{", "cannot be read"),
    ("a: 1", "is not a cluster file; must be one for `ray up`"),
    ({"available_node_types": {"w": {"resources": {"CPU": 1}}}, "metadata": {"rayconteur": {"w": {"price": 1}}}},
     r"metadata\.rayconteur\.w\.price: got 1; .*known here: memory_gb"),
    ({"available_node_types": {"w": {"resources": {"CPU": 1}}},
      "metadata": {"rayconteur": {"w": {"price_per_hour": -1}}}}, r"w\.price_per_hour: got -1; Input should"),
    ({"kind": "RayCluster", "metadata": {"annotations": {"rayconteur/head": "{"}}, "spec": {}}, "head: not JSON"),
    ({"available_node_types": {"w": {"resources": {"CPU": "lots"}}}},
     r"c\.yaml: available_node_types\.w\.resources\.CPU: got 'lots'; "),
    ({"available_node_types": {"w": None}}, r"node_types\.w: got None; Input should be a valid dictionary$"),
    ({"available_node_types": {"w": {"max_workers": "many"}}}, r"w\.max_workers: got 'many'; "),
    ({"available_node_types": {}, "metadata": [1]}, r"c\.yaml: metadata: got \[1\]; "),
    ({"kind": "RayCluster", "spec": {"workerGroupSpecs": [{"replicas": 1}]}}, r"workerGroupSpecs\.0\.groupName: got"),
    ({"kind": "RayJob", "spec": {}}, r"spec\.rayClusterSpec: got None; "),
    ({"kind": "RayCluster", "spec": {"headGroupSpec": {"rayStartParams": {"num-cpus": "4x"}}}},
     r"spec\.headGroupSpec\.rayStartParams\.num-cpus: got '4x'; must be a quantity"),
])  # fmt: skip
def test_files_that_cannot_be_read_say_where(tmp_path, content, said):
    file = tmp_path / "c.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ClusterFileError, match=said):
        read_cluster_file(file)
    with pytest.raises(ClusterFileError, match="cannot be read"):
        read_cluster_file(tmp_path / "none.yaml")


def test_a_head_knows_the_maximum_nodes_from_its_cluster_file(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "BOOTSTRAP", str(tmp_path / "bootstrap.yaml"))
    here, auto = ClusterSpec(), ClusterSpec(address="auto")
    assert kinds_to_come(auto) is None
    (tmp_path / "bootstrap.yaml").write_text((ROOT / "cluster.yaml").read_text())
    assert kinds_to_come(here) is None  # a laptop's own cluster
    nodes = nodes_of_cluster(auto)
    assert sum(node["GPU"] for node in nodes) == 8
    assert sum(node["CPU"] for node in nodes) == 12 * 16
    told = ClusterSpec.model_validate({"address": "auto", "scales_to": {"cpus": 64, "gpus": 4}})
    assert [(node["CPU"], node["GPU"]) for node in nodes_of_cluster(told)] == [(64, 4)]
    unsaid = {"provider": {"type": "local"}, "available_node_types": {"local.cluster.node": {"resources": {}}}}
    (tmp_path / "bootstrap.yaml").write_text(yaml.safe_dump(unsaid))
    assert kinds_to_come(auto) == []
