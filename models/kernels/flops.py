"""Hardware utilization of a training step: its operations, and the machine's rate."""

import time
from typing import Any

import torch


def matrix_product_rate(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 0.4) -> float:
    """Floating-point operations per second of products of square matrices: the best rate within `seconds`."""
    own = torch.Generator(device).manual_seed(0)  # leaves training's random state alone
    one, other = (torch.randn(size, size, device=device, generator=own).to(dtype) for _ in range(2))
    one @ other  # warm-up
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        one @ other
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return float(2 * size**3 / best)


class StepOperations:
    """Floating-point operations of a training step's matrix products (Kaplan et al. 2020, arXiv:2001.08361, 2.1).

    A weight costs 2 operations per token forward, 2 for the gradient of its input, and 2 for its own gradient if it
    is trained. The head counts at supervised positions only, attention at positions that the causal mask allows.
    Recomputation does not count.
    """

    def __init__(self, model: Any) -> None:
        head, tokens = model.get_output_embeddings(), model.get_input_embeddings()
        self._per_token = sum(_operations(module) for module in model.modules() if module not in (head, tokens))
        self._per_target = _operations(head)
        config = model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", 0)  # an LSTM has none
        width = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
        self._per_pair = 3 * 4 * heads * width * config.num_hidden_layers

    def of(self, num_tokens: int, num_targets: int, num_pairs: float) -> float:
        """For this many tokens, supervised positions, and pairs of positions of which one attends to the other."""
        return float(num_tokens * self._per_token + num_targets * self._per_target + num_pairs * self._per_pair)


def _operations(module: Any) -> float:
    """Per row of a module's input; 0 for a module that is not a matrix product."""
    if isinstance(module, torch.nn.LSTM):
        weights = [p for name, p in module.named_parameters() if name.startswith("weight")]
        return float(sum(w.numel() * (6 if w.requires_grad else 4) for w in weights))
    weight = getattr(module, "weight", None)
    if weight is None or isinstance(module, torch.nn.Embedding) or hasattr(module, "base_layer"):
        return 0.0  # PEFT's wrapper has the weight of the layer inside, which counts itself
    if hasattr(module, "in_features"):
        size = module.in_features * module.out_features
    elif type(module).__name__ == "Conv1D":
        size = getattr(weight, "ds_numel", weight.numel())
    else:
        return 0.0
    return float(size * (6 if weight.requires_grad else 4))
