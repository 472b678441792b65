"""Everything that we use of Ray's private modules, each with the public issue that asks for a public API.

A new version of Ray may move any of these. No other file uses `ray._private` or `ray._common`.
"""

import os
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


def free_resources() -> list[dict[str, float]]:
    """What the tasks, actors and placement groups of all drivers leave of each live node (ray-project/ray#60134)."""
    from ray._private.state import available_resources_per_node

    return [dict(resources) for resources in available_resources_per_node().values()]


def ignore_uv_run() -> None:
    """Start workers with this Python also under `uv run`, unless the user has set RAY_ENABLE_UV_RUN_RUNTIME_ENV.

    Ray would upload the current folder, whatever is in it, and start every worker with `uv run` there
    (ray-project/ray#50961). It reads the variable when it is imported.
    """
    from ray._private import ray_constants

    if "RAY_ENABLE_UV_RUN_RUNTIME_ENV" not in os.environ:
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False


def bootstrap_address(address: str) -> str:
    """The host:port that `ray.init(address)` connects to; raises ConnectionError for `auto` without a cluster, and
    ValueError (ray-project/ray#28372: it then tries for minutes, and shows nothing).
    """
    from ray._private import services

    services.find_gcs_addresses.cache_clear()
    found: str | None = services.canonicalize_bootstrap_address(address)
    if found is None:
        raise ValueError("it starts a local cluster")
    return found


def trouble_with_head(address: str, timeout_s: float) -> str:
    """Why Ray's control service does not answer at this host:port; empty if it does, or only wants a token."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with init_grpc_channel(address) as channel:
        try:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"what is there does not answer as Ray's head within {timeout_s:g} s"
            if error.code() != grpc.StatusCode.UNAUTHENTICATED:
                return f"what answers there is not a head of Ray ({error.code().name})"
    return ""
