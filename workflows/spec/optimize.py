"""The section optimize."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workflows.spec.section import Section


class OptimizeSpec(Section):
    """optimize: checkpoint to release."""

    weights: Literal["bf16", "fp32", "int8", "int4"] = "bf16"
    """Number format of the released weights. `int8` (a scale for every output) and `int4` (one for every 32 weights
    of it; embeddings and head stay in 8 bits or bf16) are formats of the OpenVINO export, for CPUs, and of `targets`;
    the plain Hugging Face folder beside them is `bf16` then."""

    targets: list[Literal["gguf", "vllm"]] = Field(default=[])
    """Further forms of the release, with these weights: `gguf`, a file for llama.cpp and Ollama; `vllm`, a folder in
    the format compressed-tensors for GPUs, in `int8` or `int4` (in others the plain folder is what vLLM loads)."""

    max_perplexity_increase: Annotated[float, Field(ge=0.0, le=100.0)] = 0.01
    """By what share of the checkpoint's the perplexity of each form of the release on held-out conversations may be
    higher."""

    @model_validator(mode="after")
    def _targets_are_forms(self) -> "OptimizeSpec":
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets names one twice: {', '.join(self.targets)}; name each once")
        if "vllm" in self.targets and not self.is_rounded:
            raise ValueError(
                f"targets: vllm is for weights int8 and int4, weights is {self.weights}; vLLM loads the plain "
                "Hugging Face folder, leave vllm out"
            )
        return self

    @property
    def is_rounded(self) -> bool:
        """Whether the weights have fewer bits than a plain Hugging Face folder keeps."""
        return self.weights in ("int8", "int4")
