"""LoRA adapters: attached, saved, loaded, and merged into a release that needs no PEFT."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from models.base import adapters
from models.base.load import load_model, load_tokenizer
from models.export.release import release
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.lora import fuse_lora
from models.kernels.loss import supervised_loss_sum
from models.objectives.sft import Sft
from models.packing import pack
from models.training.engine import TorchEngine
from models.training.snapshot import model_writer
from workflows.spec.train import AdapterSpec

Conversation = tuple[list[int], list[bool]]


def logits(model: Any, rows: list[Conversation]) -> torch.Tensor:
    """Computed with transformers' own forward pass, one conversation at a time."""
    with torch.no_grad():
        return torch.cat([model.eval()(torch.tensor([ids])).logits[0].float() for ids, _ in rows])


def attached(folder: Path, target_modules: str | list[str] = "all-linear", method: str = "lora") -> Any:
    model = load_model(folder, torch.float32)
    return adapters.attach(model, 4, 8.0, 0.0, target_modules, base="random:tiny", method=method)


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A saved adapter that changes the model's output."""
    model = attached(tiny_model)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "mua"])
def test_a_new_adapter_is_all_that_trains_and_changes_nothing(
    tiny_model: Path, token_rows: list[Conversation], method: str
) -> None:
    model = attached(tiny_model, method=method)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trainable)
    inner = {"llama": 7 * 64 * 4 * 2 + 3 * 64 * 4 - 2 * 32 * 4, "gpt2": (64 + 192) * 4 + 128 * 4 + 2 * (64 + 256) * 4}
    assert sum(trainable.values()) == 2 * inner["llama" if "llama" in tiny_model.name else "gpt2"]
    assert torch.equal(logits(model, token_rows), logits(load_model(tiny_model, torch.float32), token_rows))


def test_only_the_named_layers_are_adapted(tiny_gpt2: Path) -> None:
    names = [name for name, p in attached(tiny_gpt2, ["c_attn"]).named_parameters() if p.requires_grad]
    assert len(names) == 4
    assert all(".attn.c_attn.lora_" in name for name in names)


def test_rank_stabilised_lora_scales_by_the_root_of_the_rank(tiny_llama: Path) -> None:
    """arXiv:2312.03732, section 3: alpha / sqrt(r) for alpha / r."""
    scales = {
        method: {layer.scaling["default"] for layer in attached(tiny_llama, method=method).modules()
                 if isinstance(getattr(layer, "scaling", None), dict)}
        for method in ("lora", "rslora")
    }  # fmt: skip
    assert scales == {"lora": {8.0 / 4}, "rslora": {8.0 / 2}}


def factors_of(model: Any, name: str) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for path, weight in model.named_parameters() if name in path])


def test_mua_starts_with_random_b_and_zero_a(tiny_llama: Path) -> None:
    """arXiv:2602.06204, Init[B]: B has variance 1 / rank, A is 0, and the scale is 1 at any rank."""
    for rank in (4, 64):
        spec = AdapterSpec(method="mua", rank=rank)
        model = adapters.attach(load_model(tiny_llama, torch.float32), **spec.arguments(), base="random:tiny")
        assert not factors_of(model, "lora_A").any()
        assert float(factors_of(model, "lora_B").var()) == pytest.approx(1 / rank, rel=0.1)
        scales = {layer.scaling["default"] for layer in model.modules()
                  if isinstance(getattr(layer, "scaling", None), dict)}  # fmt: skip
        assert scales == {1.0}


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=96, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def first_change(folder: Path, adapter: AdapterSpec | None) -> float:
    """The root mean square of what one step of Adam changes in the outputs of the first layer's projections."""
    model = load_model(folder, torch.float32, PACKED_ATTENTION)
    torch.manual_seed(1)
    if adapter is not None:
        model = adapters.attach(model, **adapter.arguments(), base="random:tiny")
    outputs: list[torch.Tensor] = []
    layers = [layer for name, layer in model.named_modules() if name.endswith(("q_proj", "k_proj", "v_proj"))]
    batch = pack([([(7 * row + 3 * at) % 90 + 5 for at in range(24)], [True] * 24) for row in range(8)])
    engine = TorchEngine(model, Sft())
    with contextlib.ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(lambda layer, x, out: outputs.append(out.detach().clone()))
            stack.callback(handle.remove)
        engine.measure(batch)
        engine.accumulate(batch, batch.weight)
        engine.update(1e-4)
        engine.measure(batch)
    before, after = outputs[: len(layers)], outputs[-len(layers) :]
    changes = [one - other for one, other in zip(after, before, strict=True)]
    return float(torch.cat([change.flatten() for change in changes]).square().mean().sqrt())


