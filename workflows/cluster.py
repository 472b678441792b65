"""The Ray cluster: connect to one or start a local one, what it has, and how workers report back.

with connect(spec.cluster):
    with watching(progress, "steps") as board: ...   # workers call board.post.remote(...)
"""

import contextlib
import errno
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workflows.progress import Progress
from workflows.room import kinds_to_come, nodes_of_cluster
from workflows.spec import ClusterSpec, PipelineSpec

# glibc gives freed memory back to the kernel at once and faults it in again: on CPUs this costs half the speed.
_MALLOC = (
    "glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.hugetlb=1"
)

# What Ray Data puts behind the words of an error.
_RETRIED = re.compile(r"\nFailed to .* after \d+/\d+ attempts.*", re.S)

ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # Ray's default gives way to every other process on the machine
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # ten times a second took 4 % of a core
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True)
class Workers:
    """So many workers that are alike, and the field that asks for them."""

    field: str
    count: int
    cpus: float
    gpus: float


class ClusterError(ValueError):
    """A cluster that cannot be reached or lacks what a stage asks for."""


class Connection:
    """A connection to the cluster, opened when first needed; a local cluster that it started ends with it."""

    def __init__(self, cluster: ClusterSpec) -> None:
        self._cluster = cluster
        self.is_open = False

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_open:
            ray.shutdown()

    def open(self) -> None:
        """Connect, or start a local cluster, unless that is done already; raises ClusterError."""
        if self.is_open:
            return
        divert_library_output()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._cluster.address is None:
            # Said outright: an address in the environment must not pull a laptop's run onto a cluster.
            options |= {"address": "local", "num_cpus": self._cluster.num_cpus}
        else:
            options["address"] = self._cluster.address
            show_token()
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**options)
        except ConnectionError as error:
            if "AuthenticationError" in repr(error.__cause__) + str(error.__cause__):
                raise ClusterError(f"cluster.address: {token_refused(str(self._cluster.address))}") from None
            raise ClusterError(
                f"cluster.address: no Ray cluster answers at {self._cluster.address!r} ({error}); "
                "start one, or leave the field out for a local one"
            ) from None
        signal.signal(signal.SIGTERM, terminate)  # Ray puts its own in its place
        self.is_open = True
        _quieten()


def library_log() -> Path:
    """The file that gets what Ray and its libraries would write to this terminal."""
    return Path(tempfile.gettempdir()) / f"rayconteur-{os.getpid()}.log"


