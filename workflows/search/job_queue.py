"""The job queue: a small actor that gives a worker group its jobs and takes the workers' reports.

It imports next to nothing: its process is there at once, and takes little memory.
"""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import ray

from models.training.report import Report


@dataclass(frozen=True)
class TrainingJob:
    """A job for a worker group, as the job queue has it."""

    spec: Mapping[str, object]
    """a pipeline, dumped: the job queue's process does not import the classes of a spec"""
    folder: str
    """where on the store its checkpoints go"""
    checkpoint: str | None = None
    """where on the store it goes on from"""
    only_measure: bool = False
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    """in the names of its checkpoints: nobody else writes to them"""


@dataclass(frozen=True)
class JobUpdate:
    """The next thing that happened to a job: a report at a checkpoint, or its failure, or that of the workers."""

    report: Report | None = None
    failures: int = 0
    """how often its workers were lost so far"""
    failed: str = ""
    """why there will be no more reports"""
    was_lost: bool = False
    """whether it failed because its workers were lost time and again"""
    traceback: str = ""
    """of a failure that is no mistake of the user's"""
    group_is_lost: bool = False
    """whether no worker will come any more"""


@dataclass(frozen=True)
class Assignment:
    """A job in a worker's hands."""

    number: int
    """of the worker group's jobs, from 1"""
    attempt: int
    """how often workers were lost with it"""
    reports: int
    """how many were made of it before"""
    job: TrainingJob


@ray.remote(num_cpus=0)
class JobQueue:
    """Jobs for a worker group's workers, and their reports."""

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
        """A new job; whoever is at work on the one before leaves it at its next checkpoint."""
        self._number += 1
        self._job, self._attempt, self._failures, self._reports, self._wanted = job, 0, 0, 0, 0
        self._updates = []
        await self._tell()

    async def next_update(self) -> JobUpdate:
        """The job's next update; where no worker will come any more, one that says why."""
        self._wanted += 1
        await self._tell()
        async with self._changed:
            await self._changed.wait_for(lambda: self._updates or self._broken)
        if self._updates:
            return self._updates.pop(0)
        assert self._broken is not None
        return self._broken

    async def take(self, done: int) -> "Assignment | None":
        """For a worker: the job after number `done`, or after a loss the same; None when all is over."""

        def is_there() -> bool:
            return self._is_closed or (self._job is not None and self._number > done)

        async with self._changed:
            await self._changed.wait_for(is_there)
        if self._is_closed:
            return None
        assert self._job is not None
        return Assignment(self._number, self._attempt, self._reports, self._job)

    async def report(self, number: int, report: Report, is_last: bool) -> None:
        """From worker 0: a checkpoint is on the store."""
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
        """For every worker, after so many reports: whether to go on with this job, as soon as that is known.

        Worker 0's report may come after another worker's question, so they count themselves.
        """

        def is_known() -> bool:
            return self._is_closed or number != self._number or self._wanted > reports

        async with self._changed:
            await self._changed.wait_for(is_known)
        return not self._is_closed and number == self._number

    async def fail(self, number: int, reason: str) -> None:
        """From worker 0: the job cannot be done, however often it is tried."""
        if number == self._number:
            self._job = None
            self._updates.append(JobUpdate(failed=reason, failures=self._failures))
            await self._tell()

    async def lose(self, reason: str, traceback: str) -> str | None:
        """Workers were lost and are being started again; the job's folder, or None if there is no job."""
        if self._job is None:
            return None
        folder = self._job.folder
        self._attempt += 1
        self._failures += 1
        if self._failures > self._max_failures:
            self._job = None
            self._updates.append(
                JobUpdate(failed=reason, failures=self._failures, was_lost=True, traceback=traceback)
            )
            await self._tell()
        return folder

    async def break_off(self, reason: str, traceback: str) -> None:
        """No worker will come any more."""
        self._broken = JobUpdate(failed=reason, traceback=traceback, group_is_lost=True)
        await self._tell()

    async def close(self) -> None:
        """No job will come any more."""
        self._is_closed = True
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