def test_the_first_step_of_mua_is_as_large_at_any_rank(wide_llama: Path) -> None:
    """And about as large as that of a training of all weights; with LoRA it falls as the rank grows."""
    ranks = (4, 16, 64, 128)
    mua, lora = (
        [first_change(wide_llama, AdapterSpec(method=method, rank=rank)) for rank in ranks]
        for method in ("mua", "lora")
    )
    whole = first_change(wide_llama, None)
    assert max(mua) < 1.3 * min(mua)
    assert mua == pytest.approx([whole] * len(ranks), rel=0.3)
    assert lora[0] > 2.5 * lora[-1]


def test_a_mua_adapter_is_plain_lora_for_peft(
    tiny_llama: Path, token_rows: list[Conversation], tmp_path: Path
) -> None:
    model = adapters.attach(
        load_model(tiny_llama, torch.float32), **AdapterSpec(method="mua", rank=6).arguments(), base="random:tiny"
    )
    engine, batch = TorchEngine(model, Sft()), pack([(list(range(5, 45)), [True] * 40)])
    for _ in range(3):
        engine.accumulate(batch, batch.weight)
        engine.update(1e-2)
    engine.snapshot()(tmp_path)
    model.eval()
    with torch.no_grad():
        trained = torch.cat([model(torch.tensor([ids])).logits[0] for ids, _ in token_rows])
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    before = logits(base, token_rows)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "model"))
    assert torch.allclose(logits(loaded, token_rows), trained, rtol=0, atol=1e-4)
    assert float((trained - before).abs().max()) > 0.1
    merged = loaded.merge_and_unload()
    assert torch.allclose(logits(merged, token_rows), trained, rtol=0, atol=1e-4)


def test_dora_is_a_magnitude_times_a_direction(tiny_llama: Path) -> None:
    """arXiv:2402.09353, equation 5: m (W + s B A) / |W + s B A|, over the rows of W in torch's layout."""
    model = attached(tiny_llama, ["q_proj"], method="dora")
    torch.manual_seed(0)
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    for parameter in (layer.lora_B["default"].weight, layer.lora_magnitude_vector["default"].weight):
        torch.nn.init.uniform_(parameter, 0.5, 1.0)
    adapted = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight[:, None]
    x = torch.randn(3, adapted.shape[1])
    expected = x @ (magnitude * adapted / adapted.norm(dim=1, keepdim=True)).T
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-5)
    assert fuse_lora(model) == 0, "DoRA keeps PEFT's forward"


