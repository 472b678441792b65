"""Connect to a Ray cluster, or start a local one.

with Connection(spec.cluster) as connection:
    connection.open()
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray

from workflows.cluster.errors import ClusterError
from workflows.cluster.ray_private import redirect_worker_output, show_token
from workflows.spec import ClusterSpec

ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # Ray's default, 15, yields to every other process on the machine
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # the default, 0.1, took 4 % of a core
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


class Connection:
    """A connection to the cluster, opened when first needed. Closing it stops a local cluster that it started."""

    def __init__(self, cluster: ClusterSpec) -> None:
        self._cluster = cluster
        self.is_open = False

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_open:
            ray.shutdown()

    def open(self) -> None:
        """Connect, or start a local cluster; does nothing if open already. Raises ClusterError."""
        if self.is_open:
            return
        divert_library_output()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._cluster.address is None:
            # Explicit, so that RAY_ADDRESS in the environment does not send a local run to a cluster.
            options |= {"address": "local", "num_cpus": self._cluster.num_cpus}
        else:
            options["address"] = self._cluster.address
            show_token()
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            # The processes of a local cluster inherit the variable, so Ray's state API asks no other cluster there.
            # Ray Train would take another cluster's answer for the death of its controller, and remove the workers
            # (findings/ray_train_asks_another_cluster.sh).
            with api_server_address("local") if self._cluster.address is None else contextlib.nullcontext():
                ray.init(**options)
        except ConnectionError as error:
            if "AuthenticationError" in repr(error.__cause__) + str(error.__cause__):
                raise ClusterError(f"cluster.address: {token_refused(str(self._cluster.address))}") from None
            raise ClusterError(
                f"cluster.address: no Ray cluster answers at {self._cluster.address!r} ({error}); "
                "start one, or leave the field out to start a local cluster"
            ) from None
        except ValueError as error:
            if self._cluster.address is None:
                raise
            why = str(error).splitlines()[0]
            raise ClusterError(
                f"cluster.address: got {self._cluster.address!r}, which is not the address of a Ray cluster ({why}); "
                "give host:port of its head, such as 10.0.0.1:6379, or leave the field out to start a local cluster"
            ) from None
        signal.signal(signal.SIGTERM, terminate)  # Ray has replaced it with its own
        self.is_open = True
        _quieten()


@contextlib.contextmanager
def api_server_address(address: str) -> Iterator[None]:
    """Within the block, Ray's state API and its jobs client ask `address`: a URL, host:port, or `local`.

    They prefer RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, to an address that they are given (ray-project/ray#50287).
    """
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def library_log() -> Path:
    """The log file for what Ray and its libraries would write to this terminal."""
    return Path(tempfile.gettempdir()) / f"rayconteur-{os.getpid()}.log"


def divert_library_output() -> None:
    """Redirect file descriptor 2 to `library_log()`; `sys.stderr` still writes to the terminal.

    Ray's core, its daemons and its libraries' loggers write to the descriptor, whatever Python's logging is set to;
    the progress of the run would be lost among their lines.
    """
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    log = os.open(library_log(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)
    sys.stderr = terminal
    logging.disable(logging.WARNING)


def token_refused(address: str) -> str:
    """The error message for a cluster that refuses this user's token."""
    return (
        f"the Ray cluster at {address!r} refuses this user's token; set RAY_AUTH_TOKEN to the cluster's token, which "
        "`ray get-auth-token` prints on its head (if RAY_AUTH_MODE is set, it must be token)"
    )


def _quieten() -> None:
    """Keep Ray's progress bars, warnings and tracebacks out of our own display."""
    from ray.data import DataContext

    redirect_worker_output(lambda lines: os.write(2, "".join(f"{line}\n" for line in lines).encode()))
    for name in ("ray", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(os.fdopen(os.dup(2), "w", buffering=1))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
