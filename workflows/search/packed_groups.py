"""Worker groups that several trials share, for a search with packed trials.

groups = PackedGroups.remote(shared, pack=8)
seat = ray.get(groups.take.remote(actor))         # for the trials of this actor's process
ray.get(groups.leave.remote(seat))
ray.get(groups.close.remote())
"""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from workflows.search.seat import Seat
from workflows.search.trial import Shared
from workflows.store import Store

if TYPE_CHECKING:
    from workflows.search.worker_group import WorkerGroup


_SECONDS_BETWEEN_LOOKS = 10.0


@dataclass
class _Group:
    workers: "WorkerGroup"
    holders: list[Any]
    """of each seat the actor that has it, or None"""
    is_ready: bool = False
    """whether its workers have started, or never will"""
    was_used: bool = False


@ray.remote(num_cpus=0)
class PackedGroups:
    """Starts groups as they are needed, and gives seats in those whose workers are there."""

    def __init__(self, shared: Shared, pack: int, num_groups: int) -> None:
        """`pack`: seats of each group; `num_groups`: the maximum."""
        self._shared, self._pack, self._num_groups = shared, pack, num_groups
        self._groups: list[_Group] = []
        self._waiting: set[str] = set()
        """the actors that have asked in vain"""
        self._looked = time.monotonic()

    def take(self, holder: Any) -> Seat | None:
        """A seat in the emptiest group, for the trials of the actor `holder`; None if there is none now.

        A group that has not started, because others use its machines, keeps no trial waiting.
        """
        self._drop_the_lost()
        self._waiting.add(holder._actor_id.hex())
        taken = sum(each is not None for group in self._groups for each in group.holders)
        if taken + len(self._waiting) > len(self._groups) < self._num_groups:
            self._start()
        free = [group for group in self._groups if None in group.holders and self._is_ready(group)]
        if not free:
            if time.monotonic() - self._looked > _SECONDS_BETWEEN_LOOKS:
                self._free_the_dead()
            return None
        group = min(free, key=lambda group: sum(each is not None for each in group.holders))
        seat = group.holders.index(None)
        group.holders[seat], group.was_used = holder, True
        self._waiting.discard(holder._actor_id.hex())
        return group.workers.seats[seat]

    def leave(self, seat: Seat) -> None:
        """The seat is free again."""
        for group in self._groups:
            if group.workers.seats[seat.number] == seat:
                group.holders[seat.number] = None
        with contextlib.suppress(ray.exceptions.RayError):
            seat.end()

    def close(self) -> None:
        """Let the workers leave at their next checkpoint."""
        with ThreadPoolExecutor(max_workers=max(1, len(self._groups))) as threads:
            [*threads.map(lambda group: group.workers.close(), self._groups)]

    def _start(self) -> None:
        from workflows.search.worker_group import WorkerGroup

        shared = self._shared
        workers = WorkerGroup(
            shared.spec, Store(shared.store), shared.inputs, shared.folder, shared.max_failures, shared.suites,
            num_seats=self._pack,
        )  # fmt: skip
        self._groups.append(_Group(workers, [None] * self._pack))

    def _is_ready(self, group: _Group) -> bool:
        if not group.is_ready:
            group.is_ready = group.workers.is_over or group.workers.have_started
        return group.is_ready

    def _drop_the_lost(self) -> None:
        """Forget groups whose workers are lost for good, once a trial was told the reason."""
        self._groups = [group for group in self._groups if not (group.was_used and group.workers.is_over)]

    def _free_the_dead(self) -> None:
        """Free the seats of actors that have died without leaving."""
        held = [(seat, holder) for group in self._groups
                for seat, holder in zip(group.workers.seats, group.holders, strict=True)]  # fmt: skip
        asked = {holder.__ray_ready__.remote(): seat for seat, holder in held if holder is not None}
        answered, _ = ray.wait([*asked], num_returns=len(asked), timeout=1.0) if asked else ([], [])
        self._looked = time.monotonic()
        for reference in answered:
            try:
                ray.get(reference)
            except ray.exceptions.ActorDiedError:
                self.leave(asked[reference])