def test_frozen_parameters_are_named_by_patterns(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, torch.float32)
    adapters.freeze(model, ["model.embed_tokens.*", "model.layers.0.*"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in trained)
    with pytest.raises(ValueError, match=r"train\.frozen: 'layers\.0\.\*' matches no parameter; there are model\."):
        adapters.freeze(model, ["layers.0.*"])
    with pytest.raises(ValueError, match=r"leave nothing to train"):
        adapters.freeze(model, ["*"])


def test_a_quantised_base_trains_an_adapter(tiny_llama: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora: pip install 'rayconteur[qlora]'")
    torch.manual_seed(0)
    base = load_model(tiny_llama, torch.bfloat16, PACKED_ATTENTION, quantize="nf4")
    model = adapters.attach(base, 4, 8.0, 0.0, "all-linear", base="random:tiny")
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    kept, exact = (
        layer.base_layer.weight,
        load_model(tiny_llama, torch.float32).model.layers[0].self_attn.q_proj.weight,
    )
    assert kept.numel() * kept.element_size() == exact.numel() / 2, "four bits a weight"
    engine, batch = TorchEngine(model, Sft()), pack([(list(range(5, 45)), [True] * 40)])
    losses = []
    for _ in range(20):
        losses.append(engine.accumulate(batch, batch.weight)["loss"] / batch.weight)
        engine.update(2e-2)
    assert losses[-1] < losses[0] - 0.3


def test_an_unknown_layer_is_named_with_its_field(tiny_llama: Path) -> None:
    told = (
        r"^train\.adapter\.target_modules: no layer has the name 'q_prj' \(did you mean q_proj\?\); "
        r"the model has .*v_proj"
    )
    with pytest.raises(ValueError, match=told):
        attached(tiny_llama, ["v_proj", "q_prj"])


def test_a_saved_adapter_comes_back(tiny_model: Path, adapter: Path, token_rows: list[Conversation]) -> None:
    assert adapters.is_adapter(adapter)
    assert not adapters.is_adapter(tiny_model)
    assert '"base_model_name_or_path": "random:tiny"' in (adapter / "adapter_config.json").read_text()
    base = load_model(tiny_model, torch.float32)
    before = logits(base, token_rows)
    model = adapters.load(base, adapter)
    assert float((logits(model, token_rows) - before).abs().max()) > 0.1
    with model.disable_adapter():
        assert torch.equal(logits(model, token_rows), before)


def test_a_merged_release_needs_no_peft_and_computes_the_same(
    tiny_model: Path, adapter: Path, token_rows: list[Conversation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmerged = logits(adapters.load(load_model(tiny_model, torch.float32), adapter), token_rows)
    folder = tmp_path / "release"
    folder.mkdir()
    _, figures = release(tiny_model, adapter, folder, "fp32", token_rows, max_perplexity_increase=0.001)
    assert figures["greedy_agreement"] == 1.0
    assert figures["largest_logit_change"] <= 1e-4
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert figures["size_mb"] == pytest.approx(size / 1e6, abs=0.06)

    monkeypatch.setitem(sys.modules, "peft", None)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not adapters.is_adapter(folder)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert torch.allclose(logits(model, token_rows), unmerged, rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(folder).chat_template == load_tokenizer(tiny_model).chat_template


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_an_adapted_head_or_embedding_is_merged_exactly(
    tiny_llama: Path, token_rows: list[Conversation], targets: list[str], tmp_path: Path
) -> None:
    """For models that do not tie head and embedding: otherwise changing one would change the other."""
    tied = f"train.adapter.target_modules: .*{targets[-1]} shares its matrix with the .*leave it out"
    with pytest.raises(ValueError, match=tied):
        attached(tiny_llama, targets)
    config = AutoConfig.from_pretrained(tiny_llama)
    config.tie_word_embeddings = False
    base, checkpoint, target = (tmp_path / name for name in ("base", "checkpoint", "release"))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    model = attached(base, targets)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    state = {name: weight for name, weight in model.state_dict().items() if "lora_" in name}
    model_writer(model, state)(checkpoint)
    load_tokenizer(tiny_llama).save_pretrained(checkpoint)
    target.mkdir()
    _, figures = release(base, checkpoint, target, "fp32", token_rows, max_perplexity_increase=0.001)
    assert figures["largest_logit_change"] <= 1e-4
    released = AutoModelForCausalLM.from_pretrained(target)
    assert torch.allclose(logits(released, token_rows), logits(model, token_rows), rtol=0, atol=1e-4)
    before = load_model(base, torch.float32)
    assert not torch.allclose(logits(released, token_rows), logits(before, token_rows), atol=0.1)
    weights = before.state_dict()
    changed = {name for name, weight in released.state_dict().items() if not torch.equal(weight, weights[name])}
    assert {name.split(".")[-2] for name in changed} == {*targets}


def test_a_full_checkpoint_is_released_in_bf16(
    tiny_llama: Path, make_loud: Callable[[Path], Any], token_rows: list[Conversation], tmp_path: Path
) -> None:
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "release"
    model = make_loud(tiny_llama)
    model.save_pretrained(checkpoint)
    load_tokenizer(tiny_llama).save_pretrained(checkpoint)
    folder.mkdir()
    _, figures = release(tiny_llama, checkpoint, folder, "bf16", token_rows, max_perplexity_increase=1.0)
    released = AutoModelForCausalLM.from_pretrained(folder)
    assert released.dtype == torch.bfloat16
    assert not torch.equal(released.lm_head.weight, load_model(tiny_llama, torch.bfloat16).lm_head.weight)
    for mine, theirs in zip(released.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs.to(torch.bfloat16))
    assert 0.5 < figures["greedy_agreement"] <= 1  # computed in float32 where that is faster
    assert 1e-3 < figures["largest_logit_change"] < 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_forward_is_pefts(tiny_llama: Path, dtype: torch.dtype) -> None:
    batch = pack([([5, 6, 7, 8, 9, 10], [True] * 6), ([11, 12, 13], [True] * 3)])
    model = adapters.attach(load_model(tiny_llama, dtype, PACKED_ATTENTION), 4, 8.0, 0.0, "all-linear", "base")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)

    def loss_and_gradients() -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = supervised_loss_sum(model, batch)
        loss.backward()
        return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.requires_grad]

    def losses_without_gradient() -> list[float]:
        with torch.no_grad(), model.disable_adapter():
            off = float(supervised_loss_sum(model, batch))
        model.merge_adapter()
        with torch.no_grad():
            merged = float(supervised_loss_sum(model, batch))
        model.unmerge_adapter()
        return [off, merged]

    plain, plain_off = loss_and_gradients(), losses_without_gradient()
    assert fuse_lora(model) == 14
    fused, fused_off = loss_and_gradients(), losses_without_gradient()
    exact = dtype == torch.float32
    assert plain[0] != pytest.approx(plain_off[0], rel=1e-3), "the adapter does something"
    assert fused[0] == pytest.approx(plain[0], rel=1e-6 if exact else 1e-2)
    assert fused_off == pytest.approx(plain_off, rel=1e-6 if exact else 1e-2)
    for mine, theirs in zip(fused[1], plain[1], strict=True):
        assert torch.linalg.vector_norm(mine - theirs) <= (1e-5 if exact else 0.15) * torch.linalg.vector_norm(theirs)


def test_dropout_keeps_pefts_forward(tiny_llama: Path) -> None:
    model = adapters.attach(load_model(tiny_llama, torch.float32), 4, 8.0, 0.1, "all-linear", "base")
    assert fuse_lora(model) == 0
