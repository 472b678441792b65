"""serve.sampling: the endpoint's own sampling settings, in place of what a request leaves out."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from serve.api.settings import SamplingDefaults
from serve.engines.base import GenerationRequest

MESSAGES = [{"role": "user", "content": "Hi"}]
BODIES = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 4},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 4},
}


@pytest.fixture(scope="module")
def served(serving_talker) -> Iterator[tuple[list[GenerationRequest], str]]:
    """What the engine is asked, and the endpoint's URL."""
    defaults = SamplingDefaults(temperature=0.25, top_p=0.75, top_k=9, repetition_penalty=1.5)
    with serving_talker("tiny", sampling=defaults) as (engine, url, client):
        assert isinstance(client, openai.OpenAI)
        asked: list[GenerationRequest] = []
        submit = engine.submit

        def noted(request: GenerationRequest):
            asked.append(request)
            return submit(request)

        engine.submit = noted
        yield asked, url


@pytest.mark.parametrize("route", BODIES)
def test_what_a_request_leaves_out_has_the_endpoints_defaults(served, route) -> None:
    asked, url = served
    answer = httpx.post(f"{url}{route}", json={"model": "tiny", **BODIES[route]}).json()
    found = asked[-1]
    assert (found.temperature, found.top_p, found.top_k) == (0.25, 0.75, 9)
    if route != "/v1/responses":  # which has no such field
        assert found.repetition_penalty == 1.5
    else:
        assert (answer["temperature"], answer["top_p"]) == (0.25, 0.75)
    httpx.post(f"{url}{route}", json={"model": "tiny", "temperature": 0, "top_p": 1, **BODIES[route]})
    assert (asked[-1].temperature, asked[-1].top_p, asked[-1].top_k) == (0, 1, 9)
