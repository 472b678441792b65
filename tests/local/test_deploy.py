"""The whole pipeline in this process, and its endpoint on Ray Serve, called with OpenAI's client."""

import socket

import httpx
import openai
import pytest

from workflows.endpoint.status import living_endpoint
from workflows.spec import PipelineSpec
from workflows.stage import GateFailed, StageFailed, check_gate


def test_from_conversations_to_an_endpoint_and_a_refusal(run, tiny, free_port):
    from ray import serve as ray_serve

    from serve.deployment.front_actor import close_fronts

    tiny["train"] |= {"adapter": {"rank": 4}, "learning_rate": 1e-2, "num_workers": 1, "gradient_accumulation": 2}
    tiny["serve"] |= {"port": free_port(), "max_replicas": 1}
    done, store = run("optimize", tiny)
    assert done["evaluate"].figures["passed"]
    assert done["optimize"].figures["openvino"] == "exported"
    forms = {form["form"]: form for form in done["optimize"].figures["forms"]}
    assert list(forms) == ["model", "openvino"]
    for form in forms.values():
        assert form["greedy_agreement"] > 0.99
        assert abs(form["perplexity_increase"]) < 0.01
        assert form["tokens_per_second"] > 0
    spec = PipelineSpec.model_validate(tiny)
    assert living_endpoint(spec, store, done["optimize"].key) is None
    endpoint = run("deploy", tiny)[0]["deploy"]
    assert endpoint.figures["engine"] == "openvino"
    try:
        assert living_endpoint(spec, store, done["optimize"].key) == endpoint
        _ask(endpoint.figures["url"])
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            tiny["serve"]["port"] = other.getsockname()[1]
            with pytest.raises(StageFailed, match=r"serve.port: cannot listen .* --set serve.port="):
                run("deploy", tiny)
        assert living_endpoint(spec, store, done["optimize"].key) == endpoint
    finally:
        ray_serve.shutdown()
        close_fronts()
    _refused_where_the_gate_is_too_high(run, tiny)


def _refused_where_the_gate_is_too_high(run, tiny):
    tiny["evaluate"]["gate"] = {"min_loss_reduction": 99}
    with pytest.raises(GateFailed, match=r"failed: the tuned held-out loss .*min_loss_reduction"):
        run("optimize", tiny)
    done, _ = run("evaluate", tiny)
    with pytest.raises(GateFailed, match="--force"):
        check_gate(done["evaluate"], "evaluate", "use --force")
    with pytest.raises(GateFailed, match="it was never evaluated"):
        check_gate(None, "evaluate", "use --force")


def _ask(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "1+1?"}], "temperature": 0, "max_tokens": 12}
    plain = client.chat.completions.create(**ask)
    streamed = list(client.chat.completions.create(**ask, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == plain.choices[0].message.content
    assert plain.usage.completion_tokens <= 12
    told = client.chat.completions.create(**ask, logprobs=True).choices[0]
    assert told.message.content == plain.choices[0].message.content
    assert len(told.logprobs.content) == 12 or told.finish_reason == "stop"
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}}}
    follows = client.chat.completions.create(**ask, response_format=wanted).choices[0]
    assert follows.message.content in ('"yes"', '"no"')
    document = httpx.get(f"{url}/openapi.json").json()
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == ["tiny"]
    bad = [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
        ({"model": "other"}, 404, "model"),
        ({"temperature": 9}, 400, "temperature"),
        ({"extra_body": {"colour": "red"}}, 400, "colour"),
        ({"messages": [{"role": "user", "content": "long " * 2000}]}, 400, "messages"),
    ]
    for change, status, param in bad:
        with pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(**{**ask, **change})
        assert raised.value.status_code == status
        assert raised.value.param == param
    page = httpx.get(f"{url}/")
    assert page.status_code == 200
    assert "<html" in page.text
