"""The LSTM as a causal language model: packed, padded, cached or reloaded, it computes the same."""

from pathlib import Path

import pytest
import torch

from models.base.load import load_model, load_tokenizer
from models.base.lstm import LstmCache, LstmConfig, LstmForCausalLM
from models.base.new_model import learn_tokenizer, make_new_model
from models.base.sizes import describe, max_positions
from models.chat import encode_conversation, encode_prompt, end_token_ids
from models.generation import greedy_replies
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.flops import StepOperations
from models.kernels.loss import fuse_head, supervised_logits, supervised_loss_sum
from models.packing import pack
from serve.engines.torch_sequential import TurnDecoder

LONG, SHORT = [1, 2, 3, 4, 5], [7, 8, 9]


@pytest.fixture
def lstm() -> LstmForCausalLM:
    torch.manual_seed(0)
    return LstmForCausalLM(
        LstmConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, initializer_range=0.5)
    ).eval()


def alone(model: LstmForCausalLM, tokens: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokens])).logits[0]


def test_a_conversation_in_a_packed_row_is_read_as_if_it_were_alone(lstm: LstmForCausalLM) -> None:
    lstm.set_attn_implementation(PACKED_ATTENTION)
    batch = pack([(LONG, [True] * 5), (SHORT, [True] * 3)])
    expected = torch.cat([alone(lstm, LONG)[:-1], alone(lstm, SHORT)[:-1]])
    torch.testing.assert_close(supervised_logits(lstm, batch), expected)
    plain = supervised_loss_sum(lstm, batch)
    assert fuse_head(lstm)
    torch.testing.assert_close(supervised_loss_sum(lstm, batch), plain)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(lstm: LstmForCausalLM, side: str) -> None:
    pad = [0, 0]
    row, mask = (pad + SHORT, [0, 0, 1, 1, 1]) if side == "left" else (SHORT + pad, [1, 1, 1, 0, 0])
    output = lstm(input_ids=torch.tensor([row, LONG]), attention_mask=torch.tensor([mask, [1] * 5]), use_cache=True)
    where = torch.tensor(mask).bool()
    torch.testing.assert_close(output.logits[0, where], alone(lstm, SHORT))
    torch.testing.assert_close(output.logits[1], alone(lstm, LONG))
    after = lstm(input_ids=torch.tensor([[3], [3]]), past_key_values=output.past_key_values, use_cache=True)
    torch.testing.assert_close(after.logits[:, -1], torch.stack([alone(lstm, [*x, 3])[-1] for x in (SHORT, LONG)]))


def test_replies_in_a_batch_equal_those_alone(lstm: LstmForCausalLM) -> None:
    together = greedy_replies(lstm, [LONG, SHORT], 12, [0])
    assert together == [greedy_replies(lstm, [prompt], 12, [0])[0] for prompt in (LONG, SHORT)]
    tokens = list(SHORT)
    for token in together[1]:
        assert int(alone(lstm, tokens)[-1].argmax()) == token
        tokens.append(token)


def test_it_is_served_in_turn_with_prompts_in_parts(lstm: LstmForCausalLM) -> None:
    decoder = TurnDecoder(lstm)
    assert decoder.reads_in_parts
    row = decoder.open()
    decoder.read(row, LONG[:2])
    torch.testing.assert_close(decoder.read(row, LONG[2:]), alone(lstm, LONG)[-1])
    torch.testing.assert_close(decoder.step([row], [6])[0], alone(lstm, [*LONG, 6])[-1])


def test_noise_changes_the_output(lstm: LstmForCausalLM) -> None:
    torch.manual_seed(0)
    noisy = LstmForCausalLM(LstmConfig(vocab_size=40, hidden_size=16, noise_size=4, initializer_range=0.5)).eval()
    row = torch.tensor([LONG])
    first, again, other = (
        noisy(input_ids=row, noise=z).logits for z in (torch.ones(1, 4), torch.ones(1, 4), -torch.ones(1, 4))
    )
    torch.testing.assert_close(first, again)
    assert (first - other).abs().max() > 0.01
    assert not torch.equal(noisy(input_ids=row).logits, noisy(input_ids=row).logits)  # sampled anew each time


def test_a_state_is_repeated_for_several_replies_to_one_prompt(lstm: LstmForCausalLM) -> None:
    cache = LstmCache()
    lstm(input_ids=torch.tensor([LONG]), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(3)
    logits = lstm(input_ids=torch.tensor([[2], [3], [4]]), past_key_values=cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(logits, torch.stack([alone(lstm, [*LONG, token])[-1] for token in (2, 3, 4)]))


def test_operations_and_sizes_count_four_gates(lstm: LstmForCausalLM, tmp_path: Path) -> None:
    lstm.save_pretrained(tmp_path)
    matrices, vectors = 40 * 16 * 2 + 2 * 8 * 16 * 16, sum(p.numel() for p in lstm.parameters() if p.dim() == 1)
    assert describe(tmp_path)["num_parameters"] == matrices + vectors
    operations = StepOperations(lstm)
    assert operations.of(1, 0, 0) == 6 * 2 * 8 * 16 * 16
    assert operations.of(0, 1, 0) == 6 * 16 * 40
    assert operations.of(0, 0, 1) == 0


@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_a_new_model_has_tokens_learned_from_the_texts(architecture: str, tmp_path: Path) -> None:
    texts = ["the lighthouse keeper", "a lighthouse at night", "the keeper of the lighthouse"] * 5
    for name in ("one", "two"):
        learned = learn_tokenizer(texts, 280)
        make_new_model(learned, tmp_path / name, architecture=architecture, hidden_size=32, num_layers=1, seed=3)
    tokenizer, model = load_tokenizer(tmp_path / "one"), load_model(tmp_path / "one", torch.float32)
    assert len(tokenizer) == model.config.vocab_size == 280
    assert len(tokenizer.encode(" lighthouse")) == 1
    messages = [{"role": "user", "content": "Grüße, 你好 🙂"}, {"role": "assistant", "content": "a lighthouse"}]
    encoded = encode_conversation(tokenizer, messages)  # type: ignore[arg-type]
    assert tokenizer.decode(encoded.input_ids) == "<|user|>Grüße, 你好 🙂<|end|><|assistant|>a lighthouse<|end|>"
    reply = [token for token, learned in zip(encoded.input_ids, encoded.supervised, strict=True) if learned]
    assert tokenizer.decode(reply) == "a lighthouse<|end|>"
    assert end_token_ids(tokenizer) == {tokenizer.eos_token_id}
    assert encode_prompt(tokenizer, messages[:1]) == encoded.input_ids[: -len(reply)]  # type: ignore[arg-type]
    assert max_positions(model.config) == 4096
    again = load_model(tmp_path / "two", torch.float32)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))
