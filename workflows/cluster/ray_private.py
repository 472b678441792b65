"""All that this project takes from Ray's private modules, each with the public issue that shows the want of it.

A new version of Ray may move any of these; nothing else of `ray._private` and `ray._common` is used.
"""

from collections.abc import Callable
from typing import Any

from ray._common.constants import HEAD_NODE_RESOURCE_NAME

HEAD_NODE = HEAD_NODE_RESOURCE_NAME
"""The resource that the head alone has, after a restart too (ray-project/ray#35929): no public name stands for it."""


def show_token() -> None:
    """Show a cluster this user's token, if there is one.

    Ray does so for the address `auto` alone (ray-project/ray#64755), and `ray start` asks for one wherever an earlier
    local cluster has made it.
    """
    from ray._private.authentication import authentication_token_setup

    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def redirect_worker_output(write: Callable[[list[str]], Any]) -> None:
    """Hand lines that workers print to `write`, in place of the driver's terminal (ray-project/ray#4994)."""
    from ray._private import worker

    def print_lines(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        write(data["lines"])

    worker.print_to_stdstream = print_lines
