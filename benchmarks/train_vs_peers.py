"""Training compared with its peers on this machine, TRL's SFTTrainer and transformers' Trainer, as ratios.

    python benchmarks/train_vs_peers.py setup
    python benchmarks/train_vs_peers.py run --data a.jsonl.gz --data b.jsonl.gz --write table.md
    python benchmarks/train_vs_peers.py equal --data a.jsonl.gz --data b.jsonl.gz

Every side trains SmolLM2-135M-Instruct for one epoch on the same conversations, rendered and masked by `models/chat`,
with about 2,048 tokens per step; AdamW on float32 weights, with bf16 in the forward and backward passes, or fp32
where the machine multiplies that faster (as `train.precision: auto` chooses). Sides are separate processes and
alternate; figures are medians over `--repeats`.

    trl        SFTTrainer at its defaults, which is bf16 on any machine
    trl-fp32   SFTTrainer at its defaults, but in the faster format; only where that is fp32
    trl-best   SFTTrainer with packing (its padding-free mode), no gradient checkpointing, and our malloc settings
    trainer    Trainer with dynamic padding, grouped by length, and our malloc settings
    us         models/training/fit.py on models/training/deepspeed_engine.py, as in a worker of `rayconteur train`

Utilisation is the share of the machine's matrix-product rate in that format, measured in the same run, that the
model's own products make up: 6 floating-point operations per weight and token (4 with LoRA, whose frozen weights have
no gradient), the head at supervised positions alone, and causal attention.

`equal` trains TRL and us on the same conversations in the same order, and compares the held-out losses of what both
have saved, measured by transformers' own forward pass in float32.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = HERE / ".peers-venv"
SIDES = ("trl", "trl-fp32", "trl-best", "trainer", "us")
BASE_MODEL = "builtin:smollm2-135m-instruct"
CONVERSATIONS_PER_STEP = 8
MAX_LENGTH = 1024


def main() -> None:
    """`setup` or `run`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make the peers' own virtual environment")
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, action="append", required=True, help="conversations; equal shares of each")
    run.add_argument("--steps", type=int, default=10)
    run.add_argument("--repeats", type=int, default=3)
    run.add_argument("--threads", type=int, default=os.cpu_count())
    run.add_argument("--kinds", default="full,lora")
    run.add_argument("--sides", default=",".join(SIDES))
    run.add_argument("--longest", type=int, default=MAX_LENGTH, help="tokens of a conversation")
    run.add_argument("--write", type=Path, help="also write the table to this file")
    equal = commands.add_parser("equal")
    equal.add_argument(
        "--data", type=Path, action="append", required=True, help="conversations; equal shares of each"
    )
    equal.add_argument("--steps", type=int, default=200)
    equal.add_argument("--longest", type=int, default=160, help="tokens of a conversation; one is read a step")
    equal.add_argument("--held-out", type=int, default=60, help="conversations to measure on")
    equal.add_argument("--threads", type=int, default=os.cpu_count())
    equal.add_argument("--kinds", default="full,lora")
    options = parser.parse_args()
    if options.command == "setup":
        setup()
        return
    if not PEERS.is_dir():
        sys.exit(f"there is no {PEERS}; run: python {sys.argv[0]} setup")
    if options.command == "equal":
        print(json.dumps(compare_losses(options)))
        return
    result = run_all(options)
    text = table(result)
    print(text, file=sys.stderr)
    if options.write:
        command = "python " + " ".join(["benchmarks/train_vs_peers.py", *sys.argv[1:]])
        options.write.write_text(f"# Training against its peers\n\n    {command}\n\n{text}\n")
    print(json.dumps(result))


