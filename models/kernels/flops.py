"""How much of a machine's arithmetic a training step uses: its operations, and the machine's rate."""

import time
from typing import Any

import torch


def matrix_product_rate(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 0.4) -> float:
    """Floating-point operations a second of products of square matrices: the best of those made in the time."""
    own = torch.Generator(device).manual_seed(0)  # training's random numbers are not used up
    one, other = (torch.randn(size, size, device=device, generator=own).to(dtype) for _ in range(2))
    one @ other  # the first one prepares the others
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

    A weight costs 2 operations a token forward, 2 for the gradient of its input, and 2 for its own where it is
    trained. The head counts at supervised positions alone, attention over what a causal mask lets through; nothing is
    counted twice where it is computed twice.
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
        """Of so many tokens, supervised positions, and pairs of positions of which one sees the other."""
        return float(num_tokens * self._per_token + num_targets * self._per_target + num_pairs * self._per_pair)


def _operations(module: Any) -> float:
    """Per row of its input; 0 for what is no matrix product."""
    if isinstance(module, torch.nn.LSTM):
        weights = [p for name, p in module.named_parameters() if name.startswith("weight")]
        return float(sum(w.numel() * (6 if w.requires_grad else 4) for w in weights))
    weight = getattr(module, "weight", None)
    if weight is None or isinstance(module, torch.nn.Embedding) or hasattr(module, "base_layer"):
        return 0.0  # PEFT's wrapper shows the weight of the layer within
    if hasattr(module, "in_features"):
        size = module.in_features * module.out_features
    elif type(module).__name__ == "Conv1D":
        size = getattr(weight, "ds_numel", weight.numel())
    else:
        return 0.0
    return float(size * (6 if weight.requires_grad else 4))
