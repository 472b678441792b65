"""Ray Train's trainer, as `train` and the worker groups of a search set it up."""

import os
from collections.abc import Callable
from typing import Any

import ray.train
import ray.train.torch

from workflows.cluster.capacity import worker_resources
from workflows.cluster.workers import worker_environment
from workflows.spec import TrainSpec
from workflows.store import Store

_RESIZE_SECONDS = 30.0


def torch_trainer(
    train: TrainSpec,
    work: Callable[[], object],
    num_workers: int | tuple[int, int],
    store: Store,
    folder: str,
    **run: Any,
) -> Any:
    """A `ray.train.torch.TorchTrainer` whose workers call `work()`.

    Two numbers of workers are the minimum and the maximum. Ray Train's files go to `folder` in the store; `run` has
    further fields of its RunConfig.
    """
    # A stopped process cannot watch itself, so Ray's health check waits for it as long as our watchdog.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(train.hang_minutes * 60)
    return ray.train.torch.TorchTrainer(
        work,
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if train.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker=worker_resources(train),
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
        ),
        run_config=ray.train.RunConfig(
            storage_path=folder,
            storage_filesystem=store.filesystem,
            worker_runtime_env={"env_vars": worker_environment(train.cpus_per_worker, train.gpus_per_worker)},
            **run,
        ),
    )
