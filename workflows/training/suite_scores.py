"""The scores of suites during a training: the model replies to their items at checkpoints.

scores = SuiteScores(suites, every_steps=200, engine=engine, tokenizer=tokenizer)
if scores.is_due(report.step, report.num_steps):
    report.figures |= scores.measure()                  # {"suite_rules": 0.7}
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from models.training.deepspeed_engine import DeepSpeedEngine
from models.training.pack import Pack, PackedEngine
from workflows.spec.tune import SUITE
from workflows.suites.answering import AnsweringModel, Asked
from workflows.suites.suite import Suite
from workflows.training.recovery import Watchdog


class SuiteScores:
    """Suites whose items the workers of a training share; all workers call `measure` together."""

    def __init__(
        self, suites: Sequence[Suite], every_steps: int, engine: DeepSpeedEngine | PackedEngine, tokenizer: Any,
        watchdog: Watchdog, pack: Pack | None = None,
    ) -> None:  # fmt: skip
        """`pack`: of which this training is a member."""
        self._suites, self._every, self._engine, self._tokenizer = suites, every_steps, engine, tokenizer
        self._watchdog, self._pack = watchdog, pack
        self._last = 0

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether the checkpoint of a step is measured: the first one after every so many steps, and the last one."""
        if not self._suites or (step // self._every == self._last // self._every and step != num_steps):
            return False
        self._last = step
        return True

    def measure(self) -> dict[str, float]:
        """The mean score of each suite, by `suite_` and its name."""
        rank, count = self._engine.rank, self._engine.num_workers
        mine = [(suite, item) for suite in self._suites for item in suite.items][rank::count]
        sums = {suite.name: 0.0 for suite in self._suites}
        if mine:
            asked = [Asked(item.turns, suite.max_new_tokens) for suite, item in mine]
            with self._turn(), AnsweringModel(self._start_engine, lambda: self._tokenizer) as answering:
                replies = answering.converse(asked, self._watchdog.alive)
            for (suite, item), answers in zip(mine, replies, strict=True):
                sums[suite.name] += suite.item_score(item, [answer.message for answer in answers])
        totals = self._engine.total([*sums.values()])
        return {
            f"{SUITE}{suite.name}": total / len(suite.items)
            for suite, total in zip(self._suites, totals, strict=True)
        }

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Members of a pack reply one after the other."""
        if self._pack is None:
            yield
            return
        with self._pack.away():
            with self._watchdog.paused():
                self._pack.replying.acquire()
            try:
                yield
            finally:
                self._pack.replying.release()

    def _start_engine(self, open_with: contextlib.ExitStack) -> Any:
        from workflows.suites.loaded_model import LoadedModelEngine

        return LoadedModelEngine(self._engine.model)
