"""The job queue: a small actor that gives a worker group its jobs and collects the workers' reports.

It imports almost nothing, so its process starts at once and needs little memory.
"""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import ray

from models.training.report import Report


@dataclass(frozen=True)
class TrainingJob:
    """A training for a worker group to do."""

    spec: Mapping[str, object]
    """a pipeline, dumped: the job queue's process does not import the classes of a spec"""
    folder: str
    """the folder in the store for its checkpoints"""
    checkpoint: str | None = None
    """the checkpoint in the store from which it continues"""
    only_measure: bool = False
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    """a part of its checkpoints' names that no other job has"""


@dataclass(frozen=True)
class JobUpdate:
    """The next event of a job: a report at a checkpoint, its failure, or the workers' failure."""

    report: Report | None = None
    failures: int = 0
    """number of times that its workers were lost"""
    failed: str = ""
    """the reason why no more reports will come"""
    was_lost: bool = False
    """whether it failed because its workers were lost too often"""
    retry: bool = False
    """whether it failed for want of resources, so that a later search may try it again"""
    store_failed: bool = False
    """whether the store could not be written"""
    traceback: str = ""
    """the traceback of a failure that is not a user's mistake"""
    group_is_lost: bool = False
    """whether the workers are lost for good"""


@dataclass(frozen=True)
class Assignment:
    """A job as a worker gets it."""

    number: int
    """number among the worker group's jobs, from 1"""
    attempt: int
    """number of times that workers were lost during it"""
    reports: int
    """number of its reports so far"""
    job: TrainingJob


@ray.remote(num_cpus=0)
class JobQueue:
    """Jobs for the workers of a group, and their reports."""

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._changed = asyncio.Condition()
        self._number = 0
        self._job: TrainingJob | None = None
        self._attempt = 0
        self._failures = 0
        self._reports = 0
        self._wanted = 0
        self._updates: list[JobUpdate] = []
        self._broken: JobUpdate | None = None
        self._is_closed = False

    async def give(self, job: TrainingJob) -> None:
        """Start a new job; workers leave the previous one at its next checkpoint."""
        self._number += 1
        self._job, self._attempt, self._failures, self._reports, self._wanted = job, 0, 0, 0, 0
        self._updates = []
        await self._tell()

    async def next_update(self) -> JobUpdate:
        """Wait for the job's next update; if the workers are lost for good, the update has the reason."""
        self._wanted += 1
        await self._tell()
        async with self._changed:
            await self._changed.wait_for(lambda: self._updates or self._broken)
        if self._updates:
            return self._updates.pop(0)
        assert self._broken is not None
        return self._broken

    async def take(self, done: int) -> "Assignment | None":
        """For a worker: the job after number `done`, or the same job after a loss; None if there are no more."""

        def is_there() -> bool:
            return self._is_closed or (self._job is not None and self._number > done)

        async with self._changed:
            await self._changed.wait_for(is_there)
        if self._is_closed:
            return None
        assert self._job is not None
        return Assignment(self._number, self._attempt, self._reports, self._job)

    async def report(self, number: int, report: Report, is_last: bool) -> None:
        """From worker 0: a checkpoint is in the store."""
        if number != self._number or self._job is None:
            return
        self._reports += 1
        if report.checkpoint is not None:
            self._job = replace(self._job, checkpoint=f"{self._job.folder}/{report.checkpoint}")
        if is_last:
            self._job = None
        self._updates.append(JobUpdate(report, failures=self._failures))
        await self._tell()

    async def may_go_on(self, number: int, reports: int) -> bool:
        """For every worker, after this many reports: wait until it is decided whether this job continues.

        Worker 0's report may arrive after another worker's question, so the workers count reports themselves.
        """

        def is_known() -> bool:
            return self._is_closed or number != self._number or self._wanted > reports

        async with self._changed:
            await self._changed.wait_for(is_known)
        return not self._is_closed and number == self._number

    async def fail(self, number: int, reason: str, retry: bool) -> None:
        """From worker 0: the job failed, and would fail again; `retry` if not with more resources."""
        if number == self._number:
            self._job = None
            self._updates.append(JobUpdate(failed=reason, failures=self._failures, retry=retry))
            await self._tell()

    async def lose(self, reason: str, traceback: str, store_failed: bool = False) -> str | None:
        """Workers were lost and are restarting; returns the job's folder, or None if there is no job."""
        if self._job is None:
            return None
        folder = self._job.folder
        self._attempt += 1
        self._failures += 1
        if store_failed or self._failures > self._max_failures:
            self._job = None
            update = JobUpdate(failed=reason, failures=self._failures, was_lost=True, traceback=traceback)
            self._updates.append(replace(update, store_failed=store_failed))
            await self._tell()
        return folder

    async def break_off(self, reason: str, traceback: str, store_failed: bool) -> None:
        """The workers are lost for good."""
        broken = JobUpdate(failed=reason, traceback=traceback, group_is_lost=True)
        self._broken = replace(broken, store_failed=store_failed)
        await self._tell()

    async def close(self) -> None:
        """There are no more jobs."""
        self._is_closed = True
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
