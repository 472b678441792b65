"""How the architectures of transformers compute packed conversations: docs/architectures.md.

    python benchmarks/architectures.py              # tests all of them and writes the table
    python benchmarks/architectures.py --speed      # the time of a step in each of the three ways

Makes a small random model of each architecture from transformers' configuration class, and checks it as every base
model is checked before training (models/base/packing_check.py). tests/unit/test_architectures.py compares with the
table.
"""

import importlib.metadata
import logging
import random
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from models.base.load import BUILTIN_SMOLLM2, load_model, resolve
from models.base.packing_check import CannotBeTrained, check_text, try_out
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.rows import How, read_in_rows
from models.objectives.sft import Sft
from models.packing import pack
from models.training.engine import TorchEngine

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
LSTM = "rayconteur-lstm"
REFUSED = "refused"

_MIXED = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]}
_DECODER = {"is_decoder": True}
# Values that transformers' defaults lack, or that published models set differently.
SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "big_bird", "camembert", "electra", "ernie", "megatron-bert", "rembert"), _DECODER),
    **dict.fromkeys(
        ("roberta", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "bert-generation"), _DECODER
    ),
    **dict.fromkeys(("data2vec-text", "roberta-prelayernorm"), _DECODER),
    "deepseek_v2": {"num_experts_per_tok": 6, "n_group": 1, "topk_group": 1},
    "dots1": {"moe_intermediate_size": 1408, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 4, "moe_topk": 2},
    "lfm2": _MIXED,
    "lfm2_moe": _MIXED,
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "phi3": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True},
}


def config_of(name: str) -> Any:
    """The configuration to test."""
    if name == LSTM:
        import models.base.lstm  # noqa: F401  # known to transformers from here on

    return AutoConfig.for_model(name, **SETTINGS.get(name, {}))


def outcome(name: str) -> tuple[str, str]:
    """`packed`, `padded`, `alone` or `refused`, and why."""
    try:
        config = config_of(name)
    except Exception as error:  # any exception, since it is the architecture's own code
        return REFUSED, f"transformers' own defaults are none: {type(error).__name__}"
    try:
        check_text(config)
        reading = try_out(config)
    except CannotBeTrained as error:
        return REFUSED, str(error).removeprefix("base_model: ")
    return reading.how, reading.why


def table() -> dict[str, str]:
    """The outcome that docs/architectures.md has for each model_type."""
    rows = (line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `"))
    return {row[1].strip().strip("`"): row[2].strip() for row in rows}


def speed() -> None:
    """CPU seconds of a step of SmolLM2 over 2,048 tokens of conversations, half of them supervised; one thread."""
    torch.set_num_threads(1)
    draw = random.Random(0)
    lengths = [40 + draw.randrange(360) for _ in range(9)]
    rows = [([draw.randrange(40_000) for _ in range(n)], [place % 2 == 0 for place in range(n)]) for n in lengths]
    engines: dict[How, TorchEngine] = {}
    for how in ("packed", "padded", "alone"):
        model = load_model(resolve(BUILTIN_SMOLLM2), torch.float32, PACKED_ATTENTION if how == "packed" else None)
        if how != "packed":
            read_in_rows(model, how)
        engines[how] = TorchEngine(model, Sft())
    seconds: dict[How, list[float]] = {how: [] for how in engines}
    batch = pack(rows)
    for _ in range(4):
        for how, engine in engines.items():
            began = time.process_time()
            engine.accumulate(batch, batch.weight)
            seconds[how].append(time.process_time() - began)
            engine.skip()
    for how, times in seconds.items():
        median, packed = statistics.median(times[1:]), statistics.median(seconds["packed"][1:])
        print(f"{how}: {median:.2f} s for {sum(lengths):,} tokens, {median / packed:.2f} times packed")


def main() -> None:
    if "--speed" in sys.argv:
        speed()
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    rows = []
    for name in sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, LSTM]):
        how, why = outcome(name)
        rows.append((name, how, why))
        print(f"{name:26} {how:8} {why}", flush=True)
    counts = {how: sum(row[1] == how for row in rows) for how in ("packed", "padded", "alone", REFUSED)}
    text = PAGE.read_text() if PAGE.is_file() else "# Architectures\n\n<!-- table -->\n"
    before = text.split("<!-- table -->")[0]
    head = (
        f"transformers {importlib.metadata.version('transformers')}, torch {importlib.metadata.version('torch')}: "
        + ", ".join(f"{count} {how}" for how, count in counts.items())
    )
    lines = [f"| `{name}` | {how} | {why.replace('|', '/')} |" for name, how, why in rows]
    table = "\n".join([head, "", "| model_type | conversations are | why not packed |", "|---|---|---|", *lines])
    PAGE.write_text(f"{before}<!-- table -->\n\n{table}\n")


if __name__ == "__main__":
    main()
