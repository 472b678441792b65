"""`plan --cluster`: a 7B model on the shipped cluster files, costs, and unusable files."""

import json
from pathlib import Path

import pytest
import yaml

from workflows.cluster import capacity
from workflows.cluster.capacity import kinds_to_come, may_grow_beyond, nodes_of_cluster
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
        return plan_on(spec, read_cluster_file(ROOT / file), tokens=10_000_000, per_epoch=10_000_000 // 3)

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
    assert not may_grow_beyond(auto)
    unsaid = {"provider": {"type": "local"}, "available_node_types": {"local.cluster.node": {"resources": {}}}}
    (tmp_path / "bootstrap.yaml").write_text(yaml.safe_dump(unsaid))
    assert may_grow_beyond(auto)


LORA = {"adapter": {"rank": 16}, "gpus_per_worker": 1, "batch_tokens": 512, "num_workers": 2}
DORA = {**LORA, "adapter": {"rank": 16, "method": "dora"}}
SMALL = {"memory_gb_per_worker": 4}
RATES = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
LONGEST = "each trial counted as the longest"
TRIAL = 4 * 6.74e9 * 1e7 / (2 * 0.4 * 121e12) / 3600  # hours on two GPUs


@pytest.mark.parametrize(("tune", "trials", "at_once", "waves", "at_most"), [
    ({"trials": 1}, 1, 1, 1, None),
    ({"trials": 200}, 200, 4, 50, None),
    ({"trials": 5}, 5, 4, 2, None),
    ({"trials": 200, "max_concurrent": 2}, 200, 2, 100, None),
    ({"trials": 200, "scheduler": "asha"}, 200, 4, 50, "asha ends trials early"),
    ({"trials": 30, "scheduler": "population"}, 30, 4, 8, None),
    ({"searcher": "grid", "space": {"train.learning_rate": [1e-5, 1e-4], "train.seed": [0, 1, 2]}}, 6, 4, 2, None),
    ({"trials": 8, "space": {"train.epochs": [1.0, 3.0, 6.0], **RATES}}, 8, 4, 4, LONGEST),
    ({"trials": 8, "space": {"train.max_steps": [10, 100_000], **RATES}}, 8, 4, 2, LONGEST),
])  # fmt: skip
def test_the_cost_of_a_search_counts_its_trials(planned, tune, trials, at_once, waves, at_most):
    row = planned(LORA, tune={"space": RATES, **tune}).stages["tune"]
    cost = row.search
    each = TRIAL * (2 if "train.epochs" in tune.get("space", {}) else 1)
    assert (cost.trials, cost.at_once) == (trials, at_once)
    assert cost.hours_per_trial == pytest.approx(each, rel=0.01)
    assert cost.price_per_trial == pytest.approx(each * 2 * 1.323, rel=0.01)
    assert cost.hours == pytest.approx(TRIAL * waves, rel=0.01)
    assert cost.price == pytest.approx(each * 2 * 1.323 * trials, rel=0.01)
    assert (at_most or "") in (cost.at_most or "")
    assert (cost.at_most is None) == (at_most is None)


def test_a_time_limit_bounds_the_cost_of_a_search(planned):
    short = planned(LORA, tune={"space": RATES, "time_minutes": 120}).stages["tune"].search
    assert (short.hours, short.trials) == (2.0, 8)
    assert short.price == pytest.approx(2 * 8 * 1.323)
    assert short.at_most == "tune.time_minutes ends it"
    both = planned(LORA, tune={"space": RATES, "trials": 4, "time_minutes": 120}).stages["tune"].search
    assert both.hours == pytest.approx(TRIAL, rel=0.01)
    assert both.at_most is None
    # Without a rate, the limit still bounds the price.
    lines = "\n".join(lines_on(planned(SMALL, tune={"space": RATES, "time_minutes": 30})))
    assert "the search: about 0.5 hours and $" in lines
    unknown = "\n".join(lines_on(planned(SMALL, tune={"space": RATES, "trials": 3})))
    assert "3 trials, at most 3 at once; their time is not known" in unknown


def test_the_maximum_cost_bounds_the_cost_of_a_search(planned):
    cost = planned(LORA, tune={"space": RATES, "trials": 200, "max_cost": 50}).stages["tune"].search
    assert cost.price == pytest.approx(50)
    assert cost.hours == pytest.approx(50 / (8 * 1.323))
    assert cost.at_most == "tune.max_cost ends it"
    ample = planned(LORA, tune={"space": RATES, "trials": 4, "max_cost": 50}).stages["tune"].search
    assert ample.price == pytest.approx(4 * TRIAL * 2 * 1.323, rel=0.01)
    assert ample.at_most is None
    only = planned(LORA, tune={"space": RATES, "max_cost": 50}).stages["tune"].search
    assert only.trials == 24
    unknown = planned(SMALL, "clusters/on-prem.yaml", tune={"space": RATES, "max_cost": 50}).stages["tune"]
    assert not unknown.fits
    assert "tune.max_cost: got 50, but no price of this cluster is known" in unknown.why_not


def test_packed_trials_share_the_rate_of_their_workers(planned, monkeypatch):
    """More run at once, and each takes longer."""
    monkeypatch.setattr("workflows.search.pack._why_not_base", lambda spec: "")  # of which there is a config alone
    packed, solo = (planned(LORA, tune={"space": RATES, "trials": 200, "pack": pack}) for pack in (4, 1))
    cost, alone = packed.stages["tune"].search, solo.stages["tune"].search
    assert (cost.at_once, cost.groups, alone.at_once) == (16, 4, 4)
    assert cost.hours_per_trial == pytest.approx(4 * alone.hours_per_trial)
    assert (cost.hours, cost.price, cost.price_per_trial) == (alone.hours, alone.price, alone.price_per_trial)
    assert "200 trials, at most 16 at once, packed in 4 worker groups" in "\n".join(lines_on(packed))
    few = planned(LORA, tune={"space": RATES, "trials": 200, "pack": 4, "max_concurrent": 6}).stages["tune"].search
    assert (few.at_once, few.groups, few.hours) == (6, 4, alone.hours)


def test_trials_that_cannot_be_packed_are_named(planned):
    row = planned(DORA, tune={"space": RATES, "trials": 9, "pack": 4}).stages["tune"]
    assert not row.fits
    assert row.search is None
    assert "tune.pack: got 4, but DoRA changes the base model's weights" in row.why_not


def test_the_cost_of_a_search_over_mixtures_has_its_small_models(planned):
    data = {"sources": [{"path": "x.jsonl"}, {"path": "y.jsonl"}]}
    tune = {"searcher": {"name": "mixture", "proxies": 80}}
    cost = planned(LORA, data=data, tune=tune).stages["tune"].search
    assert (cost.trials, cost.small_models) == (3, 80)
    each = 6 * (32_000 * 32 + 16 * 32**2) * 200 * 512 / (0.4 * 121e12) / 3600
    assert cost.hours == pytest.approx(TRIAL + 10 * each, rel=0.01)
    assert cost.price == pytest.approx((3 * 2 * TRIAL + 80 * each) * 1.323, rel=0.01)


def test_the_text_of_a_search_has_both_prices(planned):
    text = "\n".join(lines_on(planned(LORA, tune={"space": RATES, "trials": 200, "scheduler": "asha"})))
    assert "200 trials, at most 4 at once" in text
    assert "a trial: about 0.8 hours and $2.05, at 40% of the GPUs' rate" in text
    assert "the search: about 38.7 hours and $409.30, at most (asha ends trials early)" in text


def aws(*types, **fields):
    """A cluster file on AWS without `resources`."""
    nodes = {f"w{number}": {"node_config": {"InstanceType": name}, "max_workers": 4, **fields}
             for number, name in enumerate(types)}  # fmt: skip
    return {"provider": {"type": "aws"}, "max_workers": 8, "available_node_types": nodes}


@pytest.mark.parametrize(("instance", "size"), [
    ("m5.large", (2, 0, None)), ("m6i.xlarge", (4, 0, None)), ("c7g.medium", (1, 0, None)),
    ("t3.micro", (2, 0, None)),
    ("c4.8xlarge", (36, 0, None)), ("r7iz.32xlarge", (128, 0, None)), ("m7i-flex.2xlarge", (8, 0, None)),
    ("g4dn.12xlarge", (48, 4, 16)), ("g5.24xlarge", (96, 4, 24)), ("g6.48xlarge", (192, 8, 24)),
    ("p3.8xlarge", (32, 4, 16)), ("p4d.24xlarge", (96, 8, 40)), ("p5.48xlarge", (192, 8, 80)),
    ("inf2.8xlarge", (32, 0, None)),
])  # fmt: skip
def test_sizes_of_aws_instances_that_a_cluster_file_does_not_state(tmp_path, instance, size):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(aws(instance)))
    [found] = read_cluster_file(tmp_path / "c.yaml")
    assert (found.cpus, found.gpus, found.gpu_memory_gb) == size
    assert found.unknown is None


