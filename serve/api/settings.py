"""Limits of a replica's answers, with the endpoint's defaults."""

from dataclasses import asdict, dataclass
from typing import TypeVar

from serve.protocol.base import RequestModel
from serve.protocol.transport import MAX_BODY_BYTES

Asked = TypeVar("Asked", bound=RequestModel)


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request is answered with where it says nothing; None: the API's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def filled(self, request: Asked) -> Asked:
        """The request with these in place of what it leaves out."""
        known = type(request).model_fields
        missing = {
            name: value
            for name, value in asdict(self).items()
            if value is not None and name in known and getattr(request, name) is None
        }
        return request.model_copy(update=missing) if missing else request


@dataclass(frozen=True)
class ApiSettings:
    """Limits of a replica's HTTP API."""

    max_new_tokens: int = 512
    """maximum tokens of a reply to a request without a limit; fewer if the prompt leaves less room"""
    max_queued_requests: int = 128
    """requests that may wait beside those that the engine decodes; further ones get 429"""
    max_seconds: float = 600.0
    """maximum duration of a reply, which then ends with an error"""
    max_body_bytes: int = MAX_BODY_BYTES
    sampling: SamplingDefaults = SamplingDefaults()
