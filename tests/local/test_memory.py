"""Memory: training finds a micro-batch that fits, keeps it, and halves it after running out of memory."""

import pytest
import ray
import ray.exceptions
import torch

from workflows.cluster.board import Board
from workflows.stage import StageFailed
from workflows.store import Store
from workflows.training.recovery import Decisions, Recovery, decisions, is_out_of_memory


def out_of_torchs_memory() -> BaseException:
    try:
        torch.empty(1 << 60)
    except RuntimeError as error:
        return error
    raise AssertionError("no machine has so much")


@pytest.mark.slow
def test_auto_fits_and_reports_its_choice(run, tiny, wider):
    """A step of 2 x 2,048 tokens is split into passes that fit into memory; the step's result is the same."""
    tiny["base_model"] = wider
    tiny["train"] |= {"batch_tokens": "auto", "gradient_accumulation": 2, "num_workers": 1, "epochs": 1}
    done, _ = run("train", {**tiny, "store": tiny["store"] + "-room"})
    roomy = done["train"].figures
    tiny["train"]["memory_gb_per_worker"] = round(roomy["peak_memory_gb_per_worker"] - 0.25, 2)
    done, _ = run("train", tiny)
    tight = done["train"].figures
    assert roomy["batch_tokens"] == 2 * 2048
    assert tight["batch_tokens"] < 2 * 2048
    assert tight["peak_memory_gb_per_worker"] <= tiny["train"]["memory_gb_per_worker"]
    assert tight["steps"] == roomy["steps"]
    assert tight["training_loss"] == pytest.approx(roomy["training_loss"], abs=1e-4)


def test_what_can_never_fit_is_reported(run, tiny):
    tiny["train"] |= {"batch_tokens": "auto", "num_workers": 1, "memory_gb_per_worker": 0.2}
    with pytest.raises(StageFailed, match=r"train\.batch_tokens: a worker would hold about .* its limit is 0\.2 GB"):
        run("train", tiny)


@ray.remote(num_cpus=0)
def fails_for_memory():
    torch.empty(1 << 60)


def test_running_out_of_memory_is_distinguished_from_other_errors(cluster):
    assert is_out_of_memory(out_of_torchs_memory())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(ray.exceptions.OutOfMemoryError("a node was running low on memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fails_for_memory.remote())
    assert is_out_of_memory(caught.value)


def test_out_of_memory_halves_the_micro_batch_for_all_later_starts(cluster, tmp_path):
    store, board = Store(str(tmp_path / "store")), Board.remote()
    folder = store.path("train", "key", "run")
    told = Recovery(store.uri, folder, board)
    told.after_exception(None, {0: RuntimeError("shapes do not match")})
    assert decisions(store, folder) == Decisions()
    for expected in (2, 4):
        told.after_exception(None, {0: RuntimeError("lost"), 1: out_of_torchs_memory()})
        assert decisions(store, folder) == Decisions(cut=expected)
        assert store.read_json(f"{folder}/settled.json") == {"cut": expected}
