"""Limits of a replica's answers, with the endpoint's defaults."""

from dataclasses import dataclass

from serve.protocol.transport import MAX_BODY_BYTES


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
