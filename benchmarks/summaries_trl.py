"""TRL's side of summaries.py: run in the peers' virtual environment."""

import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main(settings_json: str, data: str, merged: str) -> None:
    """Train one epoch in that many steps, and save the model with the adapter merged."""
    settings = json.loads(settings_json)
    examples = json.loads(Path(data).read_text())
    torch.manual_seed(0)
    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out,
            use_cpu=True,
            bf16=True,
            num_train_epochs=1,
            max_steps=settings["steps"],
            per_device_train_batch_size=math.ceil(len(examples) / settings["steps"]),
            learning_rate=settings["learning_rate"],
            warmup_steps=math.ceil(0.05 * settings["steps"]),
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=10,
            report_to=[],
            disable_tqdm=True,
        )
        rank = settings["rank"]
        lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        model = AutoModelForCausalLM.from_pretrained(settings["base"], dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(settings["base"])
        rows = Dataset.from_list(examples)
        trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
        trainer.train()
        trainer.model.merge_and_unload().save_pretrained(merged)
        tokenizer.save_pretrained(merged)


if __name__ == "__main__":
    main(*sys.argv[1:])
