"""The best learning rate by rank, by width, and for all weights, with each scaling of LoRA.

    python benchmarks/learning_rates.py --before chitchat.jsonl.gz --data sgd.jsonl.gz --folder DIR
        [--parts ranks,widths,smollm2] [--figure docs/learning_rates.svg]

Methods `lora` and `rslora` (alpha 32), `mua`, and all weights (`full`). Each training is one cosine over the same
conversations; what counts is its last held-out loss. A sweep begins at a rate of a grid with steps of a factor 2, and
goes on until the best rate has a worse one on both sides; the vertex of the parabola through these three, over the
logarithm of the rate, is the best rate.

    ranks    ranks 4 to 128 on a Llama of width 128, trained before on the conversations of --before
    widths   such models of widths 64 and 128, rank 16
    smollm2  ranks 4, 32 and 128 of SmolLM2-135M-Instruct

DIR keeps the models and, in `trainings.jsonl`, every training: the same command goes on where it was interrupted. The
last line is one JSON object.
"""

import argparse
import gzip
import itertools
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from models.base import adapters
from models.base.load import load_model, load_tokenizer, resolve
from models.base.precision import dtype_of
from models.base.reuse import BaseModels
from models.chat import encode_conversation
from models.kernels.attention import PACKED_ATTENTION
from models.objectives.sft import Sft
from models.packing import StepPlan
from models.training.engine import TorchEngine, TrainingEngine
from models.training.fit import FitCallbacks, FitSettings, HeldOut, fit, held_out_batches
from models.training.report import Report
from workflows.search.records import FINISHED, Search, Trial
from workflows.search.region import region_of
from workflows.spec.train import AdapterSpec

SMOLLM2 = "builtin:smollm2-135m-instruct"
SMOLLM2_WIDTH = 576
TINY = "random:tiny-llama"
RANKS = (4, 8, 16, 32, 64, 128)
FEW_RANKS = (4, 32, 128)
WIDTHS = (64, 128)
METHODS = ("mua", "lora", "rslora")
MIDDLE_RANK = 16
FIRST_GUESS = {"lora": 2**-7, "rslora": 2**-8, "mua": 2**-6, "full": 2**-8}
"""where sweeps begin"""

RATE = "train.learning_rate"
PROXY_SEARCHES, PROXY_TRIALS = 1000, 16
LOWEST, HIGHEST = 1e-4, 1e-1
"""of the rates that the proxy searches draw"""

Row = dict[str, list[Any]]


@dataclass(frozen=True)
class Setting:
    """How trainings of a model are done."""

    steps: int
    step_tokens: int
    max_length: int
    held_out_tokens: int
    seeds: int
    precision: str = "fp32"


SMALL = Setting(steps=80, step_tokens=512, max_length=256, held_out_tokens=8192, seeds=2)
LARGE = Setting(steps=20, step_tokens=256, max_length=256, held_out_tokens=2048, seeds=1, precision="bf16")
PRETRAINING = Setting(steps=400, step_tokens=2048, max_length=512, held_out_tokens=4096, seeds=1)


@dataclass(frozen=True)
class Case:
    """What has a best learning rate."""

    model: str
    """`width N`, or `smollm2`"""
    method: str
    rank: int
    """0 for all weights"""


def read_rows(file: Path, model: Any, setting: Setting) -> list[Row]:
    """Conversations as tokens, in the order of the file: the held-out ones, then those to train on."""
    tokenizer = load_tokenizer(model)
    rows, most = list[Row](), setting.held_out_tokens + 2 * setting.steps * setting.step_tokens
    with gzip.open(file, "rt") as lines:
        for line in itertools.islice(lines, 0, None, 7):  # neighbours in a file are alike
            encoded = encode_conversation(tokenizer, json.loads(line)["messages"], max_length=setting.max_length)
            if sum(encoded.supervised[1:]):
                rows.append({"input_ids": encoded.input_ids, "supervised": encoded.supervised})
                if sum(len(row["input_ids"]) for row in rows) > most:
                    break
    return rows


