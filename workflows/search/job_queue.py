"""The job queue: a small actor that gives a worker group its jobs and collects the workers' reports.

A worker group has one seat, or several, each for one job at a time. The queue imports almost nothing, so its process
starts at once and needs little memory.
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
    """number among the jobs of its seat, from 1"""
    attempt: int
    """number of times that workers were lost during it"""
    reports: int
    """number of its reports so far"""
    job: TrainingJob


@dataclass
class _Seat:
    """One of the trainings that a worker group does at the same time."""

    number: int = 0
    job: TrainingJob | None = None
    attempt: int = 0
    failures: int = 0
    is_blamed: bool = False
    """whether its job has ended the workers"""
    reports: int = 0
    wanted: int = 0
    updates: list[JobUpdate] = field(default_factory=list)


@ray.remote(num_cpus=0)
class JobQueue:
    """Jobs for the workers of a group, and their reports."""

    def __init__(self, max_failures: int, num_seats: int = 1) -> None:
        self._max_failures = max_failures
        self._changed = asyncio.Condition()
        self._seats = [_Seat() for _ in range(num_seats)]
        self._broken: JobUpdate | None = None
        self._is_closed = self._is_asked = False

    async def is_asked(self) -> bool:
        """Whether workers have asked for jobs."""
        return self._is_asked

    async def give(self, seat: int, job: TrainingJob) -> None:
        """Start a new job; workers leave the previous one of this seat at its next checkpoint."""
        self._seats[seat] = _Seat(self._seats[seat].number + 1, job)
        await self._tell()

    async def end(self, seat: int) -> None:
        """Workers leave the job of this seat at its next checkpoint."""
        self._seats[seat] = _Seat(self._seats[seat].number + 1)
        await self._tell()

    async def next_update(self, seat: int) -> JobUpdate:
        """Wait for the job's next update; if the workers are lost for good, the update has the reason."""
        mine = self._seats[seat]
        mine.wanted += 1
        await self._tell()
        async with self._changed:
            await self._changed.wait_for(lambda: mine.updates or self._broken)
        if mine.updates:
            return mine.updates.pop(0)
        assert self._broken is not None
        return self._broken

    async def take(self, seat: int, done: int) -> "Assignment | None":
        """For a worker: the job after number `done`, or the same job after a loss; None if there are no more."""

        self._is_asked = True

        def is_there() -> bool:
            mine = self._seats[seat]
            return self._is_closed or (mine.job is not None and mine.number > done)

        async with self._changed:
            await self._changed.wait_for(is_there)
        if self._is_closed:
            return None
        mine = self._seats[seat]
        assert mine.job is not None
        return Assignment(mine.number, mine.attempt, mine.reports, mine.job)

    async def report(self, seat: int, number: int, report: Report, is_last: bool) -> None:
        """From worker 0: a checkpoint is in the store."""
        mine = self._seats[seat]
        if number != mine.number or mine.job is None:
            return
        mine.reports += 1
        if report.checkpoint is not None:
            mine.job = replace(mine.job, checkpoint=f"{mine.job.folder}/{report.checkpoint}")
        if is_last:
            mine.job = None
        mine.updates.append(JobUpdate(report, failures=mine.failures))
        await self._tell()

    async def may_go_on(self, seat: int, number: int, reports: int) -> bool:
        """For every worker, after this many reports: wait until it is decided whether this job continues.

        Worker 0's report may arrive after another worker's question, so the workers count reports themselves.
        """

        def is_known() -> bool:
            mine = self._seats[seat]
            return self._is_closed or number != mine.number or mine.wanted > reports

        async with self._changed:
            await self._changed.wait_for(is_known)
        return not self._is_closed and number == self._seats[seat].number

    async def fail(self, seat: int, number: int, reason: str, retry: bool) -> None:
        """From worker 0: the job failed, and would fail again; `retry` if not with more resources."""
        mine = self._seats[seat]
        if number == mine.number:
            mine.job = None
            mine.updates.append(JobUpdate(failed=reason, failures=mine.failures, retry=retry))
            await self._tell()

    async def blame(self, seat: int) -> None:
        """From a worker: an error in this seat's job ends the workers."""
        self._seats[seat].is_blamed = True

    async def lose(self, reason: str, traceback: str, store_failed: bool = False) -> list[str]:
        """Workers were lost and are restarting; returns the folders of their jobs. It counts as a failure of those
        that are to blame, or of all.
        """
        lost = [seat for seat in self._seats if seat.job is not None]
        folders = [seat.job.folder for seat in lost if seat.job is not None]
        are_blamed = any(seat.is_blamed for seat in lost)
        for seat in lost:
            seat.attempt += 1
            seat.failures += seat.is_blamed or not are_blamed
            seat.is_blamed = False
            if store_failed or seat.failures > self._max_failures:
                seat.job = None
                update = JobUpdate(failed=reason, failures=seat.failures, was_lost=True, traceback=traceback)
                seat.updates.append(replace(update, store_failed=store_failed))
        await self._tell()
        return folders

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
