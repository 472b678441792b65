"""A worker group: workers that are started once and train one job after another.

group = WorkerGroup(spec, store, inputs, folder, max_failures)
seat = group.seats[0]
seat.begin(TrainingJob(...))        # ends the previous job
update = seat.next_update()       # its next checkpoint; workers wait there until the next call
group.close()

A group with several seats trains a job for each at the same time, as members of a pack (models/training/pack.py).
Workers get jobs from the job queue (workflows/search/job_queue.py) and send it their reports. They are workers of Ray
Train, which restarts them when some are lost; the job queue then has the same jobs for them.
"""

import contextlib
import errno
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs
import ray
import ray.train
from ray.train import UserCallback

from models.errors import RayconteurError
from models.training.batch_size import TooLarge
from models.training.report import Report
from models.training.snapshot import Write
from workflows.cluster.errors import describe_error, full_traceback, is_users_mistake, note_traceback, root_cause
from workflows.search.checkpoints import note_files, write_checkpoint
from workflows.search.job_queue import Assignment, JobQueue
from workflows.search.seat import Seat
from workflows.spec import PipelineSpec
from workflows.store import IS_FULL, Store, StoreError
from workflows.suites.suite import Suite
from workflows.training.inputs import TrainingInputs
from workflows.training.recovery import failure_text, failure_traceback, halve_micro_batches
from workflows.training.trainer import torch_trainer

if TYPE_CHECKING:
    from workflows.training.worker import TrainWorker

_SECONDS_TO_LEAVE = 20.0
_MAX_OTHER_CALLS = 100
_UNWRITABLE = (*IS_FULL, errno.EACCES, errno.EPERM, errno.EROFS)


class JobLeft(Exception):
    """Raised in a worker to leave a job that was ended early."""


class _AfterLoss(UserCallback):  # type: ignore[misc]
    """Tells the job queue of lost workers, and halves micro-batches where memory ran out."""

    def __init__(self, store_uri: str, queue: Any, pack_folder: str | None) -> None:
        """`pack_folder`: for decisions of all jobs, if they share their passes."""
        self._store_uri = store_uri
        self._queue = queue
        self._pack_folder = pack_folder

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        reason, traceback = failure_text(worker_exceptions), failure_traceback(worker_exceptions)
        failed = next(filter(None, map(failure_of_store, worker_exceptions.values())), None)
        if isinstance(failed, StoreError):  # it does not matter which worker has noticed
            reason = str(failed)
        folders = ray.get(self._queue.lose.remote(reason, traceback, failed is not None))
        for folder in [self._pack_folder] if self._pack_folder else folders:
            halve_micro_batches(Store(self._store_uri), folder, worker_exceptions)


