"""A base model that is reused between trainings: the next training gets it unchanged."""

import torch

from models.base import adapters
from models.base.reuse import BaseModels
from models.kernels.attention import PACKED_ATTENTION


def test_an_adapted_model_leaves_nothing_behind_and_its_weights_are_not_read_again(tiny_llama):
    bases = BaseModels()
    first = bases.model(tiny_llama, torch.float32, PACKED_ATTENTION, stays=True)
    names = list(first.state_dict())
    adapted = adapters.attach(first, 4, 8.0, 0.0, "all-linear", "x")
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora" in name:
                weight.fill_(1.0)
    second = bases.model(tiny_llama, torch.float32, PACKED_ATTENTION, stays=True)
    assert list(second.state_dict()) == names
    assert second is not first
    base = next(weight for name, weight in adapted.named_parameters() if "lora" not in name)
    assert next(second.parameters()) is base
    another = bases.model(tiny_llama, torch.bfloat16, PACKED_ATTENTION, stays=True)
    assert next(another.parameters()).dtype == torch.bfloat16


def test_a_model_whose_weights_are_all_trained_is_loaded_anew(tiny_llama):
    bases = BaseModels()
    first, second = (bases.model(tiny_llama, torch.float32, PACKED_ATTENTION) for _ in range(2))
    weights = [next(model.parameters()) for model in (first, second)]
    assert weights[0] is not weights[1]
    assert torch.equal(*weights)
