"""The process that tries grammars: it compiles each in a fork of itself, with limits of time and memory.

A few rules of a schema can keep a compiler busy without end. What a fork cannot compile within its limits is refused,
and no other request waits for it. Forked, because this process has one thread, knows the tokens already, and loses
nothing with a fork that is killed. Started by serve/grammar/guard.py; needs neither torch nor transformers.

    in:  Setup, then (number, grammar)
    out: "ready", then (number, Verdict)
"""

import contextlib
import ctypes
import importlib
import os
import pickle
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from serve.grammar.compile import tokens_of

COMPILER = "serve.grammar.compile:compiled"
# Deeply nested rules take stack; a thread of the process that uses the grammar has 8 MiB.
_STACK_BYTES = 4 << 20
_POLL_SECONDS = 0.05
# A tenth of the processor beside an engine that wants all of it.
_NICENESS = 10
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = 3

Excess = Literal["time", "memory", "queue"]


@dataclass(frozen=True)
class Bounds:
    """What a grammar may take. All seconds are of the clock, but for `kept_seconds`, which are the processor's."""

    seconds: float = 2.5
    """to compile one"""
    crowded_seconds: float = 0.5
    """to compile one while others wait"""
    patience: float = 4.0
    """from when it is asked for to its verdict, whatever it is"""
    memory: int = 1 << 30
    """bytes for one"""
    memory_together: int = 2 << 30
    """for all that are compiled; the largest ends"""
    at_once: int = 6
    kept_seconds: float = 0.3
    """a grammar is compiled once more where it is used, and that cannot be ended"""
    kept_memory: int = 64 << 20
    """every open request that uses it may hold as much"""


@dataclass(frozen=True)
class Setup:
    """The tokens, as llguidance reads them, and how to try grammars; `compiler` is a module's function."""

    tokens: str
    vocab_size: int
    end_token_ids: tuple[int, ...]
    bounds: Bounds
    compiler: str = COMPILER


@dataclass(frozen=True)
class Verdict:
    """Nothing where a grammar may be used; else what is wrong with it, or what it takes too much of."""

    error: str | None = None
    excess: Excess | None = None
    seconds: float = 0.0
    """that it had, where its time is up; else that the processor took"""
    memory: int = 0


@dataclass
class _Fork:
    """A grammar that is being compiled."""

    number: int
    process_id: int
    answers: Connection
    arrived: float
    began: float
    excess: Excess | None = None


