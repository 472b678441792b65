"""One worker of a training, from the corpus to the last checkpoint, for `train` and for `tune`.

worker = TrainWorker()                           # in every process of a torch.distributed group
worker.train(settings, callbacks)                # and again with others; reuses what it can
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from tqdm.std import tqdm  # type: ignore[import-untyped]

from models.base import adapters
from models.base.load import resolve
from models.base.precision import dtype_of, faster_precision
from models.base.reuse import BaseModels
from models.errors import RayconteurError
from models.kernels.flops import StepOperations, matrix_product_rate
from models.objectives.adversarial import Generate
from models.packing import StepPlan
from models.training.batch_size import default_limit_gb, forget_peak, largest_batch
from models.training.deepspeed_engine import DeepSpeedEngine
from models.training.engine import MODEL_FOLDER
from models.training.fit import FitCallbacks, FitSettings, TrainingDiverged, fit, held_out_figures, measure
from models.training.pack import Pack, PackedEngine, is_packed
from models.training.report import PACKED, Progress, Report
from models.training.snapshot import Write
from workflows.corpus.chat_tokenizer import chat_tokenizer
from workflows.spec import PipelineSpec, TrainSpec
from workflows.store import Store
from workflows.suites.suite import Suite
from workflows.training.adversarial import AdversarialPhases
from workflows.training.data import TrainingData, open_data, places
from workflows.training.history import HISTORY, History
from workflows.training.inputs import TrainingInputs
from workflows.training.readings import note_of
from workflows.training.recovery import Decisions, Watchdog, decide, decisions
from workflows.training.reporter import Callbacks, Reporter
from workflows.training.steps import PASS_TOKENS, num_steps
from workflows.training.suite_scores import SuiteScores
from workflows.training.trained_models import TrainedModels

Engine = DeepSpeedEngine | PackedEngine


@dataclass(frozen=True)
class WorkerSettings:
    """A training: its settings, inputs and checkpoints."""

    spec: PipelineSpec
    store: Store
    inputs: TrainingInputs
    run_folder: str
    """the folder in the store for decisions that hold for later starts of this training"""
    resume_from: Path | None = None
    """a local checkpoint from which to resume"""
    search_folder: str | None = None
    """the folder of decisions that all trainings of a search share: the precision"""
    only_measure: bool = False
    """only measure the held-out loss of the checkpoint, without a step"""
    suites: Sequence[Suite] = ()
    """whose items the model replies to at checkpoints"""
    suites_every_steps: int = 1
    process_group: Any = None
    """the torch.distributed group of its workers, if it is not the default one"""


class TrainWorker:
    """A worker of a training; all workers of its group call the same methods together."""

    def __init__(self) -> None:
        self._bases = BaseModels()
        self._rates: dict[str, float] = {}
        self._pack: Pack | None = None

    def open_pack(self, spec: PipelineSpec, store: Store, search_folder: str) -> None:
        """From now on, `train` may run on several threads, with an adapter each; their passes over the base model are
        joined.
        """
        torch.set_num_threads(1)  # only the pack's thread uses more
        tqdm.get_lock()  # made for good: datasets makes and deletes it in each thread that opens files
        train, precision = spec.train, _precision(spec.train, store, search_folder)
        base = TrainedModels(self._bases, spec, precision).base()
        threads = max(1, int(train.cpus_per_worker))
        parts = decisions(store, search_folder).cut or 1
        self._pack = Pack(base, max(train.pass_tokens, PASS_TOKENS) // parts, threads)
        with self._pack.member():
            self._pack.call(lambda: self._rate(precision, base.device))

    def train(self, settings: WorkerSettings, callbacks: Callbacks) -> None:
        """Train to the end, or until `on_checkpoint` raises; raises RayconteurError for a mistake in the spec."""
        try:
            self._train(settings, callbacks)
        finally:
            gc.collect()  # frees the reference cycle of a model and its optimizer

    def _train(self, settings: WorkerSettings, callbacks: Callbacks) -> None:
        spec, train = settings.spec, settings.spec.train
        if self._pack is not None and self._pack.device.type == "cuda":
            torch.cuda.set_device(self._pack.device)  # it is another one in each thread
        if self._pack is None:
            torch.set_num_threads(max(1, int(train.cpus_per_worker)))
            forget_peak()
        rank = torch.distributed.get_rank()
        with Watchdog(train.hang_minutes * 60, lambda: callbacks.post(hung_worker=rank)) as watchdog:
            data = open_data(spec, settings.store, settings.inputs)
            precision = _precision(train, settings.store, settings.search_folder or settings.run_folder)
            models = TrainedModels(self._bases, spec, precision, self._pack, settings.process_group)
            engine = _first_engine(models, data, callbacks)
            if self._pack is None:
                self._steps(settings, callbacks, models, data, engine, watchdog)
                return
            with self._pack.member():
                self._steps(settings, _away(self._pack, callbacks), models, data, engine, watchdog)

    def _steps(
        self, settings: WorkerSettings, callbacks: Callbacks, models: TrainedModels, data: TrainingData,
        engine: Engine, watchdog: Watchdog,
    ) -> None:  # fmt: skip
        spec, train = settings.spec, settings.spec.train
        parts = _micro_batch_parts(engine, data, settings, self._pack)
        data = data.cut(parts, train.pass_tokens // parts, engine)
        record = History(_resume(engine, settings))
        suites = SuiteScores(
            settings.suites, settings.suites_every_steps, engine, chat_tokenizer(spec), watchdog, self._pack
        )
        figures = {"resumed_from_step": len(record.lines), "batch_tokens": -(-train.pass_tokens // parts)}
        if self._pack:
            figures[PACKED] = 1
        if settings.only_measure:
            found = held_out_figures(measure(engine, data.measured)[0]) | suites.measure()
            report = Report(len(record.lines), _fit_settings(train, data.plan).num_steps, {**found, **figures})
            callbacks.on_checkpoint(report, lambda folder: None)
            engine.close()
            return
        rate = self._rate(models.precision, engine.device)
        reports = Reporter(engine, record, chat_tokenizer(spec), watchdog, callbacks, figures, rate)
        _Run(models, data, engine, reports, suites, settings.resume_from).go(callbacks)

    def _rate(self, precision: str, device: torch.device) -> float:
        """The floating-point operations per second of all workers' matrix products; measured once."""
        if precision not in self._rates:
            rate = torch.tensor(matrix_product_rate(device, dtype_of(precision)), dtype=torch.float64, device=device)
            torch.distributed.all_reduce(rate)
            self._rates[precision] = float(rate)
        return self._rates[precision]