def setup() -> None:
    """The peers and what they need, pinned in peers-constraints.txt."""
    subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
    pip = [PEERS / "bin" / "pip", "install", "--disable-pip-version-check", "-q"]
    pins = HERE / "peers-constraints.txt"
    names = [line.split("==")[0] for line in pins.read_text().splitlines() if line and not line.startswith("#")]
    subprocess.run([*pip, "-c", pins, *names], check=True)


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run every side and kind `repeats` times, alternately."""
    from models.base.load import resolve
    from models.base.precision import faster_precision

    folder = resolve(BASE_MODEL)
    examples = read_examples(options.data, options.steps * CONVERSATIONS_PER_STEP, folder, options.longest)
    precision = faster_precision("cpu")
    kinds, sides = options.kinds.split(","), options.sides.split(",")
    if precision == "bf16":
        sides = [side for side in sides if side != "trl-fp32"]
    runs: dict[str, list[dict[str, Any]]] = {f"{kind} {side}": [] for kind in kinds for side in sides}
    rates = []
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "examples.json"
        data.write_text(json.dumps(examples))
        for repeat, kind, side in itertools.product(range(options.repeats), kinds, sides):
            began = time.monotonic()
            out = one(side, kind, precision, folder, data, options.threads)
            runs[f"{kind} {side}"].append(out)
            rates.append(one("rate", kind, precision, folder, data, options.threads)["gflops"])
            shown = f"{out['tokens_per_second']:.0f} tokens/s, first loss {out['losses'][0]:.3f}"
            took = time.monotonic() - began
            print(
                f"{repeat + 1}/{options.repeats} {kind} {side}: {shown} ({took:.0f} s)", file=sys.stderr, flush=True
            )
    rate = statistics.median(rates)
    needed = {kind: operations_per_token(folder, examples, kind == "lora") for kind in kinds}
    result: dict[str, Any] = {
        "precision": precision, "gflops": round(rate, 1), "threads": options.threads, "sides": {},
    }  # fmt: skip
    for name, found in runs.items():
        speed = statistics.median(run["tokens_per_second"] for run in found)
        result["sides"][name] = {
            "tokens_per_second": round(speed, 1),
            "runs": [round(run["tokens_per_second"], 1) for run in found],
            "utilisation": round(speed * needed[name.split(" ")[0]] / rate / 1e9, 3),
            "peak_gb": round(statistics.median(run["peak_gb"] for run in found), 2),
            "first_loss": round(found[0]["losses"][0], 4),
            "last_loss": round(found[0]["losses"][-1], 4),
        }
    return {**result, "ratios": ratios(result["sides"])}


def compare_losses(options: argparse.Namespace) -> dict[str, Any]:
    """Held-out loss before, and after the same steps by TRL and by us; the difference as a share of TRL's."""
    from models.base.load import resolve
    from models.base.precision import faster_precision

    folder, precision = resolve(BASE_MODEL), faster_precision("cpu")
    examples = read_examples(options.data, options.steps + options.held_out, folder, options.longest)
    result: dict[str, Any] = {"steps": options.steps, "precision": precision}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "examples.json"
        data.write_text(json.dumps(examples[: options.steps]))
        held_out = examples[options.steps :]
        result["held_out_tokens"] = sum(label != -100 for example in held_out for label in example["labels"][1:])
        result["base"] = held_out_loss(folder, folder, held_out)
        for kind in options.kinds.split(","):
            for side in ("trl-fp32" if precision == "fp32" else "trl", "us"):
                saved = Path(name) / f"{kind}-{side}"
                one(side, kind, precision, folder, data, options.threads, saved)
                result[f"{kind} {side[:3]}"] = held_out_loss(folder, saved, held_out)
                print(f"{kind} {side}: {result[f'{kind} {side[:3]}']:.4f}", file=sys.stderr, flush=True)
            theirs = result[f"{kind} trl"]
            result[f"{kind} difference"] = round((result[f"{kind} us"] - theirs) / theirs, 5)
    return result


