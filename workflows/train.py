"""train: corpus to checkpoint, with Ray Train and DeepSpeed.

    rayconteur train PIPELINE

Leaves in the store: `model/`, a Hugging Face folder (for LoRA a PEFT adapter) of the best checkpoint by held-out
loss, with tokenizer and chat template; `history.jsonl`, a line for every step; `curves.html` and `tensorboard/`, the
same to look at. Where MLFLOW_TRACKING_URI is set, an MLflow run too.

While it runs, `run/` holds the last and the best checkpoint: the same command goes on from the last.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import ray
import ray.train
import ray.train.torch

from models import adapters
from models.attention import PACKED_ATTENTION
from models.base import load_model, load_tokenizer, resolve
from models.batch_size import default_limit_gb, largest_batch, peak_gb
from models.deepspeed_engine import DeepSpeedEngine
from models.engine import MODEL_FOLDER
from models.fit import FitSettings, TrainingDiverged, fit, held_out_batches
from models.fit import Progress as StepProgress
from models.flops import StepOperations, matrix_product_rate
from models.liger import use_liger
from models.objectives import OBJECTIVES, Objective
from models.operator import check_build_tools, check_file_offload
from models.packing import PackedBatch, StepPlan
from models.precision import dtype_of, faster_precision
from workflows.cluster import check_fits, innermost, watching, worker_environment
from workflows.corpus import open_examples
from workflows.curves import check_mlflow, log_to_mlflow, write_curves
from workflows.history import HISTORY, Record, shown
from workflows.pipeline import Context, StageFailed, num_steps, source_files, step_plan
from workflows.recovery import AfterFailure, Watchdog, settle, settled
from workflows.spec import PipelineSpec
from workflows.spec_train import ObjectiveSpec, TrainSpec
from workflows.store import Store

_MOST_NAMED = 20
_RESIZE_SECONDS = 30.0
_ELASTIC_START_SECONDS = "10"


def run(context: Context) -> dict[str, Any]:
    """Train on the corpus, from the last checkpoint if there is one; returns what was measured."""
    spec, store, train = context.spec, context.store, context.spec.train
    check_fits("train.num_workers", train.fewest_workers, train.cpus_per_worker, train.gpus_per_worker)
    if not train.gpus_per_worker:
        check_build_tools()
    check_mlflow()
    folder = store.path("train", context.key)
    resources = {"CPU": train.cpus_per_worker, **({"GPU": train.gpus_per_worker} if train.gpus_per_worker else {})}
    if train.memory_gb_per_worker:
        resources["memory"] = train.memory_gb_per_worker * 1e9
    elastic = isinstance(train.num_workers, list)
    # A worker that is stopped as a whole cannot watch itself: Ray asks it, and waits as long.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(train.hang_minutes * 60)
    if elastic:  # Ray counts on a lost machine for a while, and would wait a minute for workers on it
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _ELASTIC_START_SECONDS)
    with watching(context.progress, "steps") as board:
        trainer = ray.train.torch.TorchTrainer(
            _work,
            train_loop_config={
                "spec": spec.model_dump(),
                "store": store.uri,
                "keys": {name: artifact.key for name, artifact in context.inputs.items()},
                "run_folder": f"{folder}/run",
                "board": board,
            },
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if train.gpus_per_worker else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=(train.fewest_workers, train.most_workers) if elastic else train.fewest_workers,
                use_gpu=train.gpus_per_worker > 0,
                resources_per_worker=resources,
                elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
            ),
            run_config=ray.train.RunConfig(
                name="run",
                storage_path=folder,
                storage_filesystem=store.filesystem,
                failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=1, checkpoint_score_attribute="held_out_loss", checkpoint_score_order="min"
                ),
                callbacks=[AfterFailure(store.uri, f"{folder}/run", board)],
                worker_runtime_env={"env_vars": worker_environment(train.cpus_per_worker, train.gpus_per_worker)},
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise StageFailed(_reason(error)) from error
        except SystemExit:  # how Ray Train ends the program on Ctrl-C
            raise KeyboardInterrupt from None
    if result.return_value:
        raise StageFailed(result.return_value)
    best, figures = min(result.best_checkpoints, key=lambda pair: pair[1]["held_out_loss"])
    last = result.metrics
    store.add_folder(f"{best.path}/model", "train", context.key, "model", best.filesystem)
    _keep_history(context, f"{result.checkpoint.path}/{HISTORY}")
    return {
        "steps": last["step"],
        "best_step": figures["step"],
        **{name: value for name, value in figures.items() if name.startswith("held_out_")},
        "training_loss": last["loss"],
        "tokens": last["num_tokens"],
        "tokens_per_second": last["tokens_per_second"],
        "resumed_from_step": last["resumed_from_step"],
        "batch_tokens": last["batch_tokens"],
        "precision": last["precision"],
        "skipped_steps": last["skipped_steps"],
        "peak_memory_gb_per_worker": last["peak_memory_gb"],
    }


def _keep_history(context: Context, path: str) -> None:
    """The history at `path` into the artifact, with what is drawn from it."""
    store, key = context.store, context.key
    with store.filesystem.open_input_stream(path) as stream:
        text = stream.read().decode()
    lines = Record(text).lines
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / HISTORY).write_text(text)
        write_curves(context.spec.name, lines, Path(name))
        pa.fs.copy_files(name, store.path("train", key), destination_filesystem=store.filesystem)
    context.progress.note(f"curves: {store.path('train', key, 'curves.html')}")
    log_to_mlflow(context.spec.name, key, {"train": context.spec.train.model_dump()}, lines)


def tidy(context: Context) -> None:
    """Once the artifact is whole: let go of the checkpoints that it was taken from."""
    context.store.filesystem.delete_dir(context.store.path("train", context.key, "run"))


def _reason(error: BaseException) -> str:
    """What went wrong in the workers, without Ray's frames around it."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = [f"worker {rank}: {innermost(cause)}" for rank, cause in sorted(failures.items())]
    return f"train: {'; '.join(causes) or innermost(error)}"


