"""Worker groups that several trials share, for a search with packed trials.

groups = PackedGroups.remote(shared, pack=8)
seat = ray.get(groups.take.remote(actor))         # for the trials of this actor's process
ray.get(groups.leave.remote(seat))
ray.get(groups.close.remote())
"""

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from workflows.search.seat import Seat
from workflows.search.trial import Shared
from workflows.store import Store

if TYPE_CHECKING:
    from workflows.search.worker_group import WorkerGroup

_SECONDS_TO_ANSWER = 5.0


@dataclass
class _Taken:
    seat: Seat
    holder: Any = None


@ray.remote(num_cpus=0)
class PackedGroups:
    """Starts groups as they are needed."""

    def __init__(self, shared: Shared, pack: int, num_groups: int) -> None:
        """`pack`: seats of each group; `num_groups`: the maximum."""
        self._shared, self._pack, self._num_groups = shared, pack, num_groups
        self._groups: list[WorkerGroup] = []
        self._seats: list[_Taken] = []

    def take(self, holder: Any) -> Seat | None:
        """A seat in the emptiest group, for the trials of the actor `holder`; None if all seats are taken."""
        self._drop_the_lost()
        taken = [each for each in self._seats if each.holder is not None]
        if len(taken) >= len(self._groups) < self._num_groups:
            self._start()
        elif len(taken) == len(self._seats):
            self._free_the_dead()
        filled = Counter(each.seat.queue for each in self._seats if each.holder is not None)
        free = [each for each in self._seats if each.holder is None]
        if not free:
            return None
        chosen = min(free, key=lambda each: filled[each.seat.queue])
        chosen.holder = holder
        return chosen.seat

    def leave(self, seat: Seat) -> None:
        """The seat is free again."""
        for each in self._seats:
            if each.seat == seat:
                each.holder = None
        with contextlib.suppress(ray.exceptions.RayError):
            seat.end()

    def close(self) -> None:
        """Let the workers leave at their next checkpoint."""
        from workflows.search.worker_group import WorkerGroup

        with ThreadPoolExecutor(max_workers=max(1, len(self._groups))) as threads:
            [*threads.map(WorkerGroup.close, self._groups)]

    def _start(self) -> None:
        from workflows.search.worker_group import WorkerGroup

        shared = self._shared
        group = WorkerGroup(
            shared.spec, Store(shared.store), shared.inputs, shared.folder, shared.max_failures, shared.suites,
            num_seats=self._pack,
        )  # fmt: skip
        self._groups.append(group)
        self._seats += [_Taken(seat) for seat in group.seats]

    def _drop_the_lost(self) -> None:
        """Forget groups whose workers are lost for good."""
        lost = {group.seats[0].queue for group in self._groups if group.is_over}
        self._groups = [group for group in self._groups if not group.is_over]
        self._seats = [each for each in self._seats if each.seat.queue not in lost]

    def _free_the_dead(self) -> None:
        """Free the seats of actors that have died without leaving."""
        asked = {each.holder.__ray_ready__.remote(): each for each in self._seats}
        answered, _ = ray.wait([*asked], num_returns=len(asked), timeout=_SECONDS_TO_ANSWER)
        for reference in answered:
            try:
                ray.get(reference)
            except ray.exceptions.ActorDiedError:
                self.leave(asked[reference].seat)
