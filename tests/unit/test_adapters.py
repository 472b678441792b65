"""LoRA: attached, saved in PEFT's form, merged into a plain release."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from models import adapters
from models.base import load_model, load_tokenizer
from models.chat import encode_conversation
from models.compress import release
from models.engine import TorchEngine
from models.loss import supervised_loss_sum
from models.packing import PACKED_ATTENTION, pack
from models.score import ModelPair, count_facts

TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because of it."}]


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def checkpoint(base, tmp_path):
    """An adapter that changes the model a lot."""
    model = adapters.attach(load_model(base, torch.float32), 4, 8, 0.0, "all-linear", base="base")
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    TorchEngine(model).export(tmp_path / "checkpoint")
    load_tokenizer(base).save_pretrained(tmp_path / "checkpoint")
    assert adapters.is_adapter(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def rows_of(folder):
    encoded = encode_conversation(load_tokenizer(folder), TALK)
    return [(encoded.input_ids, encoded.supervised)]


def test_a_release_is_plain_and_computes_the_same(base, checkpoint, tmp_path):
    target = tmp_path / "release"
    figures = release(base, checkpoint, target, torch.float32, rows_of(base))
    assert figures["greedy_agreement"] == 1.0
    assert figures["largest_logit_change"] < 1e-3
    assert not (target / "adapter_config.json").exists()
    ids = torch.tensor([rows_of(base)[0][0]])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(target)(ids).logits
        unmerged = adapters.load(load_model(base, torch.float32), checkpoint)(ids).logits
        plain = load_model(base, torch.float32)(ids).logits
    assert torch.allclose(merged, unmerged, atol=1e-4)
    assert not torch.allclose(merged, plain, atol=1e-1)
    assert load_tokenizer(target).chat_template


def test_base_and_tuned_are_scored_on_the_same_tokens(base, checkpoint, tmp_path):
    target = tmp_path / "release"
    release(base, checkpoint, target, torch.float32, rows_of(base))
    batch = pack(rows_of(base))
    with torch.no_grad():
        expected = [
            float(supervised_loss_sum(load_model(folder, torch.float32, PACKED_ATTENTION), batch))
            for folder in (base, target)
        ]
    for folder in (checkpoint, target):  # as an adapter, and as a whole model
        pair = ModelPair(base, folder, torch.float32)
        assert list(pair.loss_sums(batch)) == pytest.approx(expected, rel=1e-4)


def test_replies_in_a_batch_are_the_replies_alone(base, checkpoint):
    pair = ModelPair(base, checkpoint, torch.float32)
    asked = [TALK[:1], [{"role": "user", "content": "A much longer question than that?"}]]
    together = pair.replies(asked, 12)
    alone = [pair.replies([messages], 12) for messages in asked]
    assert together == ([alone[0][0][0], alone[1][0][0]], [alone[0][1][0], alone[1][1][0]])
    assert together[0] != together[1]


def test_layers_that_are_not_there_are_named(tiny_llama):
    with pytest.raises(ValueError, match=r"train\.adapter\.target_modules: .*no_such_layer"):
        adapters.attach(load_model(tiny_llama, torch.float32), 4, 8, 0.0, ["no_such_layer"], base="base")


def test_facts_count_in_any_spelling_once():
    facts = [["45 days", "forty-five days"], ["Ottervale"]]
    assert count_facts("Within FORTY-FIVE\n days, in ottervale: 45 days.", facts) == 1 + 1
    assert count_facts("Within 45  days.", facts) == 1
    assert count_facts("", facts) == 0
