"""The simulator of benchmarks/packed_makespan.py: how long packs take by simulated time."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from workflows.training.steps import PASS_TOKENS

_FILE = Path(__file__).parents[2] / "benchmarks" / "packed_makespan.py"
_spec = importlib.util.spec_from_file_location("packed_makespan", _FILE)
assert _spec is not None
assert _spec.loader is not None
simulator: Any = importlib.util.module_from_spec(_spec)
sys.modules["packed_makespan"] = simulator  # its dataclasses look for their module
_spec.loader.exec_module(simulator)

COSTS = simulator.Costs(pass_seconds=1.0, token_seconds=0.01, rank_seconds=0.001, update_seconds=0.5)
QUARTER = PASS_TOKENS // 4


def trials(count: int, steps: int) -> list[Any]:
    return [simulator.Member(rank=8, num_tokens=QUARTER, steps=steps) for _ in range(count)]


def test_equal_trials_in_full_rows_take_as_long_as_the_lower_bound() -> None:
    equal = trials(4 * simulator.GPUS * 3, steps=10)
    row = 1.0 + 0.01 * PASS_TOKENS + 0.001 * 8 * PASS_TOKENS
    assert simulator.makespan(equal, COSTS, pack=4) == pytest.approx(3 * 10 * (row + 4 * 0.5))
    assert simulator.lower_bound(equal, COSTS) == pytest.approx(3 * 10 * (row + 4 * 0.5))


def test_a_trial_that_ends_leaves_its_seat_to_the_next_one() -> None:
    """The first group has a long trial, beside which two short ones take turns."""
    long, short = trials(1, steps=10), trials(2 * simulator.GPUS, steps=5)
    row = 1.0 + 2 * QUARTER * (0.01 + 0.008)
    assert simulator.makespan([*long, *short], COSTS, pack=2) == pytest.approx(10 * (row + 2 * 0.5))


def test_the_longest_trial_alone_is_a_lower_bound() -> None:
    assert simulator.lower_bound(trials(1, steps=7), COSTS) == pytest.approx(7 * (1.5 + QUARTER * (0.01 + 0.008)))


@pytest.mark.parametrize("pack", [1, 4, 8])
def test_no_schedule_is_shorter_than_the_lower_bound(pack: int) -> None:
    for seed in range(5):
        drawn = simulator.trials_of(seed)
        bound = simulator.lower_bound(drawn, simulator.MEASURED)
        found = simulator.makespan(drawn, simulator.MEASURED, pack)
        assert bound <= found < 2 * bound