def trained(engine: TrainingEngine, rows: Sequence[Row], setting: Setting, rate: float, seed: int) -> float:
    """The held-out loss after a training; infinity if it is not finite."""
    objective = Sft()
    tokens, held_out = 0, list[Row]()
    for row in rows:
        if tokens > setting.held_out_tokens:
            break
        held_out.append(row)
        tokens += len(row["input_ids"])
    own = rows[len(held_out) :]
    plan = StepPlan(
        [len(row["input_ids"]) for row in own], [sum(row["supervised"][1:]) for row in own], setting.step_tokens, 1,
        1, seed=seed,
    )  # fmt: skip
    measured = [{**row, "num_tokens": len(row["input_ids"])} for row in held_out]
    batches = [*held_out_batches(measured, 2048, 0, 1, objective.batch)]
    found: list[float] = []

    def checkpoint(report: Report, seconds: list[float]) -> None:
        found.append(report.figures["held_out_loss"])

    settings = FitSettings(setting.steps, rate, 0.1, 0.1, setting.steps, max_skipped_steps=setting.steps)
    fit(
        engine, plan, lambda numbers: objective.batch([own[number] for number in numbers]), settings,
        HeldOut(batches), FitCallbacks(lambda progress: None, checkpoint),
    )  # fmt: skip
    return found[-1] if math.isfinite(found[-1]) else math.inf


class Trainings:
    """All trainings, kept in a file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._file: Path = options.folder / "trainings.jsonl"
        self._known = {tuple(row[:5]): row[5] for row in self._read()}
        self._bases = BaseModels()

    def _read(self) -> Iterator[list[Any]]:
        if self._file.is_file():
            for line in self._file.read_text().splitlines():
                yield json.loads(line)

    def loss(self, case: Case, rate: float) -> float:
        """The mean over the seeds."""
        seeds = setting_of(case).seeds
        return statistics.fmean(self._of_seed(case, rate, seed) for seed in range(seeds))

    def _of_seed(self, case: Case, rate: float, seed: int) -> float:
        key = (case.model, case.method, case.rank, rate, seed)
        if key not in self._known:
            began = time.monotonic()
            loss = self._train(case, rate, seed)
            self._known[key] = loss if math.isfinite(loss) else math.inf
            with self._file.open("a") as file:
                file.write(json.dumps([*key, loss, round(time.monotonic() - began, 1)]) + "\n")
            print(f"  {case.model}, {case.method}, rank {case.rank}, {rate:.2e}, seed {seed}: {loss:.4f}", flush=True)
        return self._known[key]

    def _train(self, case: Case, rate: float, seed: int) -> float:
        folder, setting = self.folder(case.model), setting_of(case)
        model = self._bases.model(folder, dtype_of(setting.precision), PACKED_ATTENTION, stays=case.rank > 0)
        torch.manual_seed(seed)
        if case.rank:
            model = adapters.attach(model, **adapter_of(case).arguments(), base=str(folder))
        return trained(TorchEngine(model, Sft()), self._rows(case.model), setting, rate, seed)

    @cache  # noqa: B019  # one object in the program
    def _rows(self, model: str) -> list[Row]:
        return read_rows(self._options.data, self.folder(model), LARGE if model == "smollm2" else SMALL)

    def folder(self, model: str) -> Path:
        """The base model; those of a width are made, and trained before, on first use."""
        if model == "smollm2":
            return resolve(SMOLLM2)
        folder: Path = self._options.folder / model.replace(" ", "-")
        if not (folder / "config.json").is_file():
            pretrain(self._options.before, int(model.split()[1]), folder)
        return folder


def adapter_of(case: Case) -> AdapterSpec:
    return AdapterSpec(method=case.method, rank=case.rank)  # type: ignore[arg-type]


def setting_of(case: Case) -> Setting:
    return LARGE if case.model == "smollm2" else SMALL


def pretrain(file: Path, width: int, folder: Path) -> None:
    """A Llama like `random:tiny-llama` of another width, trained with a rate that falls with the width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(resolve(TINY))
    config.hidden_size, config.intermediate_size = width, 2 * width
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = width // 16, width // 32, 16
    with tempfile.TemporaryDirectory() as name:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(name)
        load_tokenizer(resolve(TINY)).save_pretrained(name)
        rows = read_rows(file, name, PRETRAINING)
        model = load_model(name, torch.float32, PACKED_ATTENTION)
        loss = trained(TorchEngine(model, Sft()), rows, PRETRAINING, 4e-3 * (64 / width) ** 0.5, seed=0)
        print(f"  width {width}, trained before: {loss:.4f}", flush=True)
        model.save_pretrained(folder)
        load_tokenizer(resolve(TINY)).save_pretrained(folder)


