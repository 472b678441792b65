"""Grammars that take too much time or memory, with a stand-in compiler: none delays other requests."""

import asyncio
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from models.base.load import load_tokenizer
from serve.grammar.guard import GrammarGuard
from serve.grammar.process import Bounds, Setup, Verdict
from serve.grammar.token_map import token_source

STAND_IN = "tests.endpoint.grammar_stand_in:stand_in"
FINE = 'start: "a"'
BOUNDS = Bounds(seconds=2.0, crowded_seconds=0.5, patience=4.0, memory=32 << 20)


@pytest.fixture(scope="module")
def setup(tiny_llama: Path) -> Setup:
    tokenizer = load_tokenizer(tiny_llama)
    return Setup(token_source(tokenizer), len(tokenizer), (0,), BOUNDS, STAND_IN)


@pytest.fixture
def guard(setup: Setup) -> Iterator[GrammarGuard]:
    guard = GrammarGuard(setup)
    assert asyncio.run(guard.verdict(FINE)).excess is None  # it has started
    yield guard
    guard.close()


def seconds_and(guard: GrammarGuard, *grammars: str) -> tuple[float, list[Verdict]]:
    async def all_of_them() -> list[Verdict]:
        return await asyncio.gather(*map(guard.verdict, grammars))

    began = time.monotonic()
    verdicts = asyncio.run(all_of_them())
    return time.monotonic() - began, verdicts


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_grammar_that_compiles_is_accepted_and_another_has_its_error(guard: GrammarGuard) -> None:
    _, (fine, wrong) = seconds_and(guard, FINE + ' "b"', "start: x")
    assert (fine.error, fine.excess) == (None, None)
    assert wrong.error == 'unknown name: "x"'


def test_slow_grammars_are_refused_in_time_and_compiled_only_once(
    guard: GrammarGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    took, (verdict,) = seconds_and(guard, 'start: "sleep 60 s"')
    assert verdict.excess == "time"
    assert took < 5
    monkeypatch.setattr(guard, "_ask", None)  # nothing can be compiled any more
    _, (verdict,) = seconds_and(guard, 'start: "sleep 60 s"')
    assert verdict.excess == "time"


def test_large_grammars_are_refused_and_their_memory_is_freed(guard: GrammarGuard) -> None:
    took, (verdict,) = seconds_and(guard, 'start: "take 4096 MiB"')
    assert verdict.excess == "memory"
    assert took < 5
    with open(f"/proc/{guard.process_id}/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert resident < 200 << 10


def test_memory_that_would_stay_is_refused_too(setup: Setup) -> None:
    guard = GrammarGuard(replace(setup, bounds=replace(BOUNDS, kept_seconds=-1.0)))
    assert asyncio.run(guard.verdict(FINE)).excess == "time"
    guard.close()


def test_twenty_bad_grammars_at_once_are_refused_in_time_and_a_good_one_is_used(guard: GrammarGuard) -> None:
    bad = [f'start: "sleep 60 s {number}"' for number in range(20)]
    took, (*verdicts, good) = seconds_and(guard, *bad, FINE + ' "c"')
    assert took < 5
    assert {verdict.excess for verdict in verdicts} == {"time"}
    assert good.excess is None


def test_more_grammars_than_can_be_checked_wait_no_longer_than_the_limit(guard: GrammarGuard) -> None:
    bad = [f'start: "sleep 60 s {number}"' for number in range(60)]
    took, verdicts = seconds_and(guard, *bad)
    assert took < 5
    assert {verdict.excess for verdict in verdicts} == {"time", "queue"}
    assert seconds_and(guard, FINE + ' "d"')[1][0].excess is None  # no process is left


def test_the_same_grammar_requested_twice_is_compiled_once(guard: GrammarGuard) -> None:
    took, verdicts = seconds_and(guard, *['start: "sleep 60 s"'] * 30)
    assert {verdict.excess for verdict in verdicts} == {"time"}
    assert took < 4  # one after the other, they would take eight


def test_it_restarts_after_a_crash_and_ends_when_closed(guard: GrammarGuard) -> None:
    first = guard.process_id
    assert first is not None
    os.kill(first, 9)
    for _ in range(100):
        if not is_running(first):
            break
        time.sleep(0.05)
    time.sleep(0.2)
    assert seconds_and(guard, FINE + ' "e"')[1][0].excess is None
    second = guard.process_id
    assert second is not None
    assert second != first
    guard.close()
    for _ in range(100):
        if not is_running(second):
            return
        time.sleep(0.05)
    raise AssertionError("the process goes on without its guard")


def test_a_compiler_that_crashes_ends_no_other(guard: GrammarGuard) -> None:
    before = guard.process_id
    _, (ended, fine) = seconds_and(guard, 'start: "end at once"', FINE + ' "f"')
    assert ended.excess is not None
    assert fine.excess is None
    assert guard.process_id == before


_DIES = """
import asyncio, os, pickle, sys
from serve.grammar.guard import GrammarGuard
guard = GrammarGuard(pickle.loads(bytes.fromhex(sys.argv[1])))
async def run():
    await guard.verdict('start: "a"')
    asked = asyncio.create_task(guard.verdict('start: "sleep 60 s"'))
    await asyncio.sleep(0.5)
    children = open(f"/proc/{guard.process_id}/task/{guard.process_id}/children").read().split()
    print(guard.process_id, *children, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(run())
"""


def test_nothing_is_left_when_its_parent_is_killed(setup: Setup) -> None:
    arguments = [sys.executable, "-c", _DIES, pickle.dumps(replace(setup, bounds=Bounds(seconds=60.0))).hex()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    process_ids = [int(word) for word in done.stdout.split()]
    assert len(process_ids) == 2, done.stderr
    for _ in range(200):
        if not any(map(is_running, process_ids)):
            return
        time.sleep(0.05)
    raise AssertionError(f"still there: {process_ids}")
