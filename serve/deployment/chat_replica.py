"""A replica that holds its engine itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.base.load import resolve
from models.files import local_copy
from serve.deployment.replica import Answering, ReadKeys
from serve.engines.base import Engine, Precision


class ChatReplica(Answering):
    """One replica that holds its engine itself."""

    def __init__(
        self,
        release: str,
        release_key: str,
        model_name: str,
        bounds: dict[str, Any],
        read_keys: ReadKeys | None,
        discriminator: str | None,
        adapters: Mapping[str, str],
        **engine: Any,
    ) -> None:
        """`engine` is what `_load_engine` takes besides folders."""
        folder = resolve(release)
        loaded = _load_engine(
            folder=folder, adapters={name: local_copy(adapter) for name, adapter in adapters.items()}, **engine
        )
        self._answer(loaded, folder, release_key, model_name, bounds, read_keys, discriminator)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve, for `replicas_for`."""
        return {"cache_used": self._engine.health().cache_used}

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises here."""
        self._check()

    def __del__(self) -> None:
        self._stop()


def _load_engine(
    name: str,
    folder: Path,
    precision: Precision,
    max_active: int,
    num_threads: int,
    device: str,
    adapters: Mapping[str, Path],
    max_stall_seconds: float,
    beside: bool,
) -> Engine:
    if name == "openvino":
        from serve.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(folder, precision, max_active, num_threads, max_stall_seconds, beside)
    from serve.engines.torch import TorchEngine

    return TorchEngine(folder, precision, max_active, num_threads, device, adapters, max_stall_seconds)
