"""The chunked loss against the loss on transformers' own logits: same values, same gradients."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import GraniteConfig, GraniteForCausalLM

from models.base.load import load_model
from models.kernels import loss
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.loss import fuse_head, log_probabilities, supervised_logits, supervised_loss_sum
from models.packing import PackedBatch, pack


@pytest.fixture
def batch() -> PackedBatch:
    draw = random.Random(1)
    return pack([([draw.randrange(200) for _ in range(n)], [True] * n) for n in (40, 7, 90)])


def gradients(model: Any, value: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    value.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("trained", ["all", "body", "head"])
@pytest.mark.parametrize("chunk", [16, 1000])
def test_chunks_change_nothing(
    tiny_model: Path, batch: PackedBatch, chunk: int, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_POSITIONS_AT_ONCE", chunk)
    model = load_model(tiny_model, torch.float32, PACKED_ATTENTION)
    head = model.get_output_embeddings()
    if trained != "all":
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        for parameter in model.parameters():
            parameter.requires_grad = (parameter is head.weight) == (trained == "head")
    tokens = torch.randint(0, 200, (len(batch.targets), 3), generator=torch.Generator().manual_seed(0))
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1))
    logits = supervised_logits(model, batch)
    plain_loss = F.cross_entropy(logits, batch.targets, reduction="sum") * 0.3
    plain = [(float(plain_loss.detach()), gradients(model, plain_loss))]
    log_p = F.log_softmax(supervised_logits(model, batch), -1)
    plain.append((0.0, gradients(model, (log_p.gather(1, tokens) * weights).sum())))
    plain.append((0.0, gradients(model, (log_p_targets(model, batch) * weights[:, 0]).sum())))

    assert fuse_head(model)
    mine_loss = supervised_loss_sum(model, batch) * 0.3
    assert float(mine_loss.detach()) == pytest.approx(plain[0][0], rel=1e-6)
    torch.testing.assert_close(log_probabilities(model, batch, tokens), log_p.gather(1, tokens), atol=1e-5, rtol=0)
    mine = [
        gradients(model, mine_loss),
        gradients(model, (log_probabilities(model, batch, tokens) * weights).sum()),
        gradients(model, (log_probabilities(model, batch) * weights[:, 0]).sum()),
    ]
    for ours, (_, theirs) in zip(mine, plain, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.linalg.vector_norm(one - other) <= 1e-5 * torch.linalg.vector_norm(other)
    torch.testing.assert_close(supervised_logits(model, batch), logits)


def log_p_targets(model: Any, batch: PackedBatch) -> torch.Tensor:
    return F.log_softmax(supervised_logits(model, batch), -1).gather(1, batch.targets[:, None])[:, 0]


def test_a_model_that_scales_its_logits_keeps_its_own_head(batch: PackedBatch) -> None:
    config = GraniteConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, logits_scaling=4.0,
    )  # fmt: skip
    model = GraniteForCausalLM(config).eval()
    model.set_attn_implementation(PACKED_ATTENTION)
    assert not fuse_head(model)
    with torch.no_grad():
        check_plain(model, batch)


def check_plain(model: Any, batch: PackedBatch) -> None:
    logits = supervised_logits(model, batch)
    expected = F.cross_entropy(logits, batch.targets, reduction="sum")
    assert float(supervised_loss_sum(model, batch)) == pytest.approx(float(expected))
    assert torch.allclose(log_probabilities(model, batch).sum(), -expected)
