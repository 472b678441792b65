"""Every architecture computes packed conversations as if each were alone, or is refused (docs/architectures.md)."""

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.base.packing_check import Reading, attention_of, set_up
from models.base.small_model import NoSmallModel, small_model
from models.generation import own_attention
from models.kernels.loss import fuse_head, supervised_loss_sum
from models.packing import pack, pack_trees
from models.trees import Tree

_FILE = Path(__file__).parent.parent.parent / "benchmarks" / "architectures.py"
_spec = importlib.util.spec_from_file_location("architectures", _FILE)
assert _spec is not None
assert _spec.loader is not None
architectures: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(architectures)
TABLE: dict[str, str] = architectures.table()
# The router weights of these small models are close to each other, so float32 cannot separate them reliably.
GRADIENTS_WITHIN = 1e-3
# The most common architectures, and one for each way of packing; `make test-all` tests all of them.
COMMON = (
    "bert", "bloom", "cohere2", "deepseek_v3", "deepseek_v32", "falcon", "gemma2", "gemma3_text", "glm4_moe",
    "gpt2", "gpt_neox", "gpt_oss", "gptj", "granite", "lfm2", "llama", "llama4_text", "mamba", "mamba2",
    "mistral", "mixtral", "nemotron_h", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "qwen3_next",
    "rayconteur-lstm", "recurrent_gemma", "smollm3", "xlnet", "zamba2",
)  # fmt: skip


def test_the_table_has_enough_architectures() -> None:
    trained = [name for name, how in TABLE.items() if how != "refused"]
    assert len(trained) >= 150
    assert set(TABLE.values()) == {"packed", "padded", "alone", "refused"}


@pytest.mark.parametrize(
    "name", [*COMMON, *(pytest.param(name, marks=pytest.mark.slow) for name in TABLE if name not in COMMON)]
)
def test_an_architecture_is_read_as_the_table_says(name: str) -> None:
    how, why = architectures.outcome(name)
    assert how == TABLE[name], why
    if how == "refused":
        return
    try:
        model = small_model(architectures.config_of(name)).train()
    except NoSmallModel:
        assert how == "alone", "nothing is known of it"
        return
    tokens = _tokens(model)
    begin, reply, rest, other = tokens[:9], tokens[9:14], tokens[14:30], tokens[30:]
    if how == "alone":
        sequences = [(begin + rest, [True] * 25), (other, [True] * len(other))]
        batch = pack(sequences)
    else:
        pieces = [begin, reply, rest]
        tree = Tree(pieces, [-1, 0, 0], [[True] * len(piece) for piece in pieces])
        sequences = [(begin + reply, [True] * 14), (begin + rest, [False] * 9 + [True] * 16)]
        sequences.append((other, [True] * len(other)))
        batch = pack_trees([tree, Tree([other], [-1], [[True] * len(other)])])
    wanted = _gradient(model, sum(_plain_loss(model, *sequence) for sequence in sequences))
    model.set_attn_implementation(attention_of(Reading(how)) or own_attention(model))
    set_up(model, Reading(how))
    found = [_gradient(model, supervised_loss_sum(model, batch))]
    if fuse_head(model):
        found.append(_gradient(model, supervised_loss_sum(model, batch)))
    for gradient in found:
        assert torch.linalg.vector_norm(gradient - wanted) <= GRADIENTS_WITHIN * torch.linalg.vector_norm(wanted)


def _tokens(model: Any) -> list[int]:
    draw, most = random.Random(1), min(96, model.config.get_text_config().vocab_size)
    return [draw.randrange(3, most) for _ in range(70)]


def _plain_loss(model: Any, ids: list[int], supervised: list[bool]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
    is_target = torch.tensor(supervised)[1:]
    return F.cross_entropy(logits[is_target], torch.tensor(ids)[1:][is_target], reduction="sum")


def _gradient(model: Any, loss: Any) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])
