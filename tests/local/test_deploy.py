"""The whole pipeline in this process, and its endpoint on Ray Serve, called with OpenAI's client."""

import json
import socket
from pathlib import Path

import httpx
import openai
import pytest

from workflows.endpoint.status import living_endpoint
from workflows.scorecard.records import Scorecard
from workflows.spec import PipelineSpec
from workflows.stage import GateFailed, StageFailed, check_gate
from workflows.training.history import History


def test_from_conversations_to_an_endpoint_and_refusals(run, tiny, free_port, tmp_path):
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
    _refused_where_it_is_worse_than_the_release_in_service(run, tiny, tmp_path)


def _refused_where_the_gate_is_too_high(run, tiny):
    tiny["evaluate"]["gate"] = {"min_loss_reduction": 99}
    with pytest.raises(GateFailed, match=r"failed: the tuned held-out loss .*min_loss_reduction"):
        run("optimize", tiny)
    done, _ = run("evaluate", tiny)
    with pytest.raises(GateFailed, match="--force"):
        check_gate(done["evaluate"], "evaluate", "use --force")
    with pytest.raises(GateFailed, match="it was never evaluated"):
        check_gate(None, "evaluate", "use --force")


def _refused_where_it_is_worse_than_the_release_in_service(run, tiny, tmp_path):
    items = [{"question": f"{one}+{one}?", "regex": r"\d", "tags": {"digits": "one"}} for one in range(1, 8)]
    items.append({"messages": [{"role": "user", "content": "no" * 3000}], "regex": "."})
    given = [{"question": "1+1?", "reply": "It is 2.", "group": "sums"}, {"question": "2+2?", "reply": "4"}]
    for name, lines in {"digits": items, "given": given}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/sizes.yaml").write_text(TASK)
    asked = [{"text": f"{one} or {one + 1}?", "choices": [str(one), str(one + 1)], "label": 1} for one in range(7)]
    (tmp_path / "tasks/sizes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    tiny["train"] |= {"learning_rate": 1e-7, "evaluate_every_steps": 1000}
    tiny["evaluate"] = {
        "compare_with": "service",
        "suites": [{"path": str(tmp_path / "digits.jsonl"), "golden": True}, {"path": str(tmp_path / "given.jsonl")}],
        "lm_eval": [f"{tmp_path}/tasks"],
        "gate": {"rule": "no_worse"},
    }
    with pytest.raises(GateFailed, match=r"no worse than the release in service by more than .*: held-out loss: "):
        run("optimize", tiny)
    done, store = run("evaluate", tiny)
    where = store.path("evaluate", done["evaluate"].key)
    found = Scorecard.from_json(store.read_json(f"{where}/scorecard.json"))
    assert found.service == store.all_of("optimize")[-1].key
    assert all(reply.service is not None for reply in found.replies)
    compared = {(each.measure, each.against, each.slice): each for each in found.comparisons}
    loss = compared["held-out loss", "service", None]
    assert loss.is_worse
    assert loss.tuned == pytest.approx(found.tuned_loss, abs=1e-3)
    assert (loss.items, compared["held-out loss", "base", None].items) == (loss.clusters, loss.items)
    assert {("digits", "base", "digits=one"), ("digits", "service", None), ("given", "service", None)} <= {*compared}
    digits, likely, sizes = found.suites
    assert (sizes.name, sizes.scorer, sizes.items) == ("lm-eval sizes", "lm-eval acc", 7)
    assert compared["lm-eval sizes", "service", None].items == 7
    assert found.tasks[0].values["acc"] == {
        score.model: pytest.approx(score.mean, abs=1e-6) for score in sizes.scores
    }
    assert (digits.golden, digits.scorer, digits.items) == (True, "regex", 8)
    assert [(score.model, score.failed) for score in digits.scores] == [("base", 1), ("tuned", 1), ("service", 1)]
    assert (likely.scorer, likely.unit) == ("perplexity", "nats")
    of_models = {score.model: score.mean for score in likely.scores}
    assert of_models["service"] < of_models["base"] == pytest.approx(of_models["tuned"], abs=0.01)
    lines = [json.loads(line) for line in Path(where, "items.jsonl").read_text().splitlines()]
    history = History(Path(store.path("train", done["train"].key, "history.jsonl")).read_text())
    measured = [line.figures["suite_digits"] for line in history.lines if "suite_digits" in line.figures]
    assert measured == [pytest.approx(digits.scores[1].mean, abs=1e-6)]
    assert [line["suite"] for line in lines] == ["digits"] * 8 + ["given"] * 2 + ["lm-eval sizes"] * 7
    assert "no reply" in lines[7]["replies"]["tuned"][0]
    assert lines[8]["group"] == "sums"


TASK = """
task: sizes
dataset_path: json
dataset_kwargs: {data_files: {test: sizes.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


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