class Trials:
    """Grammars that wait, and those that are compiled in forks."""

    def __init__(self, parent: Connection, setup: Setup) -> None:
        self._parent = parent
        self._bounds = setup.bounds
        module, _, name = setup.compiler.partition(":")
        self._compile: Callable[[Any, str], Any] = getattr(importlib.import_module(module), name)
        self._tokens = tokens_of(setup.tokens, setup.vocab_size, setup.end_token_ids)
        self._waiting: deque[tuple[int, str, float]] = deque()
        self._forks: list[_Fork] = []
        self._bytes = _own_bytes(os.getpid())

    def run(self) -> None:
        """Until the other side is gone; then nothing is left of it."""
        try:
            while True:
                self._turn()
        except (EOFError, OSError):
            for fork in self._forks:
                os.kill(fork.process_id, signal.SIGKILL)

    def _turn(self) -> None:
        is_busy = bool(self._forks or self._waiting)
        ready = wait([self._parent, *(fork.answers for fork in self._forks)], _POLL_SECONDS if is_busy else None)
        if self._parent in ready:
            number, grammar = self._parent.recv()
            self._waiting.append((number, grammar, time.monotonic()))
        for fork in [fork for fork in self._forks if fork.answers in ready]:
            self._end(fork)
        self._stop_excessive()
        while self._waiting and time.monotonic() - self._waiting[0][2] > self._bounds.patience:
            self._parent.send((self._waiting.popleft()[0], Verdict(excess="queue")))
        while self._waiting and len(self._forks) < self._bounds.at_once:
            self._start(*self._waiting.popleft())

    def _start(self, number: int, grammar: str, arrived: float) -> None:
        ours, theirs = os.pipe()
        process_id = os.fork()
        if process_id == 0:
            self._parent.close()  # else it would seem alive as long as this is
            os.close(ours)
            _try_out(theirs, lambda: self._compile(self._tokens, grammar), self._bounds)
        os.close(theirs)
        began = time.monotonic()
        self._forks.append(_Fork(number, process_id, Connection(ours, writable=False), arrived, began))

    def _end(self, fork: _Fork) -> None:
        """It has answered, or it is dead."""
        try:
            error, seconds, memory = pickle.loads(fork.answers.recv_bytes())
        except EOFError:
            error, seconds, memory = None, time.monotonic() - fork.began, 0
            fork.excess = fork.excess or "memory"
        fork.answers.close()
        _, status = os.waitpid(fork.process_id, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
            fork.excess = "time"
        if error is None and fork.excess is None:
            bounds = self._bounds
            fork.excess = "time" if seconds > bounds.kept_seconds else None
            fork.excess = "memory" if memory > bounds.kept_memory else fork.excess
        self._forks.remove(fork)
        self._parent.send((fork.number, Verdict(error, fork.excess, seconds, memory)))

    def _stop_excessive(self) -> None:
        now, bounds = time.monotonic(), self._bounds
        most = bounds.crowded_seconds if self._waiting else bounds.seconds
        for fork in self._forks:
            had = now - fork.began - _waited_seconds(fork.process_id)
            if had > most or (had > bounds.crowded_seconds and now - fork.arrived > bounds.patience):
                self._kill(fork, "time")
            elif now - fork.arrived > bounds.patience:
                self._kill(fork, "queue")  # the machine is busy with others, and nothing is known of this one
        taken = {fork.process_id: _own_bytes(fork.process_id) for fork in self._forks}
        if sum(taken.values()) - len(taken) * self._bytes > bounds.memory_together:
            self._kill(max(self._forks, key=lambda fork: taken[fork.process_id]), "memory")

    @staticmethod
    def _kill(fork: _Fork, excess: Excess) -> None:
        fork.excess = fork.excess or excess
        os.kill(fork.process_id, signal.SIGKILL)  # its end is read from its pipe


def _try_out(answers: int, compile_it: Callable[[], Any], bounds: Bounds) -> None:
    """The whole life of a fork."""
    try:
        _limit(bounds)
        before = _own_bytes(os.getpid())
        error = None
        try:
            compile_it()
        except ValueError as found:
            error = str(found)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        memory = max(0, _own_bytes(os.getpid()) - before)
        Connection(answers, readable=False).send_bytes(pickle.dumps((error, usage.ru_utime + usage.ru_stime, memory)))
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    finally:
        os._exit(0)


def _limit(bounds: Bounds) -> None:
    """From here on."""
    _let_others_go_first()
    with contextlib.suppress(AttributeError, OSError):  # a kernel without it: the clock ends it all the same
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(os.devnull, "w") as nowhere:  # what a compiler says when it has no memory
        os.dup2(nowhere.fileno(), 2)
    size = int(_statm(os.getpid())[0]) * _PAGE_BYTES
    for kind, most in (
        (resource.RLIMIT_AS, size + bounds.memory),
        (resource.RLIMIT_CPU, int(bounds.seconds) + 2),
        (resource.RLIMIT_STACK, _STACK_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _waited_seconds(process_id: int) -> float:
    """How long a process had something to do and no processor; 0 where the kernel does not say."""
    try:
        with open(f"/proc/{process_id}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _own_bytes(process_id: int) -> int:
    """Memory that it shares with no file; a process that is gone has none."""
    try:
        fields = _statm(process_id)
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def _statm(process_id: int) -> list[str]:
    with open(f"/proc/{process_id}/statm") as file:
        return file.read().split()


def _let_others_go_first() -> None:
    """A fork alone: the process itself has to see in time that one takes too much."""
    os.nice(_NICENESS)
    os.setsid()  # where each session has a share of the processor of its own, that is all that counts
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
        file.write(str(_NICENESS))


def main() -> None:
    """The process' whole life."""
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, OSError):
        trials = Trials(connection, connection.recv())
        connection.send("ready")
        trials.run()
