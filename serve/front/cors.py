"""CORS: which other sites' pages may use the endpoint from a browser; headers of answers, and preflight requests.

origins = Origins(["https://shop.example"])
headers = origins.headers(request.headers.get("origin"))
"""

import re
from collections.abc import Collection, Mapping

METHODS = "GET, HEAD, POST, OPTIONS"
_EXPOSED = ", ".join([
    "x-request-id", "retry-after", "x-should-retry",
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
])  # fmt: skip
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,4000}")
_USUAL_HEADERS = "authorization, content-type"
# Browsers cache a preflight answer for two hours at most.
_MAX_AGE_SECONDS = 7200


class Origins:
    """The allowed origins; "*" allows all."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(origin.lower() for origin in allowed)

    def headers(self, origin: str | None) -> dict[str, str]:
        """The CORS headers of an answer for a page of `origin`; none if the origin is not allowed."""
        if not self._allowed:
            return {}
        by_origin = {} if "*" in self._allowed else {"Vary": "Origin"}
        if not self._may(origin):
            return by_origin
        allowed = "*" if "*" in self._allowed else str(origin)
        return {"Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": _EXPOSED, **by_origin}

    def preflight(self, asked: Mapping[str, str]) -> dict[str, str]:
        """The CORS headers of the answer to an OPTIONS request with the headers `asked`."""
        headers = {"Allow": METHODS, **self.headers(asked.get("origin"))}
        if self._may(asked.get("origin")) and "access-control-request-method" in asked:
            wanted = asked.get("access-control-request-headers", "")
            headers |= {
                "Access-Control-Allow-Methods": METHODS,
                # All requested headers: clients send their own ones, and none has a meaning here.
                "Access-Control-Allow-Headers": wanted if _HEADER_NAMES.fullmatch(wanted) else _USUAL_HEADERS,
                "Access-Control-Max-Age": str(_MAX_AGE_SECONDS),
            }
        return headers

    def _may(self, origin: str | None) -> bool:
        return origin is not None and ("*" in self._allowed or origin.lower() in self._allowed)
