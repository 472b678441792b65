"""train: trains a checkpoint on the corpus, with Ray Train and DeepSpeed.

    rayconteur train PIPELINE

Writes to the store: `model/`, a Hugging Face folder (for LoRA a PEFT adapter) of the best checkpoint by held-out
loss, with tokenizer and chat template; for an adversarial pair the last one, with `discriminator/` beside it;
`history.jsonl`, a line for every step; `curves.html` and `tensorboard/`, its curves. If MLFLOW_TRACKING_URI is set,
also an MLflow run. While it runs, `run/` has the last and the best checkpoint: the same command resumes from the
last.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import ray
import ray.train

from models.errors import RayconteurError
from models.training.deepspeed_operator import check_build_tools
from models.training.engine import MODEL_FOLDER
from models.training.report import Report
from models.training.snapshot import Write
from workflows.cluster.board import watching
from workflows.cluster.errors import StageCrashed, describe_error, is_users_mistake, note_traceback
from workflows.cluster.workers import check_fits
from workflows.figures import TrainFigures, held_out_of
from workflows.search.checkpoints import is_whole
from workflows.search.records import read_search, trial_folder
from workflows.spec import AdversarialSpec, PipelineSpec
from workflows.stage import CONTINUED, DISCRIMINATOR, Context, StageFailed
from workflows.store import Store
from workflows.suites.read import measured_suites
from workflows.suites.suite import Suite
from workflows.training.curves import check_mlflow, log_to_mlflow, write_curves
from workflows.training.history import HISTORY, History
from workflows.training.inputs import TrainingInputs, inputs_of
from workflows.training.recovery import Recovery, clear_unfinished, decisions, failure_text
from workflows.training.reporter import Callbacks
from workflows.training.trainer import torch_trainer
from workflows.training.worker import TrainWorker, WorkerSettings

_ELASTIC_START_SECONDS = "10"


def run(context: Context) -> TrainFigures:
    """Train on the corpus, from the last checkpoint if there is one; returns the figures."""
    if "tune" in context.inputs:
        return _take_winner(context)
    spec, store, train = context.spec, context.store, context.spec.train
    check_fits(spec, ["train"], context.progress)
    if not train.gpus_per_worker:
        check_build_tools()
    check_mlflow()
    folder = store.path("train", context.key)
    clear_unfinished(store, context.key)
    is_pair = isinstance(train.objective, AdversarialSpec)
    elastic = isinstance(train.num_workers, list)
    if elastic:  # Ray takes a while to notice a lost machine, and would wait a minute for workers on it
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _ELASTIC_START_SECONDS)
    inputs = inputs_of(spec, {name: artifact.key for name, artifact in context.inputs.items()})
    with watching(context.progress, "steps") as board:
        suites = measured_suites(spec) if train.evaluate_every_steps else []
        payload = _Payload(spec, store.uri, inputs, f"{folder}/run", board, suites)
        trainer = torch_trainer(
            train,
            lambda: _work(payload),
            (train.min_workers, train.max_workers) if elastic else train.min_workers,
            store,
            folder,
            name="run",
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute="step" if is_pair else "held_out_loss",
                checkpoint_score_order="max" if is_pair else "min",
            ),
            callbacks=[Recovery(store.uri, f"{folder}/run", board)],
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise (StageFailed if is_users_mistake(error) else StageCrashed)(_reason(error)) from error
        except SystemExit:  # Ray Train raises this on Ctrl-C
            raise KeyboardInterrupt from None
    if result.return_value:
        raise StageFailed(result.return_value)
    best, figures = min(result.best_checkpoints, key=lambda pair: pair[1]["held_out_loss"])
    if is_pair:  # a discriminator belongs to the generator that it trained against
        best, figures = result.checkpoint, result.metrics
    _keep_models(context, best.path)
    _keep_history(context, f"{result.checkpoint.path}/{HISTORY}")
    precision = decisions(store, f"{folder}/run").precision or train.precision
    return _figures(result.metrics | {"precision": precision}, figures)


def _figures(last: Mapping[str, Any], best: Mapping[str, Any]) -> TrainFigures:
    """The artifact's figures, from the reports of the last and the best checkpoint."""
    return TrainFigures(
        steps=last["step"],
        best_step=best["step"],
        held_out=held_out_of(best),
        training_loss=last["loss"],
        tokens=last["num_tokens"],
        tokens_per_second=last.get("tokens_per_second"),
        resumed_from_step=last.get("resumed_from_step"),
        batch_tokens=last.get("batch_tokens"),
        precision=last.get("precision"),
        skipped_steps=last.get("skipped_steps"),
        peak_memory_gb_per_worker=last["peak_memory_gb"],
    )


