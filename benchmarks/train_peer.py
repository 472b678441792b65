"""The peers' sides of train_vs_peers.py: run in their own virtual environment."""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

WARM_UP_STEPS = 1


class Clock(TrainerCallback):
    """Records when each step ended, its loss, and the tokens of its batch."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[int] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def counting(self, collator: Any) -> Any:
        """The collator, which also counts the tokens that are not padding."""

        def collate(examples: Any) -> Any:
            self.tokens.append(sum(len(example["input_ids"]) for example in examples))
            return collator(examples)

        return collate


class InOrder(SFTTrainer):
    """Reads the conversations in the given order."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def make(side: str, kind: str, precision: str, folder: str, rows: Dataset, out: str, one_by_one: bool) -> Any:
    """The trainer of a side; `trl` takes its own default precision."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bf16 = {} if side == "trl" else {"bf16": precision == "bf16"}
    common: dict[str, Any] = {
        "output_dir": out, "use_cpu": True, "num_train_epochs": 1, "learning_rate": 1e-4, "save_strategy": "no",
        "lr_scheduler_type": "constant", "logging_steps": 1, "report_to": [], "disable_tqdm": True, **bf16,
    }  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    if side == "trainer":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if kind == "lora":
            model = get_peft_model(model, lora)
        settings = TrainingArguments(
            **common, per_device_train_batch_size=8, train_sampling_strategy="group_by_length"
        )
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
        return Trainer(model, settings, train_dataset=rows, data_collator=collator, processing_class=tokenizer)
    if one_by_one:
        config = SFTConfig(**common, per_device_train_batch_size=1)
    elif side in ("trl", "trl-fp32"):
        config = SFTConfig(**common)
    else:
        config = SFTConfig(
            **common, gradient_checkpointing=False, packing=True, max_length=2048,
            per_device_train_batch_size=1,
        )  # fmt: skip
    peft_config = lora if kind == "lora" else None
    return InOrder(folder, config, train_dataset=rows, processing_class=tokenizer, peft_config=peft_config)


def main(side: str, kind: str, precision: str, folder: str, data: str, threads: str, save_to: str = "") -> None:
    """Train once over the examples; the last line of output is the measurement as JSON.

    With `save_to`, one conversation a step, and the model is saved there.
    """
    torch.manual_seed(0)  # the adapter's initial weights
    torch.set_num_threads(int(threads))
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        trainer = make(
            side, kind, precision, folder, Dataset.from_list(json.loads(Path(data).read_text())), out, bool(save_to)
        )
        trainer.data_collator = clock.counting(trainer.data_collator)
        trainer.add_callback(clock)
        trainer.train()
        if save_to:
            trainer.model.save_pretrained(save_to)
    seconds = clock.ends[-1] - clock.ends[WARM_UP_STEPS - 1]
    result = {
        "tokens_per_second": sum(clock.tokens[WARM_UP_STEPS : len(clock.ends)]) / seconds,
        "losses": clock.losses,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "weights": str(next(trainer.model.parameters()).dtype),
    }
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
