"""Every answer that means "retry later": its status, code, header and text, all from serve/protocol/errors.py."""

import math
from pathlib import Path

import pytest

from serve.protocol import errors
from serve.protocol.errors import ApiError

SERVE = Path(__file__).parents[2] / "serve"
# Files that name the header for another reason.
OTHERS = {"api/openapi.py": "describes it", "front/cors.py": "lets browsers read it"}


@pytest.mark.parametrize(("error", "status", "code", "seconds", "words"), [
    (errors.queue_full(7, 8), 429, "queue_full", "1", "7 replies are running or queued, the limit is 8"),
    (errors.replicas_busy(), 429, "queue_full", "1", "All replicas are busy"),
    (errors.rate_limited("tokens", 100, 60, 40, 11.2), 429, "rate_limit_exceeded", "12", "Retry in 11.2s."),
    (errors.rate_limited("requests", 60, 1, 0, 0.2), 429, "rate_limit_exceeded", "1", "Retry in 200ms."),
    (errors.format_queue_full("tools"), 429, None, "3", "tools: the endpoint is too busy"),
    (errors.bodies_full(128), 503, "overloaded", "1", "128 MiB"),
])  # fmt: skip
def test_a_refusal_says_when_to_try_again(
    error: ApiError, status: int, code: str | None, seconds: str, words: str
) -> None:
    assert (error.status, error.error.code, error.headers) == (status, code, {"Retry-After": seconds})
    assert words in error.error.message


def test_a_request_that_is_larger_than_its_limit_is_not_tried_again() -> None:
    error = errors.rate_limited("tokens", 100, 250, 100, math.inf)
    assert (error.status, error.headers) == (429, {"x-should-retry": "false"})
    assert "100 tokens a minute" in error.error.message
    assert "250" in error.error.message


def test_they_are_made_in_one_file() -> None:
    found = {
        str(file.relative_to(SERVE)) for file in SERVE.rglob("*.py") if "retry-after" in file.read_text().lower()
    }
    assert found == {"protocol/errors.py", *OTHERS}
