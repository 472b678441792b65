"""What bounds the answers of a replica: the defaults of the endpoint, declared once."""

from dataclasses import dataclass

from serve.protocol.transport import MAX_BODY_BYTES


@dataclass(frozen=True)
class ApiSettings:
    """Limits of a replica's HTTP API."""

    max_new_tokens: int = 512
    """tokens of a reply to a request that sets no limit, fewer where the prompt leaves less room"""
    max_queued_requests: int = 128
    """requests that wait beyond those that the engine decodes at once; later ones get 429"""
    max_seconds: float = 600.0
    """of a reply; it is ended then"""
    max_body_bytes: int = MAX_BODY_BYTES
