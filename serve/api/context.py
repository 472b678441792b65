"""The context that all routes of an app share."""

import time
from dataclasses import dataclass
from typing import Any

from serve.api.admission import Admission
from serve.api.settings import ApiSettings
from serve.engines.base import Engine
from serve.metrics import Metrics
from serve.protocol.errors import ApiError
from serve.protocol.responses import Model
from serve.replies.prompt import PromptEncoder
from serve.replies.reranker import Reranker


@dataclass(frozen=True)
class ApiContext:
    """The engine, and everything else that routes need."""

    engine: Engine
    tokenizer: Any
    encoder: PromptEncoder
    models: dict[str, Model]
    """the release's model first, then its adapters"""
    release_key: str
    settings: ApiSettings
    metrics: Metrics
    admission: Admission
    reranker: Reranker | None
    """None if the release has no discriminator"""

    def check_model(self, name: str) -> None:
        """Raise ApiError (404) for a model that is not served here."""
        if name not in self.models:
            there = ", ".join(map(repr, self.models))
            raise ApiError(
                404, f"The model {name[:200]!r} does not exist; available: {there}.", "model", "model_not_found"
            )


def served_models(engine: Engine, model_name: str) -> dict[str, Model]:
    """The release's model and its adapters, as GET /v1/models lists them."""
    parents = {model_name: None, **dict.fromkeys(engine.adapters, model_name)}
    created = int(time.time())
    return {
        name: Model(id=name, created=created, root=name, parent=parent, max_model_len=engine.max_positions)
        for name, parent in parents.items()
    }
