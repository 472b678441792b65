"""A worker group: the workers of one training at a time, started once, that train one job after another.

group = WorkerGroup(spec, store, keys, folder)
group.begin(TrainingJob(...))        # the job before it ends
update = group.next_update()       # its next checkpoint; they go on only when asked for more
group.close()

Workers ask the job queue (workflows/search/job_queue.py) for work and leave their reports there. They are Ray
Train's, so that it starts them again when some are lost; they find the same job at the job queue.
"""

import contextlib
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs
import ray
import ray.train
from ray.train import UserCallback

from models.errors import RayconteurError
from models.training.snapshot import Write
from workflows.cluster.errors import describe_error, full_traceback, is_users_mistake, note_traceback
from workflows.search.job_queue import Assignment, JobQueue, JobUpdate, TrainingJob
from workflows.search.report import Report
from workflows.spec import PipelineSpec
from workflows.store import Store
from workflows.training.recovery import decide, decisions, failure_text, failure_traceback, is_out_of_memory
from workflows.training.trainer import torch_trainer

if TYPE_CHECKING:
    from workflows.training.worker import TrainWorker

_SECONDS_TO_LEAVE = 20.0


class WorkerGroupLost(RuntimeError):
    """Workers that cannot be had, or are gone for good."""


class JobLeft(Exception):
    """Raised in a worker to leave a job that nobody wants to see go on."""


class _AfterLoss(UserCallback):  # type: ignore[misc]
    """Tells the job queue of lost workers; where memory ran out, micro-batches are cut into twice as many parts."""

    def __init__(self, store_uri: str, queue: Any) -> None:
        self._store_uri = store_uri
        self._queue = queue

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        reason, traceback = failure_text(worker_exceptions), failure_traceback(worker_exceptions)
        folder = ray.get(self._queue.lose.remote(reason, traceback))
        if folder is not None and any(is_out_of_memory(error) for error in worker_exceptions.values()):
            store = Store(self._store_uri)
            decide(store, folder, cut=2 * decisions(store, folder).get("cut", 1))


class WorkerGroup:
    """The workers of `spec.train`, for jobs that differ in their settings alone."""

    def __init__(
        self, spec: PipelineSpec, store: Store, keys: dict[str, str], folder: str, max_failures: int
    ) -> None:
        """Start them; `folder` on the store is for what Ray Train keeps, and what their jobs share."""
        self._queue: Any = JobQueue.remote(max_failures)  # type: ignore[attr-defined]
        trainer = torch_trainer(
            spec.train,
            _work,
            {"store": store.uri, "keys": keys, "folder": folder, "queue": self._queue},
            spec.train.min_workers,
            store,
            f"{folder}/gangs",
            name=f"gang_{uuid.uuid4().hex[:8]}",
            failure_config=ray.train.FailureConfig(max_failures=-1),  # the job queue counts them, job by job
            callbacks=[_AfterLoss(store.uri, self._queue)],
        )
        self._thread = threading.Thread(target=self._fit, args=[trainer], daemon=True)
        self._thread.start()

    def begin(self, job: TrainingJob) -> None:
        """Give the workers a job in place of the one before."""
        ray.get(self._queue.give.remote(job))

    def next_update(self) -> JobUpdate:
        """Let the job go on to its next checkpoint, and wait for it; raises WorkerGroupLost."""
        found: JobUpdate = ray.get(self._queue.next_update.remote())
        if found.group_is_lost:
            error = WorkerGroupLost(found.failed)
            if found.traceback:
                error.add_note(found.traceback)
            raise error
        return found

    def close(self) -> None:
        """Let the workers leave, at their next checkpoint; those that take longer end with this process."""
        ray.get(self._queue.close.remote())
        self._thread.join(_SECONDS_TO_LEAVE)
        ray.kill(self._queue)

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except Exception as error:  # whatever it is, the one who waits is told
            with contextlib.suppress(ray.exceptions.RayError):
                traceback = "" if is_users_mistake(error) else full_traceback(error)
                ray.get(self._queue.break_off.remote(describe_error(error), traceback))


def _work(config: dict[str, Any]) -> None:
    """What one worker does in its life: jobs, until there are no more."""
    from workflows.training.worker import TrainWorker

    store, queue, worker = Store(config["store"]), config["queue"], TrainWorker()
    done = 0
    while (assignment := ray.get(queue.take.remote(done))) is not None:
        done = assignment.number
        try:
            _do(worker, store, config["keys"], config["folder"], queue, assignment)
        except JobLeft:
            continue
        except RayconteurError as error:  # of the spec or the data, and on all workers alike
            if ray.train.get_context().get_world_rank() == 0:
                ray.get(queue.fail.remote(done, str(error)))
        except Exception as error:
            note_traceback(error)
            raise


def _do(
    worker: "TrainWorker", store: Store, keys: dict[str, str], folder: str, queue: Any, assignment: Assignment
) -> None:
    import torch

    from workflows.training.worker import Job

    job, reports = assignment.job, assignment.reports
    spec = PipelineSpec.model_validate(job.spec)
    is_first = ray.train.get_context().get_world_rank() == 0

    def on_checkpoint(metrics: dict[str, Any], write: Write) -> None:
        nonlocal reports
        reports += 1
        step, num_steps, name = int(metrics.pop("step")), int(metrics.pop("num_steps")), None
        is_last = job.only_measure or step == num_steps
        if not job.only_measure:
            name = f"checkpoint_{step:06d}_{job.mark}{assignment.attempt}"
            _keep(store, f"{job.folder}/{name}", write)
            torch.distributed.barrier()  # whole, from here on
        if is_first:
            figures = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
            report = Report(step, num_steps, figures, name)
            ray.get(queue.report.remote(assignment.number, report, is_last))
        if not is_last and not ray.get(queue.may_go_on.remote(assignment.number, reports)):
            raise JobLeft

    with _local(store, job.checkpoint) as resume_from:
        work = Job(
            spec, store, keys, job.folder,
            resume_from=resume_from, search_folder=folder, only_measure=job.only_measure,
        )  # fmt: skip
        worker.train(work, on_checkpoint, post=lambda **values: None)


def _keep(store: Store, path: str, write: Write) -> None:
    """What `write` writes, at a path of the store."""
    if store.is_local:
        Path(path).mkdir(parents=True, exist_ok=True)
        write(Path(path))
        return
    with tempfile.TemporaryDirectory(prefix="rayconteur-") as name:
        write(Path(name))
        store.upload(Path(name), path)


@contextlib.contextmanager
def _local(store: Store, path: str | None) -> Iterator[Path | None]:
    """A folder of the store on this machine."""
    if path is None or store.is_local:
        yield None if path is None else Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="rayconteur-") as name:
        pa.fs.copy_files(path, name, source_filesystem=store.filesystem)
        yield Path(name)


def job_of(spec: PipelineSpec, **fields: Any) -> TrainingJob:
    """An job for a training of `spec`."""
    return TrainingJob(spec=spec.model_dump(), **fields)
