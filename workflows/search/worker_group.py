"""A worker group: workers that are started once and train one job after another.

group = WorkerGroup(spec, store, inputs, folder)
group.begin(TrainingJob(...))        # ends the previous job
update = group.next_update()       # its next checkpoint; workers wait there until the next call
group.close()

Workers get jobs from the job queue (workflows/search/job_queue.py) and send it their reports. They are workers of Ray
Train, which restarts them when some are lost; the job queue then has the same job for them.
"""

import contextlib
import errno
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
from workflows.search.job_queue import Assignment, JobQueue, JobUpdate, TrainingJob
from workflows.spec import PipelineSpec
from workflows.store import IS_FULL, Store, StoreError
from workflows.suites.suite import Suite
from workflows.training.inputs import TrainingInputs
from workflows.training.recovery import failure_text, failure_traceback, halve_micro_batches
from workflows.training.trainer import torch_trainer

if TYPE_CHECKING:
    from workflows.training.worker import TrainWorker

_SECONDS_TO_LEAVE = 20.0
_UNWRITABLE = (*IS_FULL, errno.EACCES, errno.EPERM, errno.EROFS)


class WorkerGroupLost(RuntimeError):
    """Workers cannot be started, or are lost for good."""


class JobLeft(Exception):
    """Raised in a worker to leave a job that was ended early."""


class _AfterLoss(UserCallback):  # type: ignore[misc]
    """Tells the job queue of lost workers, and halves micro-batches where memory ran out."""

    def __init__(self, store_uri: str, queue: Any) -> None:
        self._store_uri = store_uri
        self._queue = queue

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        reason, traceback = failure_text(worker_exceptions), failure_traceback(worker_exceptions)
        failed = next(filter(None, map(failure_of_store, worker_exceptions.values())), None)
        if isinstance(failed, StoreError):  # it does not matter which worker has noticed
            reason = str(failed)
        folder = ray.get(self._queue.lose.remote(reason, traceback, failed is not None))
        if folder is not None:
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
    ) -> None:
        """Start the workers; `folder` in the store is for Ray Train's files and for decisions that all jobs share.

        `suites`: those whose scores are measured at every checkpoint.
        """
        self._store, self._folder = store, folder
        self._queue: Any = JobQueue.remote(max_failures)  # type: ignore[attr-defined]
        payload = _Payload(store.uri, inputs, folder, self._queue, suites)
        trainer = torch_trainer(
            spec.train,
            lambda: _work(payload),
            spec.train.min_workers,
            store,
            f"{folder}/gangs",
            name=f"gang_{uuid.uuid4().hex[:8]}",
            failure_config=ray.train.FailureConfig(max_failures=-1),  # the job queue counts failures for each job
            callbacks=[_AfterLoss(store.uri, self._queue)],
        )
        self._thread = threading.Thread(target=self._fit, args=[trainer], daemon=True)
        self._thread.start()

    def begin(self, job: TrainingJob) -> None:
        """Start a job; ends the previous one."""
        ray.get(self._queue.give.remote(job))

    def next_update(self) -> JobUpdate:
        """Continue the job to its next checkpoint, and wait for it; raises WorkerGroupLost."""
        found: JobUpdate = ray.get(self._queue.next_update.remote())
        if found.group_is_lost and not found.store_failed:
            error = WorkerGroupLost(found.failed)
            if found.traceback:
                error.add_note(found.traceback)
            raise error
        return found

    def close(self) -> None:
        """Let the workers leave at their next checkpoint; those that take longer end with this process."""
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

    store: str
    inputs: TrainingInputs
    folder: str
    """the search's, on the store"""
    queue: Any
    """the job queue's handle"""
    suites: Sequence[Suite]
    """whose scores are metrics of the search"""


def _work(payload: _Payload) -> None:
    """The main loop of a worker: jobs, until there are no more."""
    from workflows.training.worker import TrainWorker

    queue, worker, done = payload.queue, TrainWorker(), 0
    while (assignment := ray.get(queue.take.remote(done))) is not None:
        done = assignment.number
        try:
            _do(worker, payload, assignment)
        except JobLeft:
            continue
        except StoreError:  # of this worker alone
            raise
        except RayconteurError as error:  # mistakes in the spec or the data, equal on all workers
            if ray.train.get_context().get_world_rank() == 0:
                ray.get(queue.fail.remote(done, str(error), isinstance(error, TooLarge)))
        except Exception as error:
            note_traceback(error)
            raise


def _do(worker: "TrainWorker", payload: _Payload, assignment: Assignment) -> None:
    from workflows.training.reporter import Callbacks
    from workflows.training.worker import WorkerSettings

    store, job = Store(payload.store), assignment.job
    spec = PipelineSpec.model_validate(job.spec)
    on_checkpoint = _Checkpoints(store, payload.queue, assignment).keep
    with _local(store, job.checkpoint) as resume_from:
        settings = WorkerSettings(
            spec, store, payload.inputs, job.folder,
            resume_from=resume_from, search_folder=payload.folder, only_measure=job.only_measure,
            suites=payload.suites,
        )  # fmt: skip
        worker.train(settings, Callbacks(on_checkpoint))


class _Checkpoints:
    """What a worker does at each checkpoint of a job."""

    def __init__(self, store: Store, queue: Any, assignment: Assignment) -> None:
        self._store, self._queue, self._assignment = store, queue, assignment
        self._reports = assignment.reports
        self._is_first = ray.train.get_context().get_world_rank() == 0

    def keep(self, report: Report, write: Write) -> None:
        """Write the checkpoint, report it, and wait until Tune asks for more; raises JobLeft where it does not."""
        import torch

        job, number = self._assignment.job, self._assignment.number
        self._reports += 1
        is_last = job.only_measure or report.step == report.num_steps
        if not job.only_measure:
            report.checkpoint = f"checkpoint_{report.step:06d}_{job.mark}{self._assignment.attempt}"
            write_checkpoint(self._store, f"{job.folder}/{report.checkpoint}", write)
            torch.distributed.barrier()  # all workers have written their parts
            if self._is_first:
                note_files(self._store, f"{job.folder}/{report.checkpoint}")
        if self._is_first:
            figures = {name: float(value) for name, value in report.figures.items()}
            ray.get(self._queue.report.remote(number, replace(report, figures=figures), is_last))
        if not is_last and not ray.get(self._queue.may_go_on.remote(number, self._reports)):
            raise JobLeft


@contextlib.contextmanager
def _local(store: Store, path: str | None) -> Iterator[Path | None]:
    """A local copy of a folder of the store."""
    if path is None or store.is_local:
        yield None if path is None else Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="rayconteur-") as name:
        pa.fs.copy_files(path, name, source_filesystem=store.filesystem)
        yield Path(name)


def job_of(spec: PipelineSpec, **fields: Any) -> TrainingJob:
    """A job for a training of `spec`."""
    return TrainingJob(spec=spec.model_dump(), **fields)
