"""Connect to a Ray cluster, or start a local one.

with Connection(spec.cluster) as connection:
    connection.open()
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray

from workflows.cluster.errors import ClusterError, describe_error
from workflows.cluster.ray_private import (
    bootstrap_address,
    ignore_uv_run,
    redirect_worker_output,
    show_token,
    trouble_with_head,
)
from workflows.spec import ClusterSpec

ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # Ray's default, 15, yields to every other process on the machine
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # the default, 0.1, took 4 % of a core
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


# A machine accepts a connection, and a busy head answers, within these times.
_CONNECTS_WITHIN_S = 10.0
_ANSWERS_WITHIN_S = 30.0

TOO_SLOW = "timed out during startup"
"""in Ray's bare Exception"""


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
        ignore_uv_run()
        options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._cluster.address is None:
            # Explicit, so that RAY_ADDRESS in the environment does not send a local run to a cluster.
            options |= {"address": "local", "num_cpus": self._cluster.num_cpus}
        else:
            options["address"] = self._cluster.address
            show_token()
            _check_head(self._cluster.address)
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            # The processes of a local cluster inherit the variable, so Ray's state API asks no other cluster there.
            # Ray Train would take another cluster's answer for the death of its controller, and remove the workers
            # (findings/ray_train_asks_another_cluster.sh).
            with api_server_address("local") if self._cluster.address is None else contextlib.nullcontext():
                ray.init(**options)
        except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
            if self._cluster.address is None:
                raise
            raise ClusterError(f"cluster.address: {_why_not_connected(str(options['address']), error)}") from None
        except Exception as error:
            if TOO_SLOW not in str(error):
                raise
            raise ClusterError(
                "Ray did not start on this machine within its 30 seconds: the machine is too busy, or has too little "
                "memory; end other programs, and run the same command again"
            ) from error
        signal.signal(signal.SIGTERM, terminate)  # Ray has replaced it with its own
        self.is_open = True
        _quieten()


def _check_head(address: str) -> None:
    """Raise ClusterError if no head answers at `address`, within seconds: `ray.init` tries for minutes."""
    given = os.environ.get("RAY_ADDRESS") if address == "auto" else None
    stated = f"cluster.address: got {address!r}" + (f", and RAY_ADDRESS is {given!r}" if given else "")
    if (given or address).startswith("ray://"):
        raise ClusterError(
            f"{stated}; pipelines do not run over Ray Client: `rayconteur submit PIPELINE --address URL` runs "
            "one from outside the cluster; on one of its machines, set cluster.address: auto"
        )
    try:
        if "://" in (given or address):
            raise ValueError("it is a URL")
        found = bootstrap_address(address)
        host, _, port = found.rpartition(":")
        if not port.isdigit():
            raise ValueError(f"{port!r} is not a port")
    except ConnectionError:
        raise ClusterError(
            f"{stated}, and no Ray cluster runs on this machine; start one with `ray start`, give host:port of a "
            "head, or leave the field out to start a local cluster"
        ) from None
    except ValueError as error:
        why = str(error).splitlines()[0]
        raise ClusterError(
            f"{stated}, which is not the address of a Ray cluster ({why}); give host:port of its head, such as "
            "10.0.0.1:6379, or leave the field out to start a local cluster"
        ) from None
    where = f"{stated}, and" if found == (given or address) else f"{stated}, which is {found}, and"
    fix = "give host:port of the head, such as 10.0.0.1:6379 (`ray status` there shows whether its cluster runs), or "
    fix += "leave the field out to start a local cluster"
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECTS_WITHIN_S).close()
    except OSError as error:
        raise ClusterError(f"{where} nothing answers there ({error.strerror or error}); {fix}") from None
    if trouble := trouble_with_head(found, _ANSWERS_WITHIN_S):
        raise ClusterError(
            f"{where} {trouble}; its dashboard (port 8265) and its Ray Client server (10001) are not meant: {fix}"
        )


def _why_not_connected(address: str, error: Exception) -> str:
    """Why this machine cannot connect to a head that answers."""
    causes = repr(error) + repr(error.__cause__)
    if "AuthenticationError" in causes:
        return token_refused(address)
    if "No node info found" in causes:
        return (
            f"the head at {address!r} answers, but this machine is no node of its cluster; run the command on one of "
            "its machines, or from here with `rayconteur submit PIPELINE --address http://HEAD:8265`"
        )
    return f"cannot connect to the Ray cluster at {address!r} ({describe_error(error)})"


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