def divert_library_output() -> None:
    """Send standard error to `library_log()`, but for what this program itself writes to `sys.stderr`.

    Ray's core, its daemons and the loggers of its libraries write there whatever Python is told; the progress of
    the run would drown in it.
    """
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    log = os.open(library_log(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)
    sys.stderr = terminal
    logging.disable(logging.WARNING)


def show_token() -> None:
    """Show a cluster this user's token, if there is one. Ray does so for the address `auto` alone, and `ray start`
    asks for one wherever an earlier local cluster has made it.
    """
    from ray._private.authentication import authentication_token_setup

    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def token_refused(address: str) -> str:
    """What is said where a cluster does not take the token that it was shown."""
    return (
        f"the Ray cluster at {address!r} refuses this user's token; put its token, as `ray get-auth-token` prints it "
        "on its head, into RAY_AUTH_TOKEN (and RAY_AUTH_MODE, where it is set, is to be token)"
    )


def _quieten() -> None:
    """Progress bars of Ray's libraries would stand in ours, its daemons' warnings and tracebacks among our lines."""
    from ray._private import worker
    from ray.data import DataContext

    def to_library_log(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        os.write(2, "".join(f"{line}\n" for line in data["lines"]).encode())

    worker.print_to_stdstream = to_library_log
    for name in ("ray", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(os.fdopen(os.dup(2), "w", buffering=1))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def worker_environment(threads: float, gpus: float) -> dict[str, str]:
    """Environment variables of a process that computes, set before it starts."""
    environment = {
        "OMP_NUM_THREADS": str(max(1, int(threads))),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if not gpus:
        environment |= {"DS_ACCELERATOR": "cpu", "GLIBC_TUNABLES": _MALLOC}
    return environment


def root_cause(error: BaseException) -> BaseException:
    """What went wrong first, without what Ray puts around it."""
    while (
        inner := getattr(error, "cause", None) or getattr(error, "controller_failure", None) or error.__cause__
    ) is not None:
        error = inner
    return error


def innermost(error: BaseException) -> str:
    """What went wrong first, in words."""
    cause = root_cause(error)
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{cause}; make room there, and the same command goes on from here"
    if isinstance(cause, ValueError):
        return _RETRIED.sub("", str(cause))
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no words'}"


def workers_of(spec: PipelineSpec) -> dict[str, Workers]:
    """What those stages ask for that have workers of their own, by the stages' names."""
    train, evaluate, serve = spec.train, spec.evaluate, spec.serve
    training = Workers("train.num_workers", train.fewest_workers, train.cpus_per_worker, train.gpus_per_worker)
    judging = Workers(
        "evaluate.num_workers", evaluate.num_workers, evaluate.cpus_per_worker, evaluate.gpus_per_worker
    )
    serving = Workers(
        "serve.min_replicas", max(1, serve.min_replicas), serve.cpus_per_replica, serve.gpus_per_replica
    )
    return {"reference": training, "tune": training, "train": training, "evaluate": judging, "deploy": serving}


def check_fits(spec: PipelineSpec, stages: Sequence[str], progress: Progress | None = None) -> None:
    """Raise ClusterError, with both numbers, where the cluster can never hold the workers of one of these stages;
    where it has to grow for them, say so on `progress`.
    """
    now = ray.cluster_resources()
    may_come = nodes_of_cluster(spec.cluster)
    grows_unasked = kinds_to_come(spec.cluster) == []  # the machines of provider `local` do not say what they have
    for workers in [workers for stage, workers in workers_of(spec).items() if stage in stages]:
        for name, resource, each in (("CPUs", "CPU", workers.cpus), ("GPUs", "GPU", workers.gpus)):
            need, have = workers.count * each, now.get(resource, 0.0)
            most = max(have, sum(node.get(resource, 0.0) for node in may_come))
            if need > most and not grows_unasked:
                scales = f" and scales up to {most:g}" if most > have else ""
                raise ClusterError(
                    f"{workers.field}: {workers.count} workers with {each:g} {name} each need {need:g}, the cluster "
                    f"has {have:g}{scales}; ask for less or give it more"
                )
            if need > have and progress is not None:
                progress.note(
                    f"{workers.field}: {need:g} {name} are asked for, {have:g} are there; waiting for nodes"
                )


@ray.remote(num_cpus=0)
class Board:
    """Where workers write how far they are, and the driver reads it."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._latest: dict[str, Any] = {}
        self._notes: list[str] = []

    def add(self, **counters: float) -> None:
        """Count further items done."""
        for name, value in counters.items():
            self._counters[name] = self._counters.get(name, 0) + value

    def post(self, note: str = "", **values: Any) -> None:
        """Replace values of the moment; a note is a line that stays."""
        self._latest.update(values)
        self._notes += [note] if note else []

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """Counters and latest values together; the notes since it was read last."""
        notes, self._notes = self._notes, []
        return {**self._counters, **self._latest}, notes


@contextlib.contextmanager
def watching(progress: Progress, unit: str, total: float | None = None) -> Iterator[Any]:
    """A `Board`, shown on `progress` until the block ends. Workers count `done`; other values are shown as they are.

    `total` may instead be posted by a worker.
    """
    # Beside this program: on another machine it could be lost with it, and the display with both.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    ended = threading.Event()
    began = time.monotonic()

    def show() -> None:
        values, notes = ray.get(board.read.remote())
        for note in notes:
            progress.note(note)
        if values:
            if "tokens" in values:
                values["tokens_per_second"] = values["tokens"] / (time.monotonic() - began)
            done, whole = values.pop("done", 0), values.pop("total", total)
            progress.update(done, whole, unit, values)

    def watch() -> None:
        while not ended.wait(1.0):
            with contextlib.suppress(ray.exceptions.RayError):
                show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        ended.set()
        thread.join(timeout=5.0)
        ray.kill(board)