def _take_winner(context: Context) -> TrainFigures:
    """Use the checkpoint of the search's winner; nothing is trained again."""
    store = context.store
    search = read_search(store, context.inputs["tune"].key)
    assert search is not None
    assert search.winner is not None
    winner = search.winner
    trial = next(trial for trial in search.trials if (trial.number, trial.key) == (winner.trial, winner.key))
    report = next(report for report in trial.reports if report.step == winner.step)
    folder = f"{trial_folder(store, winner.key)}/{winner.checkpoint}"
    if not is_whole(store, folder):
        store.remove(store.path("tune", search.key, "manifest.json"))
        raise StageFailed(
            f"train: the checkpoint of the search's winner, {folder}, is gone or incomplete; run the same command "
            "again: the search then trains what is missing"
        )
    _keep_models(context, folder)
    _keep_history(context, f"{folder}/{HISTORY}")
    figures = {"step": report.step, **report.figures}
    context.progress.note(f"train: the checkpoint of trial {winner.trial} at step {winner.step}")
    return _figures(figures, figures)


def _keep_models(context: Context, checkpoint: str) -> None:
    """Copy a checkpoint's model, and further models beside it, to the artifact."""
    store, key = context.store, context.key
    store.add_folder(f"{checkpoint}/{MODEL_FOLDER}", "train", key, MODEL_FOLDER, store.filesystem)
    for name in (DISCRIMINATOR, CONTINUED):
        beside = f"{checkpoint}/{name}/{MODEL_FOLDER}"
        if store.is_folder(beside):
            store.add_folder(beside, "train", key, name, store.filesystem)


def _keep_history(context: Context, path: str) -> None:
    """Copy the history at `path` to the artifact, with the curves made from it."""
    store, key = context.store, context.key
    with store.filesystem.open_input_stream(path) as stream:
        text = stream.read().decode()
    lines = History(text).lines
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / HISTORY).write_text(text)
        write_curves(context.spec.name, lines, Path(name))
        pa.fs.copy_files(name, store.path("train", key), destination_filesystem=store.filesystem)
    context.progress.note(f"curves: {store.path('train', key, 'curves.html')}")
    log_to_mlflow(context.spec.name, key, {"train": context.spec.train.model_dump()}, lines)


def tidy(context: Context) -> None:
    """Delete the run's checkpoints once the artifact is complete."""
    context.store.remove(context.store.path("train", context.key, "run"))


def _reason(error: BaseException) -> str:
    """The workers' errors, without Ray's frames."""
    failures = getattr(error, "worker_failures", None) or {}
    return f"train: {failure_text(failures) or describe_error(error)}"


@dataclass(frozen=True)
class _Payload:
    """The configuration of a worker."""

    spec: PipelineSpec
    store: str
    inputs: TrainingInputs
    run_folder: str
    board: Any
    """the display's actor"""
    suites: Sequence[Suite]
    """whose items the model replies to at checkpoints"""


def _work(payload: _Payload) -> str | None:
    """The main function of a worker; returns a mistake in the spec as text, if there is one."""
    # A mistake in the spec is the same on every worker: report it once, and do not retry as for a lost worker.
    try:
        _train(payload)
    except RayconteurError as error:
        return str(error)
    except Exception as error:
        note_traceback(error)
        raise
    return None


def _train(payload: _Payload) -> None:
    store, run_folder, board = Store(payload.store), payload.run_folder, payload.board

    def on_checkpoint(report: Report, write: Write) -> None:
        def upload(local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            """Runs in a thread of Ray, during training."""
            write(Path(local.path))
            store.upload(Path(local.path), f"{run_folder}/{name}")
            return ray.train.Checkpoint(f"{run_folder}/{name}", filesystem=store.filesystem)

        ray.train.report(
            {"step": report.step, "num_steps": report.num_steps, **report.figures},
            checkpoint=ray.train.Checkpoint.from_directory(tempfile.mkdtemp(prefix="rayconteur-")),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=True,
        )

    callbacks = Callbacks(
        on_checkpoint,
        post=lambda **values: board.post.remote(**values),
        leaving=lambda: ray.train.get_preemption_info() is not None,
    )
    checkpoint = ray.train.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else contextlib.nullcontext() as folder:
        resume_from = Path(folder) if folder else None
        settings = WorkerSettings(
            payload.spec, store, payload.inputs, run_folder, resume_from=resume_from, suites=payload.suites,
            suites_every_steps=payload.spec.train.evaluate_every_steps or 1,
        )  # fmt: skip
        TrainWorker().train(settings, callbacks)
