"""Whether a step's gradient depends on the number of passes that are summed.

    python benchmarks/gradient_passes.py [--passes 1 64 1024]

Computes the same gradient in different numbers of passes, each an equal part of it, and compares the norms that
DeepSpeed reports, by ZeRO stage, precision and trained weights. The model is a tiny Llama. The last line is one JSON
object: the largest relative difference of a norm from that of one pass.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from models.base import adapters
from models.base.load import load_model, resolve
from models.base.precision import dtype_of
from models.kernels.attention import PACKED_ATTENTION
from models.objectives.sft import Sft
from models.packing import pack
from models.training.deepspeed_config import DeepSpeedSettings
from models.training.deepspeed_engine import DeepSpeedEngine


def cases() -> Iterator[dict[str, Any]]:
    """Changes to a full training in float32 at stage 0."""
    for precision in ("fp32", "bf16"):
        for stage in range(4):
            for trained in ("full", "lora", "frozen"):
                yield {"trained": trained, "zero_stage": stage, "precision": precision}
            if stage:
                yield {"trained": "full", "zero_stage": stage, "precision": precision, "offload": "cpu"}


def engine_of(trained: str, precision: str, **options: Any) -> DeepSpeedEngine:
    torch.manual_seed(0)
    model = load_model(resolve("random:tiny-llama"), dtype_of(precision), PACKED_ATTENTION)
    if trained == "lora":
        model = adapters.attach(model, 4, 8, 0.0, "all-linear", "base")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # at its initial value, 0, the other factor has no gradient
                torch.nn.init.normal_(parameter, std=0.1)
    elif trained == "frozen":
        adapters.freeze(model, ["model.embed_tokens.*", "model.layers.0.*"])
    return DeepSpeedEngine(model, Sft(), DeepSpeedSettings(precision=precision, gradient_clip=1.0, **options), 0.0)


def norm_of(engine: DeepSpeedEngine, passes: int) -> float:
    """The norm of the same gradient for each number of passes. The learning rate is 0, so the weights stay."""
    batch = pack([(list(range(5, 45)), [True] * 40)]).to(engine.device)
    for number in range(passes):
        engine.accumulate(batch, batch.weight * passes, number == passes - 1)
    return engine.update(0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 64, 1024])
    counts: list[int] = parser.parse_args().passes
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        torch.distributed.init_process_group("gloo", init_method=f"file://{Path(name) / 'rendezvous'}", rank=0,
                                             world_size=1)  # fmt: skip
        worst = 0.0
        print("precision  stage  trained  offload  " + "  ".join(f"{count:>5} passes" for count in counts))
        for case in cases():
            engine, began = engine_of(**case), time.monotonic()
            norms = [norm_of(engine, count) for count in counts]
            engine.close()
            worst = max(worst, *(abs(norm / norms[0] - 1) for norm in norms))
            print(
                f"{case['precision']:<9}  {case['zero_stage']:<5}  {case['trained']:<7}  "
                f"{case.get('offload', '-'):<7}  " + "  ".join(f"{norm:12.6f}" for norm in norms)
                + f"  {time.monotonic() - began:.1f} s",
                flush=True,
            )  # fmt: skip
        print(json.dumps({"largest_difference": worst}))


if __name__ == "__main__":
    main()