def _work(config: dict[str, Any]) -> str | None:
    """What one worker does, from its start to the end of training; returns what is wrong with the spec, if so."""
    # A mistake in the spec shows on every worker alike: said once, and not tried again like a lost worker.
    try:
        spec, store = PipelineSpec.model_validate(config["spec"]), Store(config["store"])
        _train(spec, store, config["keys"], config["run_folder"], config["board"])
    except ValueError as error:
        return str(error)
    return None


def _train(spec: PipelineSpec, store: Store, keys: dict[str, str], run_folder: str, board: Any) -> None:
    import torch

    train = spec.train
    worker = ray.train.get_context()
    rank, num_workers = worker.get_world_rank(), worker.get_world_size()
    torch.set_num_threads(max(1, int(train.cpus_per_worker)))
    with Watchdog(train.hang_minutes * 60, lambda: board.post.remote(hung_worker=rank)) as watchdog:
        objective = objective_of(train.objective)
        rows, held_out = (open_examples(store, keys, split, objective.columns) for split in ("train", "held_out"))
        num_tokens, num_targets = ([*rows.column(name)] for name in ("num_tokens", "num_targets"))
        plan = step_plan(train, num_tokens, [1] * len(rows) if objective.per_example else num_targets)
        precision = _precision(train, store, run_folder)
        torch.manual_seed(train.seed)  # the same on all workers: the adapter's start
        engine = _engine(spec, objective, precision)
        torch.manual_seed(train.seed + 1 + rank)  # dropout

        def read(numbers: Sequence[int]) -> PackedBatch:
            return objective.batch([rows[number] for number in numbers])

        cut = _cut(engine, train, store, run_folder, plan, num_tokens, read)
        record = Record(_resume(engine))
        start_step = len(record.lines)
        rate = engine.total([matrix_product_rate(engine.device, dtype_of(precision))])[0]
        operations = StepOperations(engine.model)
        ended = time.monotonic()
        tokenizer = load_tokenizer(resolve(spec.base_model))

        def on_step(progress: StepProgress) -> None:
            nonlocal ended
            watchdog.alive()
            step, began, ended = progress.step - 1, ended, time.monotonic()
            targets = sum(num_targets[row] for part in plan.rows(step) for row in part)
            needed = operations.of(plan.num_tokens(step), targets, plan.num_pairs(step))
            record.add(progress, utilisation=needed / (ended - began) / rate, memory_gb=peak_gb())
            if rank == 0:
                resumed = {"resumed_from_step": start_step} if start_step else {}
                board.post.remote(**shown(progress), **resumed, num_workers=num_workers)

        def on_checkpoint(step: int, metrics: dict[str, Any]) -> None:
            record.add_held_out(metrics)
            write_state, steps_so_far = engine.snapshot(), record.text()

            def upload(local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
                """On a thread of Ray's, while training goes on."""
                folder = Path(local.path)
                write_state(folder)
                if rank == 0:
                    tokenizer.save_pretrained(folder / MODEL_FOLDER)
                    (folder / HISTORY).write_text(steps_so_far)
                target = f"{run_folder}/{name}"
                store.filesystem.create_dir(target, recursive=True)
                pa.fs.copy_files(str(folder), target, destination_filesystem=store.filesystem)
                return ray.train.Checkpoint(target, filesystem=store.filesystem)

            nonlocal ended
            watchdog.alive()
            ended = time.monotonic()
            if rank == 0:
                board.post.remote(held_out_loss=round(metrics["held_out_loss"], 4))
            extra = {
                "resumed_from_step": start_step,
                "peak_memory_gb": round(peak_gb(), 2),
                "batch_tokens": -(-train.pass_tokens // cut),
                "precision": precision,
            }
            ray.train.report(
                {**metrics, **extra},
                checkpoint=ray.train.Checkpoint.from_directory(tempfile.mkdtemp(prefix="rayconteur-")),
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                checkpoint_upload_fn=upload,
                delete_local_checkpoint_after_upload=True,
            )

        measured = held_out_batches(
            _first(held_out, train), train.pass_tokens // cut, rank, num_workers, objective.batch
        )
        try:
            fit(
                engine, plan, read, _settings(train, plan), list(measured),
                on_step=on_step, on_checkpoint=on_checkpoint,
                leaving=lambda: ray.train.get_preemption_info() is not None,
                before=record.steps(), split=cut,
            )  # fmt: skip
        except TrainingDiverged as error:
            raise ValueError(f"{error}: {_places(rows, error.rows, spec)}") from error


def _settings(train: TrainSpec, plan: StepPlan) -> FitSettings:
    return FitSettings(
        num_steps=num_steps(train, plan.steps_per_epoch),
        learning_rate=train.learning_rate,
        warmup_share=train.warmup_share,
        final_learning_rate_share=train.final_learning_rate_share,
        checkpoint_every_steps=train.checkpoint_every_steps,
        spike_factor=train.spike_factor,
        max_skipped_steps=train.max_skipped_steps,
    )


def _cut(
    engine: DeepSpeedEngine,
    train: TrainSpec,
    store: Store,
    run_folder: str,
    plan: StepPlan,
    lengths: Sequence[int],
    read: Callable[[Sequence[int]], PackedBatch],
) -> int:
    """Into how many parts each micro-batch is cut so that it fits into memory; the same when a run is resumed."""
    if (known := settled(store, run_folder).get("cut")) is not None:
        return int(known)
    if train.batch_tokens != "auto":
        return 1
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])

    def batch_of(tokens: int) -> PackedBatch:
        """The longest conversations that fit into so many tokens together."""
        taken, total = [], 0
        for row in longest_first:
            if total + lengths[row] <= tokens:
                taken.append(row)
                total += lengths[row]
        return read(taken or longest_first[-1:])

    machine_cpus = int(ray.cluster_resources().get("CPU", 1))
    tokens = largest_batch(
        engine,
        batch_of,
        most_tokens=train.pass_tokens,
        longest=max(lengths),
        limit_gb=train.memory_gb_per_worker or default_limit_gb(train.cpus_per_worker, machine_cpus),
    )
    cut = plan.parts_within(tokens)
    if engine.rank == 0:
        settle(store, run_folder, cut=cut)
    return cut


