"""The section optimize."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workflows.spec.section import HOW, Section


class OptimizeSpec(Section):
    """optimize: converts the checkpoint to a release."""

    weights: Literal["bf16", "fp32", "int8", "int4"] = "bf16"
    """Number format of the released weights. `int8` (one scale per output) and `int4` (one scale per 32 weights of an
    output; embeddings and head stay in 8 bits or bf16) apply to the OpenVINO export for CPUs and to `targets`; the
    plain Hugging Face folder beside them is then `bf16`."""

    targets: list[Literal["gguf", "vllm"]] = Field(default=[])
    """Additional formats of the release, with these weights: `gguf`, a file for llama.cpp and Ollama; `vllm`, a
    folder in the compressed-tensors format for GPUs, in `int8` or `int4` (for other weights, vLLM loads the plain
    folder)."""

    max_perplexity_increase: Annotated[float, Field(ge=0.0, le=100.0)] = 0.01
    """Maximum increase of the perplexity on held-out conversations, for each format of the release, as a share of the
    checkpoint's perplexity."""

    cpus_per_worker: Annotated[float, Field(gt=0.0, le=4096.0)] | None = Field(default=None, json_schema_extra=HOW)
    """CPU cores and threads of the worker that converts and measures; null takes `evaluate.cpus_per_worker`."""

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
        """Whether the weights have fewer bits than those of a plain Hugging Face folder."""
        return self.weights in ("int8", "int4")