def test_the_files_own_resources_come_first(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(aws("g5.xlarge", resources={"CPU": 2})))
    [found] = read_cluster_file(tmp_path / "c.yaml")
    assert (found.cpus, found.gpus) == (2, 1)  # as `ray up` fills in the rest


@pytest.mark.parametrize(
    "instance", ["z9.gigantic", "p99.xlarge", "m5.metal", "hpc6a.48xlarge", "g5.metal", "m1.xlarge"]
)
def test_what_is_not_known_of_a_group_is_said(tmp_path, planned, instance):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(aws(instance)))
    plan = planned({"cpus_per_worker": 1}, tmp_path / "c.yaml", evaluate={}, serve={})
    row = plan.stages["train"]
    assert (row.fits, row.is_unknown) == (False, True)
    text = "\n".join(lines_on(plan))
    assert "no nodes of the cluster have GPUs" not in text
    assert f"  w0               0 to 4: size not known: plan does not know the instance type {instance}; set " in text
    assert "train     NOT KNOWN: it needs 1 x worker of 1 CPU" in text
    assert "available_node_types.w0.resources, such as {CPU: 16, GPU: 1}" in text


def test_a_group_of_known_size_is_used_beside_one_that_is_not(tmp_path, planned):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(aws("z9.gigantic", "m5.4xlarge")))
    row = planned({"memory_gb_per_worker": 4}, tmp_path / "c.yaml", evaluate={}, serve={}).stages["train"]
    assert (row.fits, row.nodes, row.is_unknown) == (True, {"w1": 1}, None)


