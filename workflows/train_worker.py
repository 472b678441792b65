"""One worker of a training: what it does from the corpus to the last checkpoint, under `train` and under `tune`.

worker = TrainWorker()                           # in every process of a torch.distributed group
worker.train(job, on_checkpoint, post, leaving)  # and again, with another job: what can be kept is kept
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from models import adapters
from models.attention import PACKED_ATTENTION
from models.base import resolve
from models.batch_size import default_limit_gb, forget_peak, largest_batch, peak_gb
from models.deepspeed_engine import DeepSpeedEngine
from models.engine import MODEL_FOLDER
from models.fit import SECONDS_EACH, FitSettings, TrainingDiverged, fit, held_out_batches, measure
from models.fit import Progress as StepProgress
from models.flops import StepOperations, matrix_product_rate
from models.liger import use_liger
from models.objectives import OBJECTIVES, Objective
from models.operator import check_build_tools, check_file_offload
from models.packing import PackedBatch, StepPlan
from models.precision import dtype_of, faster_precision
from models.reuse import BaseModels
from models.snapshot import Write
from workflows.corpus import open_examples
from workflows.history import HISTORY, Record, shown
from workflows.pipeline import num_steps, source_files, step_plan
from workflows.recovery import Slowest, Watchdog, settle, settled
from workflows.spec import PipelineSpec
from workflows.spec_train import ObjectiveSpec, TrainSpec
from workflows.store import Store

_MOST_NAMED = 20


@dataclass(frozen=True)
class Job:
    """A training: of what, and from where."""

    spec: PipelineSpec
    store: Store
    keys: dict[str, str]
    """the artifacts that it reads, by stage"""
    run_folder: str
    """where on the store this training keeps what it has found out for its later starts"""
    resume_from: Path | None = None
    """a checkpoint on this machine to go on from"""
    search_folder: str | None = None
    """where all trainings of a search keep what they share: the precision"""
    only_measure: bool = False
    """take no step: measure the held-out loss of the checkpoint"""


class TrainWorker:
    """This process as a worker; all workers of its group call the same methods together."""

    def __init__(self) -> None:
        self._bases = BaseModels()
        self._rates: dict[str, float] = {}

    def train(
        self,
        job: Job,
        on_checkpoint: Callable[[dict[str, Any], Write], None],
        post: Callable[..., Any],
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the end, or until `on_checkpoint` raises; raises ValueError for a mistake in the spec.

        `on_checkpoint(metrics, write)`: `write(folder)` leaves this worker's part of the checkpoint there. `post`
        shows values on the display. `leaving` as in `fit`.
        """
        try:
            self._train(job, on_checkpoint, post, leaving)
        finally:
            gc.collect()  # a model and its optimizer refer to each other

    def _train(
        self,
        job: Job,
        on_checkpoint: Callable[[dict[str, Any], Write], None],
        post: Callable[..., Any],
        leaving: Callable[[], bool],
    ) -> None:
        spec, store, train = job.spec, job.store, job.spec.train
        torch.set_num_threads(max(1, int(train.cpus_per_worker)))
        forget_peak()
        rank, num_workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
        with Watchdog(train.hang_minutes * 60, lambda: post(hung_worker=rank)) as watchdog:
            objective = objective_of(train.objective)
            rows, held_out = (
                open_examples(store, job.keys, split, objective.columns) for split in ("train", "held_out")
            )
            num_tokens, num_targets = ([*rows.column(name)] for name in ("num_tokens", "num_targets"))
            plan = step_plan(train, num_tokens, [1] * len(rows) if objective.per_example else num_targets)
            precision = _precision(train, store, job.search_folder or job.run_folder)
            torch.manual_seed(train.seed)  # the same on all workers: the adapter's start
            engine = self._engine(spec, objective, precision)
            torch.manual_seed(train.seed + 1 + rank)  # dropout

            def read(numbers: Sequence[int]) -> PackedBatch:
                return objective.batch([rows[number] for number in numbers])

            cut = _cut(engine, train, store, job.run_folder, plan, num_tokens, read)
            record = Record(_resume(engine, job.resume_from))
            start_step = len(record.lines)
            seconds = record.lines[-1].get("seconds", 0.0) if record.lines else 0.0
            measured = list(
                held_out_batches(
                    _first(held_out, train), train.pass_tokens // cut, rank, num_workers, objective.batch
                )
            )
            extra = {
                "resumed_from_step": start_step,
                "batch_tokens": -(-train.pass_tokens // cut),
                "precision": precision,
            }
            if job.only_measure:
                means, _ = measure(engine, measured)
                found = {f"held_out_{name}": value for name, value in means.items()}
                on_checkpoint({"step": start_step, **found, **extra}, lambda folder: None)
                engine.close()
                return
            rate = self._rate(engine, precision)
            operations = StepOperations(engine.model)
            settings = _settings(train, plan)
            tokenizer = self._bases.tokenizer(resolve(spec.base_model))
            ended, slowest = time.monotonic(), Slowest()

            def on_step(progress: StepProgress) -> None:
                nonlocal ended, seconds
                watchdog.alive()
                step, began, ended = progress.step - 1, ended, time.monotonic()
                seconds += ended - began
                targets = sum(num_targets[row] for part in plan.rows(step) for row in part)
                needed = operations.of(plan.num_tokens(step), targets, plan.num_pairs(step))
                utilisation = needed / (ended - began) / rate
                record.add(progress, utilisation=utilisation, memory_gb=peak_gb(), seconds=seconds)
                if rank == 0:
                    resumed = {"resumed_from_step": start_step} if start_step else {}
                    post(**shown(progress), **resumed, num_workers=num_workers)

            def at_checkpoint(step: int, metrics: dict[str, Any]) -> None:
                record.add_held_out(metrics)
                write_state, steps_so_far = engine.snapshot(), record.text()

                def write(folder: Path) -> None:
                    write_state(folder)
                    if rank == 0:
                        tokenizer.save_pretrained(folder / MODEL_FOLDER)
                        (folder / HISTORY).write_text(steps_so_far)

                nonlocal ended
                watchdog.alive()
                if (slow := slowest.of(metrics.pop(SECONDS_EACH))) and rank == 0:
                    post(note=f"train: {slow}")
                if rank == 0:
                    post(held_out_loss=round(metrics["held_out_loss"], 4))
                held = {"peak_memory_gb": round(peak_gb(), 2), "seconds": seconds}
                on_checkpoint({**metrics, **extra, **held, "num_steps": settings.num_steps}, write)
                watchdog.alive()
                ended = time.monotonic()

            try:
                fit(
                    engine, plan, read, settings, measured,
                    on_step=on_step, on_checkpoint=at_checkpoint, leaving=leaving,
                    before=record.steps(), split=cut,
                )  # fmt: skip
            except TrainingDiverged as error:
                raise ValueError(f"{error}: {_places(rows, error.rows, spec)}") from error
            finally:
                engine.close()

    def _engine(self, spec: PipelineSpec, objective: Objective, precision: str) -> DeepSpeedEngine:
        train = spec.train
        if not train.gpus_per_worker:
            check_build_tools()
        if train.zero.offload == "nvme":
            check_file_offload()
        model = self._bases.model(
            resolve(spec.base_model),
            dtype_of(precision),
            PACKED_ATTENTION,
            quantize=train.adapter.quantize if train.adapter else None,
            stays=train.adapter is not None and train.zero.stage < 3,
        )
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

    def _rate(self, engine: DeepSpeedEngine, precision: str) -> float:
        """Matrix products that all workers compute in a second; measured once."""
        if precision not in self._rates:
            self._rates[precision] = engine.total([matrix_product_rate(engine.device, dtype_of(precision))])[0]
        return self._rates[precision]


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


def _resume(engine: DeepSpeedEngine, folder: Path | None) -> str:
    """Load a checkpoint if there is one; returns the history up to it."""
    if folder is None:
        return ""
    engine.load(folder)
    return (folder / HISTORY).read_text()


def _first(rows: Any, train: TrainSpec) -> list[dict[str, Any]]:
    """The first rows that hold `held_out_tokens` tokens together."""
    taken, tokens = [], 0
    for row in rows:
        if tokens >= train.held_out_tokens:
            break
        taken.append(row)
        tokens += row["num_tokens"]
    return taken
