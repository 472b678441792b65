"""Models that need one conversation per row: packed batches compute what each conversation gives alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTBigCodeConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    T5Config,
)

from models.base import adapters, packing_check
from models.base.discriminator import Discriminator
from models.base.load import load_model
from models.base.packing_check import CannotBeTrained, Reading, reading_of, set_up, short_length
from models.base.small_model import small_model
from models.generation import drawn_replies, greedy_replies
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.loss import fuse_head, log_probabilities, supervised_loss_sum
from models.kernels.rows import passes_of, read_in_rows
from models.objectives.sft import Sft
from models.packing import pack, pack_replies
from models.training.engine import TorchEngine

Conversation = tuple[list[int], list[bool]]
PlainLoss = Callable[[Any, list[Conversation]], torch.Tensor]
EXCHANGES = [([1, 2, 3], [4, 5], [True, True]), ([1, 2, 3], [6, 7, 8], [True, False, True]), ([], [8, 9], [True] * 2)]


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recurrent model."""
    folder = tmp_path_factory.mktemp("mamba")
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, state_size=8, pad_token_id=0, initializer_range=0.5
    )
    MambaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_recurrent_model_learns_each_conversation_separately(
    mamba: Path, token_rows: list[Conversation], plain_loss_sum: PlainLoss
) -> None:
    assert reading_of(mamba).how == "padded"
    assert "from those of single conversations" in reading_of(mamba).why
    plain = AutoModelForCausalLM.from_pretrained(mamba).eval()
    expected = plain_loss_sum(plain, token_rows)
    expected.backward()
    model = load_model(mamba, torch.float32, PACKED_ATTENTION)
    for is_fused in (False, True):
        assert not is_fused or fuse_head(model)
        model.zero_grad()
        loss = supervised_loss_sum(model, pack(token_rows))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.linalg.vector_norm(one.grad - other.grad) <= 1e-3 * torch.linalg.vector_norm(other.grad)


@pytest.mark.parametrize(("heads", "key_value_heads"), [(1, 1), (2, 1), (3, 3), (12, 4)])
def test_models_of_any_number_of_heads_can_be_tried(tmp_path, heads, key_value_heads):
    LlamaConfig(
        vocab_size=300, hidden_size=16 * heads, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=heads, num_key_value_heads=key_value_heads,
    ).save_pretrained(tmp_path)  # fmt: skip
    assert reading_of(tmp_path).how == "packed"


def test_replies_that_share_a_history_and_the_discriminators_states(mamba: Path) -> None:
    model = load_model(mamba, torch.float32, PACKED_ATTENTION)
    whole = [([*history, *reply], [False] * len(history) + marks) for history, reply, marks in EXCHANGES]
    torch.testing.assert_close(
        log_probabilities(model, pack_replies(EXCHANGES)), log_probabilities(model, pack(whole)), rtol=1e-4, atol=1e-5
    )
    discriminator = Discriminator(model).eval()
    scores = discriminator(pack_replies(EXCHANGES))
    alone = torch.cat([discriminator(pack([sequence])) for sequence in whole])
    torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(mamba)
    states = plain(torch.tensor([whole[1][0]]), output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(
        discriminator(pack([whole[1]])), discriminator.score(states[[3, 5]]).sum(0), rtol=1e-4, atol=1e-5
    )
    embedded = model.get_input_embeddings()(pack_replies(EXCHANGES).input_ids)
    torch.testing.assert_close(discriminator(pack_replies(EXCHANGES), inputs_embeds=embedded), scores)


def test_it_trains_with_an_adapter_and_generates_as_before(mamba: Path, token_rows: list[Conversation]) -> None:
    model = load_model(mamba, torch.float32, PACKED_ATTENTION)
    engine = TorchEngine(adapters.attach(model, 4, 8.0, 0.0, ["in_proj", "x_proj"], base="x"), Sft())
    batch = pack(token_rows)
    losses = []
    for _ in range(8):
        losses.append(engine.accumulate(batch, batch.weight)["loss"])
        engine.update(0.05)
    assert losses[-1] < 0.8 * losses[0]
    plain = load_model(mamba, torch.float32)
    again = load_model(mamba, torch.float32, PACKED_ATTENTION)
    assert greedy_replies(again, [[1, 2, 3]], 5, [0]) == greedy_replies(plain, [[1, 2, 3]], 5, [0])
    with pytest.raises(ValueError, match="mamba has no key-value cache"):
        drawn_replies(again, [[1, 2]], 1, 3, [0], [[1]])


@pytest.mark.parametrize(("how", "expected"), [
    ("alone", [[1], [0], [2], [3]]), ("padded", [[1, 0], [2, 3]]), ("packed", [[1, 0, 2, 3]]),
])  # fmt: skip
def test_conversations_of_similar_length_share_a_batch(how: Any, expected: list[list[int]]) -> None:
    lengths, positions = [90, 100, 31, 30], [5, 100, 190, 189, 221]
    passes = passes_of(lengths, [], positions, how, None)
    starts = [0, 90, 190, 221]
    assert [[starts.index(int(place)) for place in _firsts(each)] for each in passes] == expected
    for each in passes:
        for row, column, answer in zip(each.rows, each.columns, each.answers, strict=True):
            assert int(each.places[row, column]) == positions[answer]
    assert sorted(answer for each in passes for answer in each.answers) == [0, 1, 2, 3, 4]
    if how != "alone":
        assert sum(each.places.numel() for each in passes) <= 1.25 * sum(lengths)


def _firsts(each: Any) -> list[int]:
    if len(each.places) > 1:
        return [int(place) for place in each.places[:, 0]]
    ends = torch.tensor(each.lengths).cumsum(0)
    return [int(each.places[0, end - length]) for end, length in zip(ends, each.lengths, strict=True)]


def test_tokens_without_targets_are_not_computed() -> None:
    [each] = passes_of([4, 3, 2], [-1, 0, 0], [8], "alone", None)
    assert each.places.tolist() == [[0, 1, 2, 3, 7, 8]]


def test_longrope_conversations_share_batches_of_their_kind(plain_loss_sum: PlainLoss) -> None:
    """The longest conversation of a batch decides Phi's rope factors."""
    config = Phi3Config(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5, pad_token_id=0, max_position_embeddings=256,
        original_max_position_embeddings=20,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
            "original_max_position_embeddings": 20, "factor": 12.8,
        },
    )  # fmt: skip
    assert short_length(config) == 20
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    rows = [(list(range(1, n)), [True] * (n - 1)) for n in (12, 21, 40, 8, 22)]
    with torch.no_grad():
        expected = float(plain_loss_sum(model, rows))
        model.set_attn_implementation(PACKED_ATTENTION)
        assert float(supervised_loss_sum(model, pack(rows))) != pytest.approx(expected, rel=1e-3)
        set_up(model, Reading("packed", longest_short=20))
        assert float(supervised_loss_sum(model, pack(rows))) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(
        CannotBeTrained, match="base_model: transformers has no causal language model of model_type 't5'"
    ):
        reading_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(CannotBeTrained, match=r"base_model: transformers cannot read its config.json: .*unheard-of"):
        load_model(tmp_path, torch.float32, PACKED_ATTENTION)


