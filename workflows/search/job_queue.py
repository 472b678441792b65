"""The desk between a gang and whoever commands it: a small actor with jobs for workers, and their reports.

It imports next to nothing: its process is there at once, and takes little memory.
"""

import asyncio
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import ray


@dataclass(frozen=True)
class Order:
    """A job for a gang, as the desk has it."""

    spec: dict[str, Any]
    folder: str
    """where on the store its checkpoints go"""
    checkpoint: str | None = None
    """where on the store it goes on from"""
    only_measure: bool = False
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    """in the names of its checkpoints: nobody else writes to them"""


@dataclass(frozen=True)
class News:
    """What a gang has to say of its job: figures at a checkpoint, or why it failed."""

    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    """name of the folder in the job's"""
    failures: int = 0
    """how often its workers were lost so far"""
    failed: str = ""
    was_lost: bool = False
    """whether it failed because its workers were lost time and again"""


@dataclass(frozen=True)
class Taken:
    """A job in a worker's hands."""

    number: int
    """of the gang's jobs, from 1"""
    attempt: int
    """how often workers were lost with it"""
    reports: int
    """how many were made of it before"""
    order: Order


@ray.remote(num_cpus=0)
class Desk:
    """Jobs for a gang's workers, and their reports."""

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._changed = asyncio.Condition()
        self._number = 0
        self._order: Order | None = None
        self._attempt = 0
        self._failures = 0
        self._reports = 0
        self._wanted = 0
        self._news: list[News] = []
        self._broken = ""
        self._is_closed = False

    async def give(self, order: Order) -> None:
        """A new job; whoever is at work on the one before leaves it at its next checkpoint."""
        self._number += 1
        self._order, self._attempt, self._failures, self._reports, self._wanted = order, 0, 0, 0, 0
        self._news = []
        await self._tell()

    async def next_news(self) -> News | str:
        """The job's next news; in place of them, words that say why there will be none."""
        self._wanted += 1
        await self._tell()
        async with self._changed:
            await self._changed.wait_for(lambda: self._news or self._broken)
        return self._news.pop(0) if self._news else self._broken

    async def take(self, done: int) -> "Taken | None":
        """For a worker: the job after number `done`, or after a loss the same; None when all is over."""

        def is_there() -> bool:
            return self._is_closed or (self._order is not None and self._number > done)

        async with self._changed:
            await self._changed.wait_for(is_there)
        if self._is_closed:
            return None
        assert self._order is not None
        return Taken(self._number, self._attempt, self._reports, self._order)

    async def report(self, number: int, news: News, is_last: bool) -> None:
        """From worker 0: a checkpoint is on the store."""
        if number != self._number or self._order is None:
            return
        self._reports += 1
        if news.checkpoint is not None:
            self._order = replace(self._order, checkpoint=f"{self._order.folder}/{news.checkpoint}")
        if is_last:
            self._order = None
        self._news.append(replace(news, failures=self._failures))
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
            self._order = None
            self._news.append(News(failed=reason, failures=self._failures))
            await self._tell()

    async def lose(self, reason: str) -> str | None:
        """Workers were lost and are being started again; the job's folder, or None if there is no job."""
        if self._order is None:
            return None
        folder = self._order.folder
        self._attempt += 1
        self._failures += 1
        if self._failures > self._max_failures:
            self._order = None
            self._news.append(News(failed=reason, failures=self._failures, was_lost=True))
            await self._tell()
        return folder

    async def break_off(self, reason: str) -> None:
        """No worker will come any more."""
        self._broken = reason
        await self._tell()

    async def close(self) -> None:
        """No job will come any more."""
        self._is_closed = True
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
