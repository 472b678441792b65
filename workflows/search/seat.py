"""A seat of a worker group, which any process can use.

seat.begin(job_of(spec, folder=folder))        # ends the previous job
update = seat.next_update()       # its next checkpoint; workers wait there until the next call

Imports no torch: the process of a trial only hands on what its workers do.
"""

from dataclasses import dataclass
from typing import Any

import ray

from workflows.search.job_queue import JobUpdate, TrainingJob
from workflows.spec import PipelineSpec


class WorkerGroupLost(RuntimeError):
    """Workers cannot be started, or are lost for good."""


@dataclass(frozen=True)
class Seat:
    """A place for one job at a time, which any process can use."""

    queue: Any
    """the job queue's handle"""
    number: int

    def begin(self, job: TrainingJob) -> None:
        """Start a job; ends the previous one."""
        ray.get(self.queue.give.remote(self.number, job))

    def next_update(self) -> JobUpdate:
        """Continue the job to its next checkpoint, and wait for it; raises WorkerGroupLost."""
        found: JobUpdate = ray.get(self.queue.next_update.remote(self.number))
        if found.group_is_lost and not found.store_failed:
            error = WorkerGroupLost(found.failed)
            if found.traceback:
                error.add_note(found.traceback)
            raise error
        return found

    def end(self) -> None:
        """Let the workers leave the job at its next checkpoint."""
        ray.get(self.queue.end.remote(self.number))


def job_of(spec: PipelineSpec, **fields: Any) -> TrainingJob:
    """A job for a training of `spec`."""
    return TrainingJob(spec=spec.model_dump(), **fields)