def _places(rows: Any, numbers: list[int], spec: PipelineSpec) -> str:
    """Where the conversations of these rows stand, as `file:line`, the first ones."""
    files = source_files(spec)
    found = sorted({(rows[number]["source"], rows[number]["line"]) for number in numbers})
    names = [f"{files[source].path}:{line}" for source, line in found[:_MOST_NAMED]]
    return ", ".join(names) + (f" and {len(found) - len(names)} more" if len(found) > len(names) else "")


def objective_of(section: ObjectiveSpec) -> Objective:
    """The objective that `train.objective` describes."""
    return OBJECTIVES[section.name](**section.model_dump(exclude={"name", "teacher", "max_reply_tokens"}))


def _precision(train: TrainSpec, store: Store, run_folder: str) -> str:
    """`bf16` or `fp32` for all workers of this run, also when it is resumed elsewhere."""
    import torch

    if train.precision != "auto":
        return train.precision
    if (known := settled(store, run_folder).get("precision")) is not None:
        return str(known)
    answers: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(answers, faster_precision("cuda" if train.gpus_per_worker else "cpu"))
    precision = "fp32" if "fp32" in answers else "bf16"
    if torch.distributed.get_rank() == 0:
        settle(store, run_folder, precision=precision)
    return precision


def _engine(spec: PipelineSpec, objective: Objective, precision: str) -> DeepSpeedEngine:
    train = spec.train
    if not train.gpus_per_worker:
        check_build_tools()
    if train.zero.offload == "nvme":
        check_file_offload()
    base_folder = resolve(spec.base_model)
    quantize = train.adapter.quantize if train.adapter else None
    model = load_model(base_folder, dtype_of(precision), PACKED_ATTENTION, quantize)
    if train.gpus_per_worker:
        use_liger(model)
    if train.adapter is not None:
        fields = train.adapter.model_dump(exclude={"quantize"})
        model = adapters.attach(model, **fields, base=spec.base_model)
    adapters.freeze(model, train.frozen)
    return DeepSpeedEngine(
        model,
        objective,
        zero_stage=train.zero.stage,
        precision=precision,
        weight_decay=train.weight_decay,
        gradient_clip=train.gradient_clip,
        offload=train.zero.offload,
        offload_folder=train.zero.offload_folder,
        extra_config=train.deepspeed,
    )


def _resume(engine: DeepSpeedEngine) -> str:
    """Load the last checkpoint if there is one; returns the history up to it."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return ""
    with checkpoint.as_directory() as name:
        engine.load(Path(name))
        return (Path(name) / HISTORY).read_text()


def _first(rows: Any, train: TrainSpec) -> list[dict[str, Any]]:
    """The first rows that hold `held_out_tokens` tokens together."""
    taken, tokens = [], 0
    for row in rows:
        if tokens >= train.held_out_tokens:
            break
        taken.append(row)
        tokens += row["num_tokens"]
    return taken
