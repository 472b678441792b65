"""train: corpus to checkpoint, with Ray Train and DeepSpeed.

    rayconteur train PIPELINE

Leaves in the store: `model/`, a Hugging Face folder (for LoRA a PEFT adapter) of the best checkpoint by held-out
loss, with tokenizer and chat template; and `history.jsonl`, a line for every step.

While it runs, `run/` holds the last and the best checkpoint: the same command goes on from the last.
"""

import json
import resource
import tempfile
import time
from dataclasses import asdict
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
from models.engine import MODEL_FOLDER, DeepSpeedEngine
from models.fit import FitSettings, fit, held_out_batches
from models.fit import Progress as StepProgress
from models.objectives import OBJECTIVES, Objective
from models.operator import check_build_tools
from models.packing import StepPlan
from workflows.cluster import check_fits, innermost, watching, worker_environment
from workflows.corpus import open_examples
from workflows.pipeline import Context, StageFailed, num_steps
from workflows.spec import ObjectiveSpec, PipelineSpec, TrainSpec
from workflows.store import Store


def run(context: Context) -> dict[str, Any]:
    """Train on the corpus, from the last checkpoint if there is one; returns what was measured."""
    spec, store, train = context.spec, context.store, context.spec.train
    check_fits("train.num_workers", train.num_workers, train.cpus_per_worker, train.gpus_per_worker)
    if not train.gpus_per_worker:
        check_build_tools()
    folder = store.path("train", context.key)
    resources = {"CPU": train.cpus_per_worker, **({"GPU": train.gpus_per_worker} if train.gpus_per_worker else {})}
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
                num_workers=train.num_workers, use_gpu=train.gpus_per_worker > 0, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name="run",
                storage_path=folder,
                storage_filesystem=store.filesystem,
                failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=1, checkpoint_score_attribute="held_out_loss", checkpoint_score_order="min"
                ),
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
    store.filesystem.copy_file(f"{result.checkpoint.path}/history.jsonl", f"{folder}/history.jsonl")
    return {
        "steps": last["step"],
        "best_step": figures["step"],
        **{name: value for name, value in figures.items() if name.startswith("held_out_")},
        "training_loss": last["loss"],
        "tokens": last["num_tokens"],
        "tokens_per_second": last["tokens_per_second"],
        "resumed_from_step": last["resumed_from_step"],
        "peak_memory_gb_per_worker": last["peak_memory_gb"],
    }


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
    objective = objective_of(spec.train.objective)
    rows, held_out = (open_examples(store, keys, split, objective.columns) for split in ("train", "held_out"))
    plan = StepPlan(
        rows.column("num_tokens"),
        [1] * len(rows) if objective.per_example else rows.column("num_targets"),
        micro_batch_tokens=train.micro_batch_tokens,
        num_workers=num_workers,
        gradient_accumulation=train.gradient_accumulation,
        seed=train.seed,
    )
    torch.manual_seed(train.seed)  # the same on all workers: the adapter's start
    engine = _engine(spec, objective)
    torch.manual_seed(train.seed + 1 + rank)  # dropout
    start_step, history = _resume(engine)
    settings = FitSettings(
        num_steps=num_steps(train, plan.steps_per_epoch),
        learning_rate=train.learning_rate,
        warmup_share=train.warmup_share,
        final_learning_rate_share=train.final_learning_rate_share,
        checkpoint_every_steps=train.checkpoint_every_steps,
    )
    tokenizer = load_tokenizer(resolve(spec.base_model))

    def on_step(progress: StepProgress) -> None:
        line = asdict(progress)
        figures = line.pop("figures")
        history.append({**line, **figures, "time": round(time.time(), 3)})
        if rank == 0:
            shown = {name: round(value, 4) for name, value in {"loss": progress.loss, **figures}.items()}
            shown["tokens_per_second"] = round(progress.tokens_per_second, 1)
            resumed = {"resumed_from_step": start_step} if start_step else {}
            board.post.remote(done=progress.step, total=progress.num_steps, **shown, **resumed)

    def on_checkpoint(step: int, metrics: dict[str, Any]) -> None:
        write_state, steps_so_far = engine.snapshot(), list(history)

        def upload(local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            """On a thread of Ray's, while training goes on."""
            folder = Path(local.path)
            write_state(folder)
            if rank == 0:
                tokenizer.save_pretrained(folder / MODEL_FOLDER)
                (folder / "step").write_text(str(step))
                (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps_so_far))
            target = f"{run_folder}/{name}"
            store.filesystem.create_dir(target, recursive=True)
            pa.fs.copy_files(str(folder), target, destination_filesystem=store.filesystem)
            return ray.train.Checkpoint(target, filesystem=store.filesystem)

        if rank == 0:
            board.post.remote(held_out_loss=round(metrics["held_out_loss"], 4))
        extra = {"resumed_from_step": start_step, "peak_memory_gb": _peak_memory_gb()}
        ray.train.report(
            {**metrics, **extra},
            checkpoint=ray.train.Checkpoint.from_directory(tempfile.mkdtemp(prefix="rayconteur-")),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=True,
        )

    fit(
        engine,
        plan,
        lambda numbers: objective.batch([rows[number] for number in numbers]),
        settings,
        list(held_out_batches(_first(held_out, train), train.micro_batch_tokens, rank, num_workers, objective.batch)),
        on_step=on_step,
        on_checkpoint=on_checkpoint,
        start_step=start_step,
    )


def objective_of(section: ObjectiveSpec) -> Objective:
    """The objective that `train.objective` describes."""
    return OBJECTIVES[section.name](**section.model_dump(exclude={"name", "teacher"}))


def _engine(spec: PipelineSpec, objective: Objective) -> DeepSpeedEngine:
    import torch

    train = spec.train
    if not train.gpus_per_worker:
        check_build_tools()
    base_folder = resolve(spec.base_model)
    model = load_model(base_folder, torch.bfloat16 if train.precision == "bf16" else torch.float32, PACKED_ATTENTION)
    if train.adapter is not None:
        lora = train.adapter
        model = adapters.attach(model, lora.rank, lora.alpha, lora.dropout, lora.target_modules, base=spec.base_model)
    return DeepSpeedEngine(
        model,
        objective,
        zero_stage=train.zero.stage,
        precision=train.precision,
        gradient_accumulation=train.gradient_accumulation,
        weight_decay=train.weight_decay,
        gradient_clip=train.gradient_clip,
    )


def _resume(engine: DeepSpeedEngine) -> tuple[int, list[dict[str, Any]]]:
    """Load the last checkpoint if there is one; returns the step to go on with and the history up to it."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, []
    with checkpoint.as_directory() as name:
        folder = Path(name)
        engine.load(folder)
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        return int((folder / "step").read_text()), history


def _first(rows: Any, train: TrainSpec) -> list[dict[str, Any]]:
    """The first rows that hold `held_out_tokens` tokens together."""
    taken, tokens = [], 0
    for row in rows:
        if tokens >= train.held_out_tokens:
            break
        taken.append(row)
        tokens += row["num_tokens"]
    return taken


def _peak_memory_gb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