def _away(pack: Pack, callbacks: Callbacks) -> Callbacks:
    """The same callbacks; the pack does not wait for a member that keeps a checkpoint."""

    def on_checkpoint(report: Report, write: Write) -> None:
        with pack.away():
            callbacks.on_checkpoint(report, write)

    def go_on() -> None:
        with pack.away():
            callbacks.go_on()

    return replace(callbacks, on_checkpoint=on_checkpoint, go_on=go_on)


class _Run:
    """The steps of one training: by likelihood, and for a pair the phases after it."""

    def __init__(
        self,
        models: TrainedModels,
        data: TrainingData,
        engine: Engine,
        reports: Reporter,
        suites: SuiteScores,
        resume_from: Path | None,
    ) -> None:
        self._suites = suites
        self._spec, self._data, self._engine, self._reports = models.spec, data, engine, reports
        self._settings = _fit_settings(models.spec.train, data.plan)
        self._operations = StepOperations(engine.model)
        self._pair: AdversarialPhases | None = None
        if isinstance(data.objective, Generate):
            assert isinstance(engine, DeepSpeedEngine)
            self._pair = AdversarialPhases(models, data, engine, reports, self._settings.num_steps, resume_from)

    def go(self, callbacks: Callbacks) -> None:
        """Run all remaining steps."""
        try:
            if self._pair is None or self._pair.is_likelihood:
                self._fit(callbacks)
            if self._pair is not None:
                self._pair.play(callbacks.leaving)
        except TrainingDiverged as error:
            where = places(self._data.rows, error.rows, self._spec)
            raise RayconteurError(f"{error}: {where}") from error
        finally:
            if self._pair is not None:
                self._pair.close()
            self._engine.close()

    def _fit(self, callbacks: Callbacks) -> None:
        data = self._data
        fit(
            self._engine, data.plan, data.read, self._settings, data.measured,
            FitCallbacks(self._on_step, self._on_checkpoint, callbacks.leaving, self._is_over),
            before=self._reports.record.steps(), micro_batch_parts=data.micro_batch_parts,
        )  # fmt: skip

    def _on_step(self, progress: Progress) -> None:
        step, plan = progress.step - 1, self._data.plan
        targets = self._data.num_targets_of(step)
        self._reports.step(progress, self._operations.of(plan.num_tokens(step), targets, plan.num_pairs(step)))

    def _on_checkpoint(self, report: Report, seconds_each: list[float]) -> None:
        if self._pair is not None:
            report.num_steps = self._pair.num_steps
        if self._suites.is_due(report.step, report.num_steps):
            report.figures |= self._suites.measure()
        self._reports.checkpoint(report, seconds_each)

    def _is_over(self) -> bool:
        return self._pair is not None and not self._pair.is_likelihood


