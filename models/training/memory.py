"""An estimate of a training worker's memory, before it starts."""

from dataclasses import dataclass

# Python, torch, Ray and DeepSpeed before the first weight is loaded, as measured on Linux.
_PROCESS_GB = 1.3
# A worker's peak memory divided by the activations counted below: measured with SmolLM2-135M on a CPU, where the
# allocator keeps freed memory for the next step.
_HELD_OVER_KEPT = 1.8


@dataclass(frozen=True)
class MemoryEstimate:
    """Gigabytes (10^9 bytes) of one worker."""

    weights_gb: float
    optimizer_gb: float
    """gradients, float32 copies of the trained weights, and AdamW's two moments"""
    activations_gb: float

    @property
    def total_gb(self) -> float:
        return _PROCESS_GB + self.weights_gb + self.optimizer_gb + self.activations_gb


def estimate_training_memory(
    sizes: dict[str, int],
    *,
    micro_batch_tokens: int,
    precision: str,
    adapter_rank: int | None,
    zero_stage: int,
    num_workers: int,
) -> MemoryEstimate:
    """An estimate from a model's sizes (`models.base.sizes.describe`), accurate to about a third.

    Weights, gradients and optimizer states as in ZeRO (arXiv:1910.02054, section 3.1): 2 bytes per weight in bf16, 4
    for its gradient, which is accumulated in float32, and 12 for float32 states if it is trained; partitioned as the
    stage partitions them. Activations: what a transformer layer stores for its backward pass (arXiv:2205.05198,
    section 4.1) without attention scores, and the logits of half the tokens in float32 and in the weights' precision.
    """
    value_bytes = 2 if precision == "bf16" else 4
    hidden, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_layers"]
    weights = sizes["num_parameters"] * value_bytes
    trained = sizes["num_parameters"]
    if adapter_rank is not None:
        trained = layers * adapter_rank * (8 * hidden + 3 * (hidden + inner))
    states = trained * 12
    gradients = trained * 4
    if zero_stage >= 1:
        states //= num_workers
    if zero_stage >= 2:
        gradients //= num_workers
    if zero_stage >= 3:
        weights //= num_workers
    per_token = _HELD_OVER_KEPT * layers * (14 * hidden + 6 * inner) * value_bytes
    logits = sizes["vocab_size"] // 2 * (value_bytes + 8)
    return MemoryEstimate(
        weights_gb=weights / 1e9,
        optimizer_gb=(states + gradients) / 1e9,
        activations_gb=micro_batch_tokens * (per_token + logits) / 1e9,
    )
