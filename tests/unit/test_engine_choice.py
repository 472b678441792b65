"""Which engine serves a release, and what a pipeline file may request."""

import importlib.machinery
import importlib.util
from typing import Any

import pytest
from pydantic import ValidationError
from stored import OPTIMIZED

from workflows.endpoint.application import chosen_engine
from workflows.figures import OptimizeFigures, Part
from workflows.spec import PipelineSpec
from workflows.stage import StageFailed


def spec_with(**sections: Any) -> PipelineSpec:
    data = {"sources": [{"path": "talk.jsonl"}]}
    return PipelineSpec.model_validate({"name": "x", "base_model": "random:tiny-llama", "data": data, **sections})


def release_with(openvino: str) -> Part:
    return OptimizeFigures.from_json({**OPTIMIZED, "openvino": openvino}).openvino


@pytest.mark.parametrize(("serve", "openvino", "engine", "reason"), [
    ({}, "exported", "openvino", "has an OpenVINO export"),
    ({}, "its model_type 'bloom' is not", "torch", "no OpenVINO export: its model_type 'bloom' is not"),
    ({"engine": "torch"}, "exported", "torch", "serve.engine"),
    ({"adapters": {"other": "folder"}}, "exported", "torch", "serve.adapters"),
    ({"engine": "openvino"}, "exported", "openvino", "serve.engine"),
])  # fmt: skip
def test_the_engine_and_why(serve: dict[str, Any], openvino: str, engine: str, reason: str) -> None:
    chosen, why = chosen_engine(spec_with(serve=serve).serve, release_with(openvino))
    assert chosen == engine
    assert reason in why


def test_vllm_is_for_gpus_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus, on_cpus = spec_with(serve={"gpus_per_replica": 2}).serve, spec_with(serve={"engine": "vllm"}).serve
    found = importlib.machinery.ModuleSpec("vllm", None, origin="__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert chosen_engine(with_gpus, release_with("no use")) == ("vllm", "replicas have GPUs")
    assert chosen_engine(on_cpus, release_with("exported"))[0] == "vllm"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    chosen, why = chosen_engine(with_gpus, release_with("no use"))
    assert chosen == "torch"
    assert why.endswith("run: pip install -c constraints.txt 'rayconteur[llm]'")
    with pytest.raises(StageFailed, match=r"serve.engine: vLLM is not installed here; run: .*, or use torch"):
        chosen_engine(on_cpus, release_with("exported"))


@pytest.mark.parametrize(("sections", "words"), [
    ({"serve": {"engine": "openvino", "gpus_per_replica": 1}}, "openvino computes on CPUs, gpus_per_replica is 1"),
    ({"serve": {"gpus_per_replica": 1.5}}, "gpus_per_replica is 1.5; a replica has a part of one GPU, or whole ones"),
    ({"optimize": {"weights": "int8"}, "serve": {"engine": "vllm"}}, "optimize.weights: int8 is a format of the"),
    ({"serve": {"engine": "openvino", "adapters": {"other": "folder"}}}, "adapters need engine torch"),
    ({"optimize": {"weights": "int8"}, "serve": {"engine": "torch"}}, "optimize.weights: int8 is a format of the"),
    ({"optimize": {"weights": "int4"}, "serve": {"gpus_per_replica": 0.5}}, "use bf16, or add a target"),
    ({"optimize": {"targets": ["vllm"]}}, "targets: vllm is for weights int8 and int4, weights is bf16"),
    ({"optimize": {"targets": ["gguf", "gguf"]}}, "targets names one twice: gguf, gguf"),
])  # fmt: skip
def test_what_cannot_be_served_is_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec_with(**sections)


@pytest.mark.parametrize("optimize", [
    {"targets": ["gguf"]},
    {"weights": "int8", "targets": ["vllm"]},
    {"weights": "int4", "targets": ["gguf", "vllm"]},
])  # fmt: skip
def test_a_release_for_gpus_has_few_bits_in_its_targets(optimize: dict[str, Any]) -> None:
    spec = spec_with(optimize=optimize, serve={"gpus_per_replica": 1})
    assert spec.optimize.targets == optimize["targets"]
    assert spec.optimize.is_rounded == ("weights" in optimize)