def _first_engine(models: TrainedModels, data: TrainingData, callbacks: Callbacks) -> Engine:
    """The engine of the trained model, initialised from the seed."""
    if torch.distributed.get_rank() == 0 and (note := note_of(resolve(models.spec.base_model))):
        callbacks.post(note=note)
    models.check_tools()
    return models.first_engine(data.objective)


def _fit_settings(train: TrainSpec, plan: StepPlan) -> FitSettings:
    return FitSettings(
        num_steps=num_steps(train, plan.steps_per_epoch),
        learning_rate=train.learning_rate,
        warmup_share=train.warmup_share,
        final_learning_rate_share=train.final_learning_rate_share,
        checkpoint_every_steps=train.checkpoint_every_steps,
        spike_factor=train.spike_factor,
        max_skipped_steps=train.max_skipped_steps,
    )


def _micro_batch_parts(engine: Engine, data: TrainingData, settings: WorkerSettings, pack: Pack | None) -> int:
    """The number of parts of a micro-batch that fit into memory, or a row of the pack; a resumed run keeps it."""
    train, store, run_folder = settings.spec.train, settings.store, settings.run_folder
    if pack is not None:
        return -(-train.pass_tokens // pack.max_tokens)
    if (known := decisions(store, run_folder).cut) is not None:
        return known
    if train.batch_tokens != "auto":
        return 1
    machine_cpus = int(ray.cluster_resources().get("CPU", 1))
    tokens = largest_batch(
        engine,
        data.longest,
        max_tokens=train.pass_tokens,
        longest=max(data.num_tokens),
        limit_gb=train.memory_gb_per_worker or default_limit_gb(train.cpus_per_worker, machine_cpus),
    )
    parts = data.plan.parts_within(tokens)
    if engine.rank == 0:
        decide(store, run_folder, Decisions(cut=parts))
    return parts


def _precision(train: TrainSpec, store: Store, run_folder: str) -> str:
    """`bf16` or `fp32`, for all workers of this run, also after it resumes on another machine."""
    if train.precision != "auto":
        return train.precision
    if (known := decisions(store, run_folder).precision) is not None:
        return known
    answers: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(answers, faster_precision("cuda" if train.gpus_per_worker else "cpu"))
    precision = "fp32" if "fp32" in answers else "bf16"
    if torch.distributed.get_rank() == 0:
        decide(store, run_folder, Decisions(precision=precision))
    return precision


def _resume(engine: Engine, settings: WorkerSettings) -> str:
    """Load the checkpoint if there is one; returns the history up to it.

    A checkpoint of the other kind of engine is not for going on, and the training starts over; to measure it, its
    adapter is enough.
    """
    folder = settings.resume_from
    if folder is None:
        return ""
    if is_packed(folder) == isinstance(engine, PackedEngine):
        engine.load(folder)
    elif settings.only_measure:
        assert isinstance(engine, DeepSpeedEngine), "packs do not measure the checkpoints of others"
        adapters.load_weights(engine.model, folder / MODEL_FOLDER)
    else:
        return ""
    return (folder / HISTORY).read_text()
