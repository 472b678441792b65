"""The API key in a request's header, and the paths that need none."""

from serve.access.api_keys import PREFIX, ApiKey, KeyRing
from serve.protocol.errors import ApiError

# All other paths need a key, including unknown ones: a new route is closed until it is listed here. /metrics is
# closed too: usage figures are private, and Prometheus can send a key.
OPEN_PATHS = frozenset({"/", "/health", "/ping", "/openapi.json"})


def key_of(authorization: bytes, keys: KeyRing) -> ApiKey:
    """The valid key in an `Authorization` header. Raises ApiError (401)."""
    scheme, _, secret = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not secret.strip():
        raise _unauthorized(f"This endpoint needs an API key: send `Authorization: Bearer {PREFIX}...`.")
    key = keys.find(secret.strip())
    if key is None:
        raise _unauthorized("This API key is not valid: it is unknown or was revoked.", "invalid_token")
    return key


def _unauthorized(words: str, reason: str = "") -> ApiError:
    """The answer of OpenAI's API, with the header that HTTP requires (RFC 6750, section 3)."""
    challenge = 'Bearer realm="rayconteur"' + (f', error="{reason}"' if reason else "")
    return ApiError(401, words, code="invalid_api_key", headers={"WWW-Authenticate": challenge})
