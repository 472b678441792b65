"""Ray's and vLLM's classes accept our settings; a whole endpoint: Ray Serve, `ray.serve.llm`, vLLM, our routes."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from models.base.load import load_tokenizer

OPTIONS: dict[str, Any] = {
    "name": "ChatReplica",
    "ray_actor_options": {"num_cpus": 2},
    "max_ongoing_requests": 384,
    "max_queued_requests": 64,
    "autoscaling_config": {"min_replicas": 0, "max_replicas": 3, "target_ongoing_requests": 4.0},
}


@pytest.fixture(scope="module")
def cluster(platform: Any) -> Iterator[None]:
    import ray

    from workflows.cluster import connection as ours

    os.environ.update(ours.ENVIRONMENT)
    ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.parametrize(("num_gpus", "bundles", "expected"), [
    (0, [{"CPU": 2.0, "GPU": 0}], {"tensor_parallel_size": 1, "kv_cache_memory_bytes": 2 << 30}),
    (0.5, [{"CPU": 2, "GPU": 0.5}], {"tensor_parallel_size": 1, "gpu_memory_utilization": 0.45}),
    (1, [{"CPU": 2, "GPU": 1}], {"tensor_parallel_size": 1, "gpu_memory_utilization": 0.92}),
    (4, [{"CPU": 2, "GPU": 1}, {"GPU": 1}, {"GPU": 1}, {"GPU": 1}], {"tensor_parallel_size": 4}),
])  # fmt: skip
def test_ray_and_vllm_take_the_settings(
    cluster: None,
    release: Path,
    adapters: dict[str, str],
    num_gpus: float,
    bundles: list[dict[str, float]],
    expected: dict[str, Any],
) -> None:
    from ray.llm._internal.serve.engines.vllm.vllm_engine import _get_vllm_engine_config

    from serve.deployment.vllm_replica import VLLMReplica, llm_config

    config = llm_config(
        str(release), "a/name.of-ours", OPTIONS, precision="bf16", num_gpus=num_gpus, adapters=adapters
    )
    options = VLLMReplica.get_deployment_options(config)
    assert options["placement_group_bundles"] == bundles
    assert options["autoscaling_config"] == OPTIONS["autoscaling_config"]
    environment = options["ray_actor_options"]["runtime_env"]["env_vars"]
    assert environment.get("VLLM_RAY_PER_WORKER_GPUS") == ("0.5" if num_gpus == 0.5 else None)

    arguments, engine = _get_vllm_engine_config(config)
    assert arguments.model == str(release)
    assert (engine.model_config.max_model_len, str(engine.model_config.dtype)) == (1024, "torch.bfloat16")
    assert engine.scheduler_config.max_num_seqs == 256
    assert engine.scheduler_config.enable_chunked_prefill
    assert engine.structured_outputs_config.backend == "guidance"
    assert engine.model_config.logprobs_mode == "raw_logprobs"
    assert (engine.lora_config.max_lora_rank, engine.lora_config.max_loras) == (16, 2 if num_gpus else 3)
    assert engine.parallel_config.distributed_executor_backend == ("ray" if num_gpus else "mp")
    found = {**vars(engine.cache_config), **vars(engine.parallel_config)}
    assert {name: found[name] for name in expected} == expected


@pytest.fixture(scope="module")
def url(cluster: None, release: Path, adapters: dict[str, str]) -> Iterator[str]:
    import ray
    from ray import serve as ray_serve

    from serve.deployment.application import build
    from serve.deployment.front_actor import close_fronts, open_front
    from serve.deployment.settings import EngineSettings, ServedRelease
    from serve.front.server import Endpoint

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = build(ServedRelease(str(release), "key", "tiny", adapters), EngineSettings("vllm", "fp32"))
    front = open_front("tiny", "127.0.0.1", port, 600.0)
    ray_serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    ray_serve.run(app, name="tiny", route_prefix=None)
    ray.get(front.serve.remote(Endpoint("tiny", "key")))
    yield f"http://127.0.0.1:{port}"
    close_fronts()
    ray_serve.shutdown()


ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "1+1?"}], "temperature": 0}


def test_our_routes_answer_and_no_others(url: str, release: Path) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    plain = client.chat.completions.create(**ASK, max_tokens=12)
    streamed = list(client.chat.completions.create(**ASK, max_tokens=12, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == plain.choices[0].message.content
    assert plain.usage is not None
    assert plain.usage.completion_tokens == 12
    other = client.chat.completions.create(**{**ASK, "model": "two"}, max_tokens=12)
    assert other.choices[0].message.content != plain.choices[0].message.content
    assert [model.id for model in client.models.list()] == ["tiny", "one", "two"]
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "model": "tiny", "release": "key"}
    assert httpx.get(f"{url}/v1/embeddings").status_code == 404
    tokens = httpx.post(f"{url}/tokenize", json={"prompt": "1+1?"}).json()
    assert tokens["tokens"] == load_tokenizer(release)("1+1?")["input_ids"]
    assert tokens["max_model_len"] == 1024

    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = client.chat.completions.create(**ASK, max_tokens=60, response_format=response_format)
    assert type(json.loads(str(reply.choices[0].message.content))["a"]) is bool

    bad = [
        ({"logprobs": True, "response_format": response_format}, "logprobs"),
        ({"temperature": 0.001}, "temperature"),
        ({"messages": [{"role": "user", "content": "long " * 1000}]}, "messages"),
    ]
    for change, param in bad:
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(**{**ASK, **change})
        assert raised.value.param == param


def test_when_vllm_dies_a_stream_says_so_and_the_replica_is_replaced(url: str) -> None:
    body = {**ASK, "temperature": 1, "max_tokens": 900, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        ours = psutil.Process().children(recursive=True)
        (core,) = [process for process in ours if "VLLM::EngineCore" in _title(process)]
        core.kill()
        rest = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    failure = next(json.loads(line) for line in rest if "error" in line)
    assert failure["error"]["type"] == "server_error"
    assert "vLLM could not generate the next token" in failure["error"]["message"]

    until = time.monotonic() + 300
    while time.monotonic() < until:
        answer = httpx.post(f"{url}/v1/chat/completions", json={**ASK, "max_tokens": 3}, timeout=300)
        if answer.status_code == 200:
            return
        time.sleep(1)
    pytest.fail(f"still {answer.status_code} after 300 s: {answer.text}")


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