def held_out_loss(base: Path, saved: Path, examples: list[dict[str, list[int]]]) -> float:
    """Mean cross-entropy in nats of the supervised tokens, one conversation at a time, in float32."""
    import torch

    from models.base import adapters
    from models.base.load import load_model

    is_adapter = adapters.is_adapter(saved)
    model = load_model(base if is_adapter else saved, torch.float32)
    if is_adapter:
        model = adapters.load(model, saved).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for example in examples:
            logits = model(torch.tensor([example["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(example["labels"][1:])
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            count += int((labels != -100).sum())
    return total / count


def one(
    side: str, kind: str, precision: str, folder: Path, data: Path, threads: int, save_to: Path | None = None
) -> dict[str, Any]:
    """Run one side in its own process and environment; with `save_to`, one conversation a step in their order."""
    from workflows.cluster.workers import worker_environment

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    if side not in ("trl", "trl-fp32") or save_to:
        environment |= worker_environment(threads, gpus=0)
    program = HERE / ("train_us.py" if side in ("us", "rate") else "train_peer.py")
    python = sys.executable if side in ("us", "rate") else str(PEERS / "bin" / "python")
    environment["PYTHONPATH"] = str(HERE.parent) if side in ("us", "rate") else ""
    command = [python, program, side, kind, precision, folder, data, str(threads), *([save_to] if save_to else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{side} {kind} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def read_examples(
    files: list[Path], count: int, folder: Path, longest: int = MAX_LENGTH
) -> list[dict[str, list[int]]]:
    """`count` conversations, the same number of each file, as token ids with labels (-100 if not supervised)."""
    from models.base.load import load_tokenizer
    from models.chat import encode_conversation

    tokenizer = load_tokenizer(folder)
    examples = []
    for file in files:
        opener: Any = gzip.open if file.suffix == ".gz" else open
        found = 0
        with opener(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                if found == count // len(files):
                    break
                encoded = encode_conversation(tokenizer, json.loads(line)["messages"])
                if len(encoded.input_ids) > longest:
                    continue
                found += 1
                pairs = zip(encoded.input_ids, encoded.supervised, strict=True)
                labels = [token if supervised else -100 for token, supervised in pairs]
                examples.append({"input_ids": encoded.input_ids, "labels": labels})
    if len(examples) < count // len(files) * len(files):
        sys.exit(f"--data holds {len(examples)} conversations of at most {longest} tokens, and {count} are needed")
    random.Random(0).shuffle(examples)
    return examples


def operations_per_token(folder: Path, examples: list[dict[str, list[int]]], lora: bool) -> float:
    """Floating-point operations of the model's matrix products per token read, forward and backward."""
    import torch

    from models.base.load import load_model
    from models.kernels.flops import StepOperations

    model = load_model(folder, torch.bfloat16).requires_grad_(not lora)
    lengths = [len(example["input_ids"]) for example in examples]
    targets = sum(label != -100 for example in examples for label in example["labels"][1:])
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return StepOperations(model).of(sum(lengths), targets, pairs) / sum(lengths)


def ratios(sides: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Our tokens/s over each peer's, by kind."""
    found = {}
    for name, figures in sides.items():
        kind, side = name.split(" ")
        if side != "us" and f"{kind} us" in sides:
            ours = sides[f"{kind} us"]["tokens_per_second"]
            found[f"{kind} us/{side}"] = round(ours / figures["tokens_per_second"], 2)
    return found


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| | tokens/s | runs | utilisation | peak GB | ours / theirs |", "|---|---|---|---|---|---|"]
    for name, row in result["sides"].items():
        kind, side = name.split(" ")
        ratio = result["ratios"].get(f"{kind} us/{side}", "")
        each = ", ".join(f"{speed:g}" for speed in row["runs"])
        shown = f"{row['tokens_per_second']:g} | {each} | {row['utilisation']:.0%} | {row['peak_gb']:g} | {ratio}"
        lines.append(f"| {name} | {shown} |")
    lines += [
        "",
        f"{result['threads']} threads, {result['precision']} matrix products at {result['gflops']:g} GFLOP/s.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
