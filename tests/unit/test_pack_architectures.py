"""Every architecture that is packed has the gradients of each member as if it were alone, or is refused."""

import copy
import importlib.util
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from models.base import adapters
from models.base.packing_check import Reading, attention_of, set_up
from models.base.small_model import small_model
from models.errors import RayconteurError
from models.generation import own_attention
from models.objectives.sft import Sft
from models.packing import PackedBatch, pack
from models.training.engine import TorchEngine
from models.training.pack import Pack, PackedEngine, PackedSettings

_FILE = Path(__file__).parent.parent.parent / "benchmarks" / "architectures.py"
_spec = importlib.util.spec_from_file_location("architectures", _FILE)
assert _spec is not None
assert _spec.loader is not None
architectures: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(architectures)
WITHIN = 1e-4
PACKED = [name for name, how in architectures.table().items() if how == "packed"]
# The most common ones; `make test-all` tests all of them.
COMMON = (
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_oss",
    "llama",
    "mistral",
    "mixtral",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
)
# Of the common ones: dropout of its own; adapters of experts, which compute only some of the tokens.
REFUSED = {"gpt2", "mixtral", "qwen3_moe"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in COMMON else (pytest.mark.slow,)) for name in PACKED]
)
def test_members_of_a_pack_have_their_own_gradients(name: str) -> None:
    base = small_model(architectures.config_of(name))
    base.set_attn_implementation(attention_of(Reading("packed")) or own_attention(base))
    set_up(base, Reading("packed"))
    batches = [_batch(base, seed) for seed in (0, 1)]
    try:
        engines, shared = _engines(base)
    except (RayconteurError, ValueError):
        assert name in REFUSED or name not in COMMON
        return
    assert name not in REFUSED
    alone = []
    for engine, batch in zip(engines, batches, strict=True):
        single = TorchEngine(copy.deepcopy(engine.model), Sft())
        losses = [single.accumulate(batch, 10.0)["loss"], single.measure(batch)["loss"]]
        alone.append((losses, _gradients(single.model)))
    found: dict[int, list[float]] = {}

    def member(number: int) -> None:
        with shared.member():
            engine, batch = engines[number], batches[number]
            found[number] = [engine.accumulate(batch, 10.0)["loss"], engine.measure(batch)["loss"]]

    threads = [threading.Thread(target=member, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared.close()
    for number, (losses, gradients) in enumerate(alone):
        assert found[number] == pytest.approx(losses, rel=WITHIN)
        own = engines[number]._weights.gradient
        assert float(gradients.norm()) > 0
        assert float((own - gradients).norm()) <= WITHIN * float(gradients.norm())


def _engines(base: Any) -> tuple[list[PackedEngine], Pack]:
    shared, engines = Pack(copy.deepcopy(base), max_tokens=10_000), []
    for number, rank in enumerate((2, 5)):
        torch.manual_seed(number)
        model = adapters.attach(copy.deepcopy(base), rank, 8.0, 0.0, "all-linear", base="random")
        for path, parameter in model.named_parameters():
            if "lora_B" in path:  # otherwise A has no gradient
                torch.nn.init.normal_(parameter, std=0.1)
        engines.append(PackedEngine(shared, model, Sft(), PackedSettings(0.0, 1.0, 0)))
    return engines, shared


def _batch(model: Any, seed: int) -> PackedBatch:
    draw, most = torch.Generator().manual_seed(seed), min(96, model.config.get_text_config().vocab_size)
    lengths = [9, 21 + seed]
    ids = [torch.randint(3, most, [length], generator=draw).tolist() for length in lengths]
    return pack([(each, [True] * len(each)) for each in ids])


def _gradients(model: Any) -> torch.Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in trained])