def sweep(trainings: Trainings, case: Case, guess: float) -> dict[float, float]:
    """Losses by rate, until the best rate has a worse one on both sides."""
    at = round(math.log2(guess))
    losses = {at: trainings.loss(case, 2.0**at)}
    while True:
        best = min(losses, key=lambda place: losses[place])
        missing = [place for place in (best - 1, best + 1) if place not in losses]
        if not missing:
            return {2.0**place: losses[place] for place in sorted(losses)}
        losses[missing[0]] = trainings.loss(case, 2.0 ** missing[0])


def best_of(losses: dict[float, float]) -> float:
    """The vertex of the parabola through the best rate and its neighbours."""
    rate = min(losses, key=lambda each: losses[each])
    low, middle, high = losses[rate / 2], losses[rate], losses[rate * 2]
    if not math.isfinite(high):
        high = middle + 4 * (low - middle)
    return float(rate * 2.0 ** (0.5 * (low - high) / (low - 2 * middle + high)))


def regions(losses: dict[float, float]) -> Iterator[tuple[float, float]]:
    """The regions that `tune.proxy` would take from random searches on a model with these losses by rate: between
    measured rates, the loss is interpolated over the logarithm, and it goes on straight beyond them.
    """
    for seed in range(PROXY_SEARCHES):
        draw = random.Random(seed)
        rates = [LOWEST * (HIGHEST / LOWEST) ** draw.random() for _ in range(PROXY_TRIALS)]
        reports = [Report(1, 1, {"held_out_loss": between(losses, rate)}) for rate in rates]
        trials = [
            Trial(number, str(number), {RATE: rate}, FINISHED, [report])
            for number, (rate, report) in enumerate(zip(rates, reports, strict=True))
        ]
        space = {RATE: {"loguniform": [LOWEST, HIGHEST]}}
        search = Search("", "", ["held_out_loss"], space, "random", "none", PROXY_TRIALS, trials)
        low, high = region_of(search, best_share=0.25).space[RATE]["loguniform"]
        yield low, high


def between(losses: dict[float, float], rate: float) -> float:
    """The loss at a rate."""
    places = [(math.log(each), loss) for each, loss in sorted(losses.items()) if math.isfinite(loss)]
    at = math.log(rate)
    right = next((index for index, (place, _) in enumerate(places) if place > at), len(places) - 1)
    (x, y), (next_x, next_y) = places[max(0, right - 1)], places[max(1, right)]
    return y + (next_y - y) / (next_x - x) * (at - x)


def share_held(small: dict[float, float], best: float, factor: float) -> float:
    """The share of a small model's regions, with rates times `factor`, that hold the best rate of a large one."""
    return statistics.fmean(low * factor <= best <= high * factor for low, high in regions(small))


@dataclass(frozen=True)
class Found:
    """A case, its best rate, and what was measured."""

    case: Case
    rate: float
    loss: float
    losses: dict[float, float]


def find_all(trainings: Trainings, cases: Sequence[Case]) -> list[Found]:
    """The best rate of each case; a sweep begins at that of the case before with the same method."""
    guesses, found = dict(FIRST_GUESS), []
    for case in cases:
        losses = sweep(trainings, case, guesses[case.method])
        guesses[case.method] = best_of(losses)
        found.append(Found(case, best_of(losses), min(losses.values()), losses))
        print(f"{case.model}, {case.method}, rank {case.rank}: best rate {found[-1].rate:.2e}", flush=True)
    return found


def cases_of(part: str) -> list[Case]:
    if part == "widths":
        kinds = [("lora", MIDDLE_RANK), ("mua", MIDDLE_RANK), ("full", 0)]
        return [Case(f"width {width}", method, rank) for method, rank in kinds for width in WIDTHS]
    model, ranks = ("width 128", RANKS) if part == "ranks" else ("smollm2", FEW_RANKS)
    all_weights = [Case(model, "full", 0)] if part == "ranks" else []
    return [*all_weights, *(Case(model, method, rank) for method in METHODS for rank in ranks)]