def test_outcomes_are_cached_for_each_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setenv("RAYCONTEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing_check, "try_out", lambda config: tried.append(config.model_type) or Reading("packed"))
    packing_check._known.cache_clear()
    for config in (LlamaConfig(vocab_size=11), LlamaConfig(vocab_size=11), GPTBigCodeConfig()):
        config.save_pretrained(tmp_path)
        for _ in range(2):
            assert reading_of(tmp_path) == Reading("packed")
            packing_check._known.cache_clear()  # like another process
    assert tried == ["llama", "gpt_bigcode"]


def test_an_incomplete_attention_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails for an attention without window, sinks or cap, and for one that sees other conversations of the
    row.
    """
    from transformers import AttentionInterface, Gemma2Config, GptOssConfig, MistralConfig

    from models.kernels.attention import packed_attention

    def without_window(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        return packed_attention(*args, **kwargs)

    def leaking(*args: Any, sequence_lengths: Any = None, prefixes: Any = (), **kwargs: Any) -> Any:
        return packed_attention(*args, sequence_lengths=[sum(sequence_lengths)], **kwargs)

    def without_sinks(*args: Any, s_aux: Any = None, **kwargs: Any) -> Any:
        return packed_attention(*args, **kwargs)

    def without_cap(*args: Any, softcap: Any = None, **kwargs: Any) -> Any:
        return packed_attention(*args, **kwargs)

    for attention, config in (
        (without_window, MistralConfig()), (without_sinks, GptOssConfig()), (without_cap, Gemma2Config()),
        (leaking, LlamaConfig()),
    ):  # fmt: skip
        assert packing_check.try_out(config).how == "packed"
        AttentionInterface.register(PACKED_ATTENTION, attention)
        try:
            assert packing_check.try_out(config).how == "padded"
        finally:
            AttentionInterface.register(PACKED_ATTENTION, packed_attention)


def test_a_model_that_cannot_be_shrunk_for_the_check_is_not_packed(
    monkeypatch: pytest.MonkeyPatch, token_rows: list[Conversation], plain_loss_sum: PlainLoss
) -> None:
    monkeypatch.setattr("models.base.small_model._MAX_PARAMETERS", 10)
    reading = packing_check.try_out(LlamaConfig())
    assert (reading.how, "it could not be tested" in reading.why) == ("alone", True)
    config = LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        expected = float(plain_loss_sum(model, token_rows))
        read_in_rows(model, "alone")
        assert float(supervised_loss_sum(model, pack(token_rows))) == pytest.approx(expected, rel=1e-5)


def test_only_the_text_part_of_a_vision_model_is_trained(tmp_path: Path, token_rows: list[Conversation]) -> None:
    from transformers import Gemma3Config

    config = Gemma3Config(
        text_config={
            "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8, "max_position_embeddings": 128,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert reading_of(tmp_path) == Reading("packed")
    model = load_model(tmp_path, torch.float32, PACKED_ATTENTION).train()
    supervised_loss_sum(model, pack(token_rows)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == ("language_model" in name), name


def test_a_small_model_has_layers_of_each_kind() -> None:
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(sliding_window=1024)
    small = small_model(config).config
    assert (
        sorted(set(small.layer_types)) == sorted(set(config.layer_types)) == ["full_attention", "sliding_attention"]
    )
    assert (small.sliding_window, small.num_hidden_layers) == (8, 4)
