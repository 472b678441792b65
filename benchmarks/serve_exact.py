"""Greedy replies of the engines compared with transformers' `generate`, token by token, in strict float32.

    python benchmarks/serve_exact.py

SmolLM2: 20 prompts one by one, then 32 at once, on `openvino` and `torch`; and three LoRA adapters mixed in one batch
on `torch`, each compared with PEFT. The adapters have random weights: they need not be good, only different.
"""

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.base.load import load_model, load_tokenizer, resolve
from models.chat import encode_prompt
from models.export.openvino_export import export
from serve.engines.base import Engine, GenerationRequest
from serve.engines.openvino import OpenVINOEngine
from serve.engines.torch import TorchEngine

SUBJECTS = ("rivers", "bread", "a lighthouse", "the moon", "a letter", "tin cans", "chess", "snow")
ASKED = ("Tell me about {}.", "Write two sentences on {}.", "Why is there {}?", "Translate into French: {}.")


def prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Prompts of 30 to 300 tokens."""
    draw = random.Random(0)
    found = []
    for number in range(count):
        words = " ".join(draw.choice(SUBJECTS) for _ in range(draw.randrange(1, 60)))
        text = ASKED[number % len(ASKED)].format(words)
        found.append(encode_prompt(tokenizer, [{"role": "user", "content": text}]))
    return found


def generated(model: Any, prompt_ids: list[int], num_tokens: int) -> list[int]:
    model.generation_config.eos_token_id = None
    tokens = torch.tensor([prompt_ids])
    mask = torch.ones_like(tokens)
    out = model.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False)
    found: list[int] = out[0, len(prompt_ids) :].tolist()
    return found


def replies(engine: Engine, requests: Sequence[GenerationRequest]) -> list[list[int]]:
    async def reply(request: GenerationRequest) -> list[int]:
        return [event.token_id async for event in engine.submit(request)]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(reply(request) for request in requests))

    return asyncio.run(all_of_them())


def equal(found: list[list[int]], expected: list[list[int]]) -> str:
    """How many replies are equal, and the first token at which another one differs."""
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    text = f"{same} of {len(expected)}"
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one != other:
            place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), -1)
            return f"{text}; reply {number} differs at token {place}"
    return text


def adapter(base: Path, folder: Path, seed: int) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=4 * seed, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(load_model(base, torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32)
    num_tokens = parser.parse_args().tokens
    base = resolve("builtin:smollm2-135m-instruct")
    asked = prompts(load_tokenizer(base), 32)
    model = load_model(base, torch.float32)
    expected = [generated(model, prompt_ids, num_tokens) for prompt_ids in asked]
    requests = [GenerationRequest(prompt_ids, num_tokens, temperature=0) for prompt_ids in asked]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        export(base, Path(name) / "export", "fp32")
        folders = {f"adapter {seed}": adapter(base, Path(name) / str(seed), seed) for seed in (1, 2, 3)}
        engines: dict[str, Any] = {
            "openvino": lambda: OpenVINOEngine(Path(name) / "export", "fp32", 32, 2),
            "torch": lambda: TorchEngine(base, "fp32", 32, 2, adapters=folders),
        }
        for kind, make in engines.items():
            engine = make()
            alone = [found for request in requests[:20] for found in replies(engine, [request])]
            figures[f"{kind} alone"] = equal(alone, expected[:20])
            figures[f"{kind} 32 at once"] = equal(replies(engine, requests), expected)
            if kind == "torch":
                mixed = [
                    GenerationRequest(
                        request.prompt_ids, num_tokens, temperature=0, adapter=list(folders)[number % 3]
                    )
                    for number, request in enumerate(requests[:12])
                ]
                figures["torch, three adapters mixed"] = equal(
                    replies(engine, mixed), [by_peft(base, folders, request) for request in mixed]
                )
            engine.close()
            print(json.dumps(figures), flush=True)
    print(json.dumps(figures))


def by_peft(base: Path, folders: dict[str, Path], request: GenerationRequest) -> list[int]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_model(base, torch.float32), folders[str(request.adapter)])
    return generated(model, request.prompt_ids, request.max_new_tokens)


if __name__ == "__main__":
    main()
