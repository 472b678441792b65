"""Everything that we use of Ray's private modules, each with the public issue that asks for a public API.

A new version of Ray may move any of these. No other file uses `ray._private` or `ray._common`.
"""

from collections.abc import Callable
from typing import Any

from ray._common.constants import HEAD_NODE_RESOURCE_NAME

HEAD_NODE = HEAD_NODE_RESOURCE_NAME
"""The resource that only the head node has, also after a restart. It has no public name (ray-project/ray#35929)."""


def show_token() -> None:
    """Send this user's token to the cluster, if there is one.

    Ray does so only for the address `auto` (ray-project/ray#64755), but `ray start` requires a token on every machine
    where an earlier local cluster has created one.
    """
    from ray._private.authentication import authentication_token_setup

    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def redirect_worker_output(write: Callable[[list[str]], Any]) -> None:
    """Pass the lines that workers print to `write` instead of the driver's terminal (ray-project/ray#4994)."""
    from ray._private import worker

    def print_lines(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        write(data["lines"])

    worker.print_to_stdstream = print_lines
