"""One worker of a training: what it does from the corpus to the last checkpoint, under `train` and under `tune`.

worker = TrainWorker()                           # in every process of a torch.distributed group
worker.train(job, on_checkpoint, post, leaving)  # and again, with another job: what can be kept is kept
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import ray
import torch

from models.base import adapters
from models.base.load import resolve
from models.base.new_tokens import fit_embeddings
from models.base.precision import dtype_of, faster_precision
from models.base.reuse import BaseModels
from models.chat import end_token_ids
from models.errors import RayconteurError
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.flops import StepOperations, matrix_product_rate
from models.kernels.liger import use_liger
from models.objectives.adversarial import Generate
from models.objectives.base import Objective
from models.objectives.registry import OBJECTIVES
from models.packing import PackedBatch, StepPlan
from models.training.batch_size import default_limit_gb, forget_peak, largest_batch
from models.training.deepspeed_engine import DeepSpeedEngine
from models.training.deepspeed_operator import check_build_tools, check_file_offload
from models.training.fit import FitCallbacks, FitSettings, TrainingDiverged, fit, held_out_batches, measure
from models.training.snapshot import Write, model_writer
from workflows.corpus.chat_tokenizer import chat_tokenizer
from workflows.corpus.files.sources import source_files
from workflows.corpus.new_model import discriminator_base
from workflows.corpus.reader import open_examples
from workflows.spec import ObjectiveSpec, PipelineSpec, TrainSpec
from workflows.store import Store
from workflows.training.adversarial import AdversarialPhases
from workflows.training.control import continued
from workflows.training.foresight import check_worker, deepspeed_settings
from workflows.training.history import HISTORY, History
from workflows.training.readings import note_of
from workflows.training.recovery import Watchdog, decide, decisions
from workflows.training.reporter import Reporter
from workflows.training.steps import num_steps, step_plan

_MAX_NAMED = 20


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
        """Train to the end, or until `on_checkpoint` raises; raises RayconteurError for a mistake in the spec.

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
            check_worker(spec, resolve(spec.base_model), (rows, held_out))
            num_tokens, num_targets = ([*rows.column(name)] for name in ("num_tokens", "num_targets"))
            plan = step_plan(train, num_tokens, [1] * len(rows) if objective.per_example else num_targets)
            precision = _precision(train, store, job.search_folder or job.run_folder)
            torch.manual_seed(train.seed)  # the same on all workers: the adapter's start
            if rank == 0 and (note := note_of(resolve(spec.base_model))):
                post(note=note)
            engine = self._engine(spec, objective, precision)
            torch.manual_seed(train.seed + 1 + rank)  # dropout

            def read(numbers: Sequence[int]) -> PackedBatch:
                return objective.batch([rows[number] for number in numbers])

            cut = _cut(engine, train, store, job.run_folder, plan, num_tokens, read)
            record = History(_resume(engine, job.resume_from))
            start_step = len(record.lines)
            first_held_out = _first(held_out, train)
            measured = list(
                held_out_batches(first_held_out, train.pass_tokens // cut, rank, num_workers, objective.batch)
            )
            extra = {
                "resumed_from_step": start_step,
                "batch_tokens": -(-train.pass_tokens // cut),
                "precision": precision,
            }
            settings = _settings(train, plan)
            if job.only_measure:
                means, _ = measure(engine, measured)
                found = {f"held_out_{name}": value for name, value in means.items()}
                steps = {"step": start_step, "num_steps": settings.num_steps}
                on_checkpoint({**steps, **found, **extra}, lambda folder: None)
                engine.close()
                return
            operations = StepOperations(engine.model)
            tokenizer = chat_tokenizer(spec)

            def operations_of(step: int) -> float:
                targets = sum(num_targets[row] for part in plan.rows(step) for row in part)
                return operations.of(plan.num_tokens(step), targets, plan.num_pairs(step))

            reports = Reporter(
                engine, record, tokenizer, watchdog, post, on_checkpoint, extra, self._rate(engine, precision)
            )

            def continue_likelihood(start: dict[str, Any], seconds: float) -> tuple[Write, float]:
                model = self._model(spec, precision)
                model.load_state_dict(start, strict=False)
                other = self._on_deepspeed(model, objective, train, precision)
                try:
                    weights, loss = continued(
                        other, plan, read, measured, train.learning_rate / 2, seconds, cut, reports.continued
                    )
                finally:
                    other.close()
                return model_writer(model, weights), loss

            pair = None
            if isinstance(objective, Generate):
                pair = AdversarialPhases(
                    spec, objective, engine, reports, rows, first_held_out, measured, settings.num_steps,
                    end_tokens=sorted(end_token_ids(tokenizer)),
                    resume_from=job.resume_from,
                    make_reader=lambda: self._model(spec, precision, discriminates=True),
                    make_generator=lambda: self._model(spec, precision),
                    on_deepspeed=lambda model, loss: self._on_deepspeed(model, loss, train, precision),
                    continue_likelihood=continue_likelihood,
                )  # fmt: skip
            try:
                if pair is None or pair.is_likelihood:
                    fit(
                        engine, plan, read, settings, measured,
                        FitCallbacks(
                            on_step=lambda progress: reports.step(progress, operations_of(progress.step - 1)),
                            on_checkpoint=lambda step, metrics: reports.checkpoint(
                                pair.num_steps if pair else settings.num_steps, metrics
                            ),
                            leaving=leaving,
                            is_over=(lambda: not pair.is_likelihood) if pair else (lambda: False),
                        ),
                        before=record.steps(), micro_batch_parts=cut,
                    )  # fmt: skip
                if pair is not None:
                    pair.play(leaving)
            except TrainingDiverged as error:
                raise RayconteurError(f"{error}: {_places(rows, error.rows, spec)}") from error
            finally:
                if pair is not None:
                    pair.close()
                engine.close()

    def _model(self, spec: PipelineSpec, precision: str, discriminates: bool = False) -> Any:
        """The base model with what is trained of it; what an adapter leaves as it is, all models here share."""
        train = spec.train
        model = self._bases.model(
            discriminator_base(spec) if discriminates else resolve(spec.base_model),
            dtype_of(precision),
            PACKED_ATTENTION,
            quantize=train.adapter.quantize if train.adapter else None,
            stays=train.adapter is not None and train.zero.stage < 3,
        )
        if train.gpus_per_worker:
            use_liger(model)
        new = fit_embeddings(model, resolve(spec.base_model), chat_tokenizer(spec)) if spec.data.new_tokens else []
        if train.adapter is not None:
            fields = train.adapter.model_dump(exclude={"quantize"})
            model = adapters.attach(model, **fields, base=spec.base_model, new_tokens=new)
        adapters.freeze(model, train.frozen, has_new_tokens=bool(new))
        return model

    def _engine(self, spec: PipelineSpec, objective: Objective, precision: str) -> DeepSpeedEngine:
        if not spec.train.gpus_per_worker:
            check_build_tools()
        if spec.train.zero.offload == "nvme":
            check_file_offload()
        return self._on_deepspeed(self._model(spec, precision), objective, spec.train, precision)

    def _on_deepspeed(self, model: Any, objective: Any, train: TrainSpec, precision: str) -> DeepSpeedEngine:
        return DeepSpeedEngine(model, objective, deepspeed_settings(train, precision), train.weight_decay)

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
    if (known := decisions(store, run_folder).get("cut")) is not None:
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
        max_tokens=train.pass_tokens,
        longest=max(lengths),
        limit_gb=train.memory_gb_per_worker or default_limit_gb(train.cpus_per_worker, machine_cpus),
    )
    cut = plan.parts_within(tokens)
    if engine.rank == 0:
        decide(store, run_folder, cut=cut)
    return cut


def _places(rows: Any, numbers: list[int], spec: PipelineSpec) -> str:
    """Where the conversations of these rows stand, as `file:line`, the first ones."""
    files = source_files(spec)
    found = sorted({(rows[number]["source"], rows[number]["line"]) for number in numbers})
    names = [f"{files[source].path}:{line}" for source, line in found[:_MAX_NAMED]]
    return ", ".join(names) + (f" and {len(found) - len(names)} more" if len(found) > len(names) else "")


def objective_of(section: ObjectiveSpec) -> Objective:
    """The objective that `train.objective` describes."""
    fields = section.model_dump(include=set(signature(OBJECTIVES[section.name]).parameters))
    return OBJECTIVES[section.name](**fields)


def _precision(train: TrainSpec, store: Store, run_folder: str) -> str:
    """`bf16` or `fp32` for all workers of this run, also when it is resumed elsewhere."""
    if train.precision != "auto":
        return train.precision
    if (known := decisions(store, run_folder).get("precision")) is not None:
        return str(known)
    answers: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(answers, faster_precision("cuda" if train.gpus_per_worker else "cpu"))
    precision = "fp32" if "fp32" in answers else "bf16"
    if torch.distributed.get_rank() == 0:
        decide(store, run_folder, precision=precision)
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