def test_a_pod_without_limits_has_no_known_size(tmp_path):
    group = {"groupName": "w", "maxReplicas": 2, "template": {"spec": {"containers": [{}]}}}
    file = {"kind": "RayCluster", "spec": {"headGroupSpec": {"rayStartParams": {"num-cpus": "0"}}}}
    file["spec"]["workerGroupSpecs"] = [group]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(file))
    [found] = read_cluster_file(tmp_path / "c.yaml")
    assert found.unknown == "plan finds no CPUs; set resources.limits.cpu of w"


def test_merges_in_a_cluster_file(tmp_path):
    text = """
available_node_types:
  a: &a {resources: {CPU: 4}, max_workers: 2}
  b: {<<: *a, max_workers: 1}
max_workers: 3
"""
    (tmp_path / "c.yaml").write_text(text)
    assert [(kind.cpus, kind.most) for kind in read_cluster_file(tmp_path / "c.yaml")] == [(4, 2), (4, 1)]


def test_a_worker_that_is_larger_than_every_node_is_told_so_with_the_numbers(planned):
    row = planned({**LORA, "cpus_per_worker": 20}).stages["train"]
    assert "2 x worker of 20 CPUs, 1 GPU" in row.why_not
    assert "no node has the capacity for one (gpu-worker: 16 CPUs, 1 x GPU of 24 GB, 64 GB)" in row.why_not
