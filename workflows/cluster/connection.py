"""The Ray cluster: connect to one or start a local one, what it has, and how workers report back.

with connect(spec.cluster):
    with watching(progress, "steps") as board: ...   # workers call board.post.remote(...)
"""

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

from workflows.cluster.errors import ClusterError
from workflows.cluster.ray_private import redirect_worker_output, show_token
from workflows.spec import ClusterSpec

ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # Ray's default gives way to every other process on the machine
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # ten times a second took 4 % of a core
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


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
        except ValueError as error:
            if self._cluster.address is None:
                raise
            why = str(error).splitlines()[0]
            raise ClusterError(
                f"cluster.address: {self._cluster.address!r} is no address of a Ray cluster ({why}); give "
                "host:port of its head, such as 10.0.0.1:6379, or leave the field out for a local one"
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


def token_refused(address: str) -> str:
    """What is said where a cluster does not take the token that it was shown."""
    return (
        f"the Ray cluster at {address!r} refuses this user's token; put its token, as `ray get-auth-token` prints it "
        "on its head, into RAY_AUTH_TOKEN (and RAY_AUTH_MODE, where it is set, is to be token)"
    )


def _quieten() -> None:
    """Progress bars of Ray's libraries would stand in ours, its daemons' warnings and tracebacks among our lines."""
    from ray.data import DataContext

    redirect_worker_output(lambda lines: os.write(2, "".join(f"{line}\n" for line in lines).encode()))
    for name in ("ray", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(os.fdopen(os.dup(2), "w", buffering=1))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
