"""A child process with a connection to it; works in daemonic processes too, where multiprocessing starts none."""

import contextlib
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any


def send_all(outbox: "SimpleQueue[Any]", connection: Connection) -> None:
    """Send the queue's items until one is None or the other side is gone."""
    with contextlib.suppress(OSError):
        while (message := outbox.get()) is not None:
            connection.send(message)


def start_child(module: str) -> tuple["subprocess.Popen[bytes]", Connection]:
    """Run `main` of this module in a new process, with the file descriptor of its end of the connection as argument.

    The child must exit when the connection closes, which happens whenever this process ends, even if it crashes.
    """
    ours, theirs = socket.socketpair()
    connection = Connection(ours.detach())
    with theirs:  # closed on this side, so that the child's exit closes the connection
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import main; main()", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[1],  # this project's packages are found first there
            start_new_session=True,  # Ctrl-C goes only to the parent, and the child exits after it
        )
    return process, connection
