"""train on a real Ray cluster: DeepSpeed under every ZeRO stage, on two workers, full and LoRA."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.base import resolve
from workflows.pipeline import StageFailed


def history(store, artifact):
    with store.filesystem.open_input_stream(store.path("train", artifact.key, "history.jsonl")) as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


@pytest.fixture(scope="module")
def losses():
    """Losses of a run, by what may not change them."""
    return {}


@pytest.mark.parametrize(("stage", "workers"), [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2)])
def test_full_training_learns_the_same_under_every_stage(run, tiny, losses, stage, workers):
    tiny["train"] |= {"zero": {"stage": stage}, "num_workers": workers, "gradient_accumulation": 2 // workers}
    done, store = run("train", tiny)
    steps = [line["loss"] for line in history(store, done["train"])]
    assert steps[-1] < steps[0] - 1.0
    assert losses.setdefault("full", steps) == pytest.approx(steps, abs=2e-3)
    folder = Path(store.path("train", done["train"].key, "model"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert not torch.equal(model.lm_head.weight, AutoModelForCausalLM.from_pretrained(
        resolve("random:tiny-llama")).lm_head.weight)  # fmt: skip


@pytest.mark.parametrize(("base", "stage"), [("random:tiny-gpt2", 0), ("random:tiny-llama", 3)])
def test_an_adapter_opens_with_peft(run, tiny, base, stage):
    tiny["base_model"] = base
    tiny["train"] |= {"adapter": {"rank": 4}, "zero": {"stage": stage}, "precision": "bf16", "learning_rate": 1e-2}
    done, store = run("train", tiny)
    steps = [line["loss"] for line in history(store, done["train"])]
    assert steps[-1] < steps[0]
    folder = Path(store.path("train", done["train"].key, "model"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(resolve(base)), folder)
    factors = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert factors
    assert all(bool(factor.abs().sum() > 0) for factor in factors)


def test_a_mistake_that_only_the_model_shows_is_said_in_a_sentence(run, tiny):
    tiny["train"]["adapter"] = {"target_modules": ["no_such_layer"]}
    with pytest.raises(StageFailed, match=r"train\.adapter\.target_modules: .*no_such_layer"):
        run("train", tiny)