class WorkerGroup:
    """The workers for `spec.train`, for jobs that differ only in their settings."""

    def __init__(
        self,
        spec: PipelineSpec,
        store: Store,
        inputs: TrainingInputs,
        folder: str,
        max_failures: int,
        suites: Sequence[Suite] = (),
        num_seats: int = 1,
    ) -> None:
        """Start the workers; `folder` in the store is for Ray Train's files and for decisions that all jobs share.

        `suites`: those whose scores are measured at every checkpoint. `num_seats`: jobs at the same time.
        """
        self._store, self._folder = store, folder
        waiting = num_seats * (spec.train.min_workers + 1)  # calls that wait inside of the queue at the same time
        queue: Any = JobQueue.options(max_concurrency=_MAX_OTHER_CALLS + waiting)  # type: ignore[attr-defined]
        self._queue: Any = queue.remote(max_failures, num_seats)
        self.seats = [Seat(self._queue, number) for number in range(num_seats)]
        payload = _Payload(spec, store.uri, inputs, folder, self._queue, suites, num_seats)
        trainer = torch_trainer(
            spec.train,
            lambda: _work(payload),
            spec.train.min_workers,
            store,
            f"{folder}/gangs",
            name=f"gang_{uuid.uuid4().hex[:8]}",
            failure_config=ray.train.FailureConfig(max_failures=-1),  # the job queue counts failures for each job
            callbacks=[_AfterLoss(store.uri, self._queue, folder if num_seats > 1 else None)],
        )
        self._thread = threading.Thread(target=self._fit, args=[trainer], daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether the workers have left, or are lost for good."""
        return not self._thread.is_alive()

    @property
    def have_started(self) -> bool:
        """Whether the workers ask for jobs."""
        started: bool = ray.get(self._queue.is_asked.remote())
        return started

    def close(self) -> None:
        """Let the workers leave at their next checkpoint; those that take longer end with this process."""
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(self._queue.close.remote())
        self._thread.join(_SECONDS_TO_LEAVE)
        ray.kill(self._queue)

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except Exception as error:  # any error must reach the caller that waits
            with contextlib.suppress(ray.exceptions.RayError):
                failed = failure_of_store(error)
                if isinstance(failed, OSError):  # of Ray Train, which also writes to the store
                    failed = self._store.failure(failed.filename or self._folder, failed)
                traceback = "" if failed or is_users_mistake(error) else full_traceback(error)
                reason = describe_error(failed or error)
                ray.get(self._queue.break_off.remote(reason, traceback, failed is not None))


def failure_of_store(error: BaseException) -> Exception | None:
    """The cause of an error, if it is that a store cannot be written: its disk is full, or permissions lack."""
    cause = root_cause(error)
    if isinstance(cause, StoreError) or (isinstance(cause, OSError) and cause.errno in _UNWRITABLE):
        return cause
    return None


@dataclass(frozen=True)
class _Payload:
    """What a worker is started with."""

    spec: PipelineSpec
    """of all jobs, but for their settings"""
    store: str
    inputs: TrainingInputs
    folder: str
    """the search's, on the store"""
    queue: Any
    """the job queue's handle"""
    suites: Sequence[Suite]
    """whose scores are metrics of the search"""
    num_seats: int


def _work(payload: _Payload) -> None:
    """The main loop of a worker: jobs, until there are no more."""
    from workflows.training.worker import TrainWorker

    worker = TrainWorker()
    if payload.num_seats == 1:
        _Sitting(payload, 0, worker).work()
        return
    refusal = ""
    try:
        worker.open_pack(payload.spec, Store(payload.store), payload.folder)
    except RayconteurError as error:  # equal on all workers, and for all jobs
        refusal = str(error)
    sittings = [_Sitting(payload, number, worker, _own_group()) for number in range(payload.num_seats)]
    ends: Queue[BaseException | None] = Queue()

    def run(sitting: _Sitting) -> None:
        try:
            sitting.work(refusal)
        except BaseException as error:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(payload.queue.blame.remote(sitting.seat))
            ends.put(error)
        else:
            ends.put(None)

    for sitting in sittings:
        threading.Thread(target=run, args=[sitting], daemon=True).start()
    for _ in sittings:
        if (failure := ends.get()) is not None:
            raise failure


def _own_group() -> Any:
    """A torch.distributed group of all workers for one seat; None for a single worker."""
    import torch

    return torch.distributed.new_group(backend="gloo") if torch.distributed.get_world_size() > 1 else None


class _Sitting:
    """A worker at one seat."""

    def __init__(self, payload: _Payload, seat: int, worker: "TrainWorker", process_group: Any = None) -> None:
        self._payload, self.seat, self._worker, self._process_group = payload, seat, worker, process_group
        self._store = Store(payload.store)
        self._is_first = ray.train.get_context().get_world_rank() == 0

    def work(self, refusal: str = "") -> None:
        """Do the jobs of this seat, or refuse all."""
        queue, done = self._payload.queue, 0
        while (assignment := ray.get(queue.take.remote(self.seat, done))) is not None:
            done = assignment.number
            try:
                if refusal:
                    raise RayconteurError(refusal)
                self._do(assignment)
            except JobLeft:
                continue
            except StoreError:  # of this worker alone
                raise
            except RayconteurError as error:  # mistakes in the spec or the data, equal on all workers
                if self._is_first:
                    ray.get(queue.fail.remote(self.seat, done, str(error), isinstance(error, TooLarge)))
            except Exception as error:
                note_traceback(error)
                raise

    def _do(self, assignment: Assignment) -> None:
        from workflows.training.reporter import Callbacks
        from workflows.training.worker import WorkerSettings

        job, payload = assignment.job, self._payload
        reports, is_over = assignment.reports, False

        def keep(report: Report, write: Write) -> None:
            nonlocal reports, is_over
            reports, is_over = reports + 1, job.only_measure or report.step == report.num_steps
            self._keep(assignment, report, write, is_over)

        def go_on() -> None:
            goes_on = is_over or ray.get(payload.queue.may_go_on.remote(self.seat, assignment.number, reports))
            if not goes_on:
                raise JobLeft

        with _local(self._store, job.checkpoint) as resume_from:
            settings = WorkerSettings(
                PipelineSpec.model_validate(job.spec), self._store, payload.inputs, job.folder,
                resume_from=resume_from, search_folder=payload.folder, only_measure=job.only_measure,
                suites=payload.suites, process_group=self._process_group,
            )  # fmt: skip
            self._worker.train(settings, Callbacks(keep, go_on))
        if not is_over:
            raise RayconteurError(
                f"train: with these settings, no step is left after {job.checkpoint}, the checkpoint of its beginning"
            )

    def _keep(self, assignment: Assignment, report: Report, write: Write, is_last: bool) -> None:
        """Write a checkpoint and report it."""
        import torch

        job, number, queue = assignment.job, assignment.number, self._payload.queue
        if not job.only_measure:
            report.checkpoint = f"checkpoint_{report.step:06d}_{job.mark}{assignment.attempt}"
            path = f"{job.folder}/{report.checkpoint}"
            write_checkpoint(self._store, path, write)
            if self._process_group is not None or self._payload.num_seats == 1:
                torch.distributed.barrier(self._process_group)  # all workers have written their parts
            if self._is_first:
                note_files(self._store, path)
        if self._is_first:
            figures = {name: float(value) for name, value in report.figures.items()}
            ray.get(queue.report.remote(self.seat, number, replace(report, figures=figures), is_last))


@contextlib.contextmanager
def _local(store: Store, path: str | None) -> Iterator[Path | None]:
    """A local copy of a folder of the store."""
    if path is None or store.is_local:
        yield None if path is None else Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="rayconteur-") as name:
        pa.fs.copy_files(path, name, source_filesystem=store.filesystem)
        yield Path(name)
