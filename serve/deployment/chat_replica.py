"""A replica whose engine runs in its own process."""

from collections.abc import Mapping
from pathlib import Path

from models.base.load import resolve
from models.files import local_copy
from serve.api.settings import ApiSettings
from serve.deployment.replica import Answering, ReadKeys
from serve.deployment.settings import EngineSettings, ServedRelease
from serve.engines.base import Engine


class ChatReplica(Answering):
    """A replica whose engine runs in its own process."""

    def __init__(
        self,
        release: ServedRelease,
        engine: EngineSettings,
        api: ApiSettings,
        read_keys: ReadKeys | None,
        max_active: int,
        num_threads: int,
        device: str,
    ) -> None:
        folder = resolve(release.folder)
        loaded = _load_engine(folder, release.adapters, engine, max_active, num_threads, device)
        self._answer(loaded, folder, release, api, read_keys)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve, for `replicas_for`."""
        return {"cache_used": self._engine.health().cache_used}

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises here."""
        self._check()

    def __del__(self) -> None:
        self._stop()


def _load_engine(
    folder: Path, adapters: Mapping[str, str], engine: EngineSettings, max_active: int, num_threads: int, device: str
) -> Engine:
    precision, max_stall_seconds = engine.precision, engine.max_stall_seconds
    if engine.name == "openvino":
        from serve.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(folder, precision, max_active, num_threads, max_stall_seconds, engine.beside)
    from serve.engines.torch import TorchEngine

    local = {name: local_copy(adapter) for name, adapter in adapters.items()}
    return TorchEngine(folder, precision, max_active, num_threads, device, local, max_stall_seconds)