def summary(part: str, found: Sequence[Found]) -> dict[str, Any]:
    """Of each method: the best rate and its loss by rank or width, and the largest best rate by the smallest."""
    rows: dict[str, Any] = {}
    for method in dict.fromkeys(each.case.method for each in found):
        own = [each for each in found if each.case.method == method]
        at = [width_of(each.case.model) if part == "widths" else each.case.rank for each in own]
        rates = [each.rate for each in own]
        rows[method] = {
            "best_rates": {place: float(f"{rate:.3g}") for place, rate in zip(at, rates, strict=True)},
            "losses": {place: round(each.loss, 4) for place, each in zip(at, own, strict=True)},
            "spread": round(max(rates) / min(rates), 2),
        }
    return rows


def width_of(model: str) -> int:
    return SMOLLM2_WIDTH if model == "smollm2" else int(model.split()[1])


def transfers(found: Sequence[Found]) -> list[dict[str, Any]]:
    """From each model to each wider one, with the same method and rank: how far the best rate moves, and how many of
    1,000 proxy searches have a region that holds the best rate of the wider model: with rates as they are, divided by
    the square root of the ratio of widths, and divided by this ratio.
    """
    rows = []
    for small, large in itertools.permutations({each.case: each for each in found}.values(), 2):
        ratio = width_of(large.case.model) / width_of(small.case.model)
        if ratio > 1 and (small.case.method, small.case.rank) == (large.case.method, large.case.rank):
            held = {power: share_held(small.losses, large.rate, ratio**-power) for power in (0.0, 0.5, 1.0)}
            rows.append({
                "from": small.case.model, "to": large.case.model,
                "method": small.case.method, "rank": small.case.rank,
                "exponent": round(math.log(large.rate / small.rate) / math.log(ratio), 2), "held": held,
            })  # fmt: skip
    return rows


def draw(found: dict[str, list[Found]], file: Path) -> None:
    """The best rates by rank and by width, as an SVG."""
    from plotly.subplots import make_subplots
    from search_replay import svg_of

    titles = {"ranks": "Llama of width 128", "smollm2": "SmolLM2-135M", "widths": "Llamas, rank 16"}
    figure = make_subplots(1, len(found), subplot_titles=[titles[part] for part in found])
    figure.update_layout(template="simple_white", width=860, height=480)
    colors = {"lora": "#1f77b4", "rslora": "#ff7f0e", "mua": "#2ca02c", "full": "#555555"}
    shown = set()
    for column, (part, each) in enumerate(found.items(), 1):
        for method, color in colors.items():
            own = [one for one in each if one.case.method == method]
            x = [int(one.case.model.split()[1]) if part == "widths" else one.case.rank for one in own]
            y = [one.rate for one in own]
            if part != "widths" and method == "full" and own:  # a line at the height of the one value
                x, y = [RANKS[0], RANKS[-1]], [y[0], y[0]]
            if own:
                figure.add_scatter(
                    x=x, y=y, name=method, legendgroup=method, showlegend=method not in shown, row=1, col=column,
                    mode="lines+markers", line={"color": color, "dash": "dot" if method == "full" else "solid"},
                )  # fmt: skip
                shown.add(method)
        name = "width" if part == "widths" else "rank"
        figure.update_xaxes(title=name, type="log", dtick=math.log10(2), tickformat="d", row=1, col=column)
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_yaxes(title="best learning rate", row=1, col=1)
    file.write_text(svg_of(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parts", default="ranks,widths,smollm2")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        rendezvous = f"file://{Path(name) / 'rendezvous'}"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
        trainings = Trainings(options)
        found = {part: find_all(trainings, cases_of(part)) for part in options.parts.split(",")}
    if options.figure:
        draw(found, options.figure)
    output: dict[str, Any] = {part: summary(part, each) for part, each in found.items()}
    for part, rows in output.items():
        for method, row in rows.items():
            print(f"{part:8} {method:8} {row}")
    output["transfers"] = transfers([one for each in found.values() for one in each])
    print(*output["transfers"], sep="\n")
    output["settings"] = {"small": asdict(SMALL), "smollm2": asdict(LARGE), "before": asdict(PRETRAINING)}
    print(json.dumps(output))


if __name__ == "__main__":
    main()
