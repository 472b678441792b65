"""The process that checks grammars: it compiles each in a fork of itself, with limits of time and memory.

A few rules of a schema can keep a compiler busy forever. A grammar that a fork cannot compile within its limits is
refused, and no other request waits for it. Forks work because this process has one thread, has loaded the tokens
already, and loses nothing when a fork is killed. Started by serve/grammar/guard.py; needs neither torch nor
transformers.

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
# Deeply nested rules need stack; a thread of the process that uses the grammar has 8 MiB.
_STACK_BYTES = 4 << 20
_POLL_SECONDS = 0.05
# A tenth of the CPU time beside an engine that uses all of it.
_NICENESS = 10
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = 3

Excess = Literal["time", "memory", "queue"]


@dataclass(frozen=True)
class Bounds:
    """Limits of a grammar. Seconds are wall-clock time, except `kept_seconds`, which are CPU time."""

    seconds: float = 2.5
    """to compile one grammar"""
    crowded_seconds: float = 0.5
    """to compile one grammar while others wait"""
    patience: float = 4.0
    """from the request to its verdict"""
    memory: int = 1 << 30
    """bytes for one grammar"""
    memory_together: int = 2 << 30
    """bytes for all that are being compiled; beyond it the largest is killed"""
    at_once: int = 6
    kept_seconds: float = 0.3
    """a grammar is compiled again in the process that uses it, without a limit"""
    kept_memory: int = 64 << 20
    """every open request with the grammar may use this much"""


@dataclass(frozen=True)
class Setup:
    """The tokens, as llguidance reads them, and how to check grammars; `compiler` is a function's path."""

    tokens: str
    vocab_size: int
    end_token_ids: tuple[int, ...]
    bounds: Bounds
    compiler: str = COMPILER


@dataclass(frozen=True)
class Verdict:
    """Whether a grammar may be used: no fields are set if so; else its error, or the limit that it exceeds."""

    error: str | None = None
    excess: Excess | None = None
    seconds: float = 0.0
    """its time limit if that is exceeded; else the CPU time that it took"""
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
    """Waiting grammars, and those that forks compile."""

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
        """Run until the other side is gone, then kill all forks."""
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
            self._parent.close()  # otherwise the parent process would seem alive as long as the fork
            os.close(ours)
            _try_out(theirs, lambda: self._compile(self._tokens, grammar), self._bounds)
        os.close(theirs)
        began = time.monotonic()
        self._forks.append(_Fork(number, process_id, Connection(ours, writable=False), arrived, began))

    def _end(self, fork: _Fork) -> None:
        """Finish a fork that has answered or died."""
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
                self._kill(fork, "queue")  # the machine is busy, so the grammar itself may be fine
        taken = {fork.process_id: _own_bytes(fork.process_id) for fork in self._forks}
        if sum(taken.values()) - len(taken) * self._bytes > bounds.memory_together:
            self._kill(max(self._forks, key=lambda fork: taken[fork.process_id]), "memory")

    @staticmethod
    def _kill(fork: _Fork, excess: Excess) -> None:
        fork.excess = fork.excess or excess
        os.kill(fork.process_id, signal.SIGKILL)  # its end shows in its pipe


def _try_out(answers: int, compile_it: Callable[[], Any], bounds: Bounds) -> None:
    """The main function of a fork."""
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
    """Set the limits of this fork."""
    _let_others_go_first()
    with contextlib.suppress(AttributeError, OSError):  # a kernel without it: the wall-clock limit still applies
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(os.devnull, "w") as nowhere:  # the compiler's messages when it runs out of memory
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
    """How long a process has waited for a CPU; 0 if the kernel does not report it."""
    try:
        with open(f"/proc/{process_id}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _own_bytes(process_id: int) -> int:
    """The anonymous memory of a process; 0 if it is gone."""
    try:
        fields = _statm(process_id)
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def _statm(process_id: int) -> list[str]:
    with open(f"/proc/{process_id}/statm") as file:
        return file.read().split()


def _let_others_go_first() -> None:
    """Lower the priority of a fork; the process itself must notice in time that a fork exceeds its limits."""
    os.nice(_NICENESS)
    os.setsid()  # with autogroups, each session has its own share of the CPU, and nice has no effect
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
        file.write(str(_NICENESS))


def main() -> None:
    """The main function of the process."""
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, OSError):
        trials = Trials(connection, connection.recv())
        connection.send("ready")
        trials.run()
