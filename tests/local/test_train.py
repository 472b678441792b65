"""`train` on a real Ray cluster: DeepSpeed with every ZeRO stage, on two workers, full and LoRA."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.base.load import resolve
from models.objectives.sft import Sft
from workflows.corpus.reader import open_examples
from workflows.stage import StageFailed


def history(store, artifact):
    with store.filesystem.open_input_stream(store.path("train", artifact.key, "history.jsonl")) as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


@pytest.fixture(scope="module")
def losses():
    """Losses of runs, by the settings that must not change them."""
    return {}


def held_out_loss(store, done, model):
    """Computed with transformers' own forward pass, one conversation at a time."""
    rows = list(open_examples(store, {"prepare": done["prepare"].key}, "held_out", Sft.columns))
    total, targets = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids, mask = torch.tensor(row["input_ids"]), torch.tensor(row["supervised"])[1:]
            logits = model.eval()(ids[None]).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits[mask], ids[1:][mask], reduction="sum"))
            targets += int(mask.sum())
    return total / targets


@pytest.mark.parametrize(("kind", "stage", "num_workers"), [
    ("full", 0, 1),
    ("full", 3, 2),
    pytest.param("lora", 2, 2, marks=pytest.mark.slow),
    pytest.param("lora", 3, 2, marks=pytest.mark.slow),
])  # fmt: skip
def test_workers_and_stages_change_nothing_and_the_export_is_what_was_measured(
    run, tiny, losses, kind, stage, num_workers
):
    """test_deepspeed.py compares every stage on two workers, full and LoRA, step by step."""
    tiny["train"] |= {"zero": {"stage": stage}, "adapter": {"rank": 4} if kind == "lora" else None}
    tiny["train"] |= {"num_workers": num_workers, "gradient_accumulation": 2 // num_workers}
    tiny["train"]["learning_rate"] = 1e-2 if kind == "lora" else 3e-3
    done, store = run("train", tiny)
    figures, steps = done["train"].figures, [line["loss"] for line in history(store, done["train"])]
    assert losses.setdefault(kind, steps) == pytest.approx(steps, abs=2e-3)
    assert steps[-1] < steps[0] - (1.0 if kind == "full" else 0.4)
    folder = Path(store.path("train", done["train"].key, "model"))
    if kind == "lora":
        base = AutoModelForCausalLM.from_pretrained(resolve("random:tiny-llama"))
        model = PeftModel.from_pretrained(base, folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    assert held_out_loss(store, done, model) == pytest.approx(figures["held_out_loss"], abs=1e-3)
    assert AutoTokenizer.from_pretrained(folder).chat_template


@pytest.mark.slow
def test_an_adapter_of_gpt2_in_bf16_opens_with_peft(run, tiny):
    tiny["base_model"] = base = "random:tiny-gpt2"
    tiny["train"] |= {"adapter": {"rank": 4}, "precision": "bf16", "learning_rate": 1e-2}
    done, store = run("train", tiny)
    steps = [line["loss"] for line in history(store, done["train"])]
    assert steps[-1] < steps[0]
    folder = Path(store.path("train", done["train"].key, "model"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(resolve(base)), folder)
    factors = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert factors
    assert all(bool(factor.abs().sum() > 0) for factor in factors)


def test_a_mistake_that_only_the_model_reveals_is_one_sentence(run, tiny):
    tiny["train"]["adapter"] = {"target_modules": ["no_such_layer"]}
    with pytest.raises(StageFailed, match=r"train\.adapter\.target_modules: .*no_such_layer"):
        run("train", tiny)
