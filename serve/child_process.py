"""A process with a connection to it, started also where multiprocessing starts none: from a daemonic one."""

import contextlib
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any


def send_all(outbox: "SimpleQueue[Any]", connection: Connection) -> None:
    """Send what is put there, until it is None or the other side is gone."""
    with contextlib.suppress(OSError):
        while (message := outbox.get()) is not None:
            connection.send(message)


def start_child(module: str) -> tuple["subprocess.Popen[bytes]", Connection]:
    """Runs `main` of this module, with the number of its end of the connection as its argument.

    It has to end when the other end does, as it is when this process is gone, however it goes.
    """
    ours, theirs = socket.socketpair()
    connection = Connection(ours.detach())
    with theirs:  # closed on this side, so that the child's end of life is seen
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import main; main()", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[1],  # where our own packages are found first
            start_new_session=True,  # Ctrl-C is for the parent, whose end the child follows
        )
    return process, connection
