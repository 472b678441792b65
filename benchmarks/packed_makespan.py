"""How long 120 packed LoRA trials take on 8 GPUs, by simulated time, against a lower bound of the best schedule.

    python benchmarks/packed_makespan.py                  # with the costs below
    python benchmarks/packed_makespan.py --measure        # measures them first, on this machine

The trials differ in rank (4 to 64), tokens a step (64 to 256) and steps (100 to 1,200). A worker group has one GPU.
What decides is the own code of a search: how many trials share a group (`pack_of`), which group one joins
(`PackedGroups`), which passes share a row (the pack's `_rows`), and that a trial that ends leaves its seat to the
next one. Only time is simulated: a row costs

    pass_seconds + token_seconds * tokens + rank_seconds * sum(rank * tokens of each trial)

and a trial's optimizer step `update_seconds`.

No schedule is shorter than the lower bound: all work in full rows, shared equally by the GPUs, or the longest trial
alone. The results are ratios to it, over seeds that draw the trials: `as_drawn` is a search as it is, `longest_first`
starts the same trials in the order of their length, `not_packed` has one trial on each GPU. The last line is one
JSON object.
"""

import argparse
import heapq
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

from models.training.pack import _rows
from workflows.search.pack import pack_of
from workflows.search.packed_groups import PackedGroups
from workflows.spec import PipelineSpec
from workflows.training.steps import PASS_TOKENS

BASE = "builtin:smollm2-135m-instruct"
TRIALS, GPUS = 120, 8
RANKS, TOKENS, STEPS = (4, 8, 16, 32, 64), (64, 128, 256), (100, 1200)


@dataclass(frozen=True)
class Costs:
    """In seconds."""

    pass_seconds: float
    token_seconds: float
    rank_seconds: float
    update_seconds: float

    def of_row(self, row: Sequence["Member"]) -> float:
        tokens = sum(member.num_tokens for member in row)
        ranked = sum(member.rank * member.num_tokens for member in row)
        return self.pass_seconds + self.token_seconds * tokens + self.rank_seconds * ranked

    def of_step(self, member: "Member", share_of_pass: float) -> float:
        own = self.token_seconds + self.rank_seconds * member.rank
        return share_of_pass * self.pass_seconds + own * member.num_tokens + self.update_seconds


MEASURED = Costs(pass_seconds=0.148, token_seconds=0.00305, rank_seconds=2.04e-6, update_seconds=0.0163)
"""of SmolLM2-135M in seconds of one core's CPU, on a virtual machine with an AMD EPYC, 2026-12-01"""


@dataclass
class Member:
    """A trial; `_rows` asks for its tokens as of a pass."""

    rank: int
    num_tokens: int
    steps: int


def trials_of(seed: int) -> list[Member]:
    """120 settings."""
    draw = random.Random(seed)
    return [Member(draw.choice(RANKS), draw.choice(TOKENS), draw.randint(*STEPS)) for _ in range(TRIALS)]


def pack_size() -> int:
    """What `tune.pack: auto` chooses for these trials."""
    return pack_of(PipelineSpec.model_validate({
        "name": "makespan", "store": "none", "base_model": BASE, "data": {"sources": [{"path": "none"}]},
        "train": {"num_workers": 1},
        "tune": {
            "space": {"train.adapter.rank": list(RANKS), "train.batch_tokens": list(TOKENS)}, "trials": TRIALS,
            "pack": "auto",
        },
    }))  # fmt: skip


def seats_of(pack: int) -> list[int]:
    """The group of each of the first trials, as the actor `PackedGroups` gives seats in groups that have started."""
    groups = PackedGroups.__ray_metadata__.modified_class.__new__(  # type: ignore[attr-defined]
        PackedGroups.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    )
    groups.__init__(None, pack, GPUS)

    def start() -> None:
        number = len(groups._groups)
        workers = SimpleNamespace(is_over=False, have_started=True, seats=[number] * pack)
        groups._groups.append(SimpleNamespace(workers=workers, holders=[None] * pack, is_ready=True, was_used=False))

    groups._start = start
    for _ in range(GPUS):
        start()
    holders = [SimpleNamespace(_actor_id=bytes([number])) for number in range(pack * GPUS)]
    return [groups.take(holder) for holder in holders]


def makespan(trials: Sequence[Member], costs: Costs, pack: int) -> float:
    """Seconds until the last trial ends: each group takes steps of all its members together."""
    coming = [replace(trial) for trial in reversed(trials)]
    members: list[list[Member]] = [[] for _ in range(GPUS)]
    for group in seats_of(pack):
        if coming:
            members[group].append(coming.pop())
    now, events = 0.0, [(0.0, group) for group in range(GPUS)]
    while events:
        now, group = heapq.heappop(events)
        mine = members[group]
        for index in reversed([index for index, member in enumerate(mine) if member.steps == 0]):
            mine.pop(index)
            if coming:
                mine.append(coming.pop())
        if not mine:
            continue
        rows: Any = _rows(mine, PASS_TOKENS)  # type: ignore[arg-type]
        seconds = sum(costs.of_row(row) for row in rows) + costs.update_seconds * len(mine)
        steps = min(member.steps for member in mine)
        for member in mine:
            member.steps -= steps
        heapq.heappush(events, (now + steps * seconds, group))
    return now


def lower_bound(trials: Sequence[Member], costs: Costs) -> float:
    """No schedule is shorter."""
    full = sum(trial.steps * costs.of_step(trial, trial.num_tokens / PASS_TOKENS) for trial in trials)
    return max(full / GPUS, max(trial.steps * costs.of_step(trial, 1.0) for trial in trials))


def measured() -> Costs:
    """Fit the costs to passes of packs on one core of this machine, in seconds of CPU, which other programs do not
    lengthen.
    """
    import numpy as np
    import torch

    from models.base import adapters
    from models.base.load import load_model, resolve
    from models.base.precision import dtype_of, faster_precision
    from models.base.reuse import BaseModels
    from models.kernels.attention import PACKED_ATTENTION
    from models.objectives.sft import Sft
    from models.packing import pack as packed
    from models.training.pack import Pack, PackedEngine, PackedSettings

    dtype = dtype_of(faster_precision("cpu"))
    torch.set_num_threads(1)
    shared, bases = Pack(load_model(resolve(BASE), dtype, PACKED_ATTENTION), max_tokens=PASS_TOKENS), BaseModels()
    rows, seconds, updates = [], [], []
    for rank in (4, 64):
        base = bases.model(resolve(BASE), dtype, PACKED_ATTENTION, stays=True)
        model = adapters.attach(base, rank, 32.0, 0.0, "all-linear", base=BASE)
        engine = PackedEngine(shared, model, Sft(), PackedSettings(0.0, 1.0, 0))
        for tokens in (64, 256, 1024):
            ids = [(17 * place) % 40_000 + 100 for place in range(tokens)]
            batch = packed([(ids, [True] * tokens)])
            took = []
            with shared.member():
                for _ in range(4):
                    began = time.process_time()
                    engine.accumulate(batch, 100)
                    between = time.process_time()
                    engine.update(1e-4)
                    took.append((between - began, time.process_time() - between))
            rows.append([1.0, tokens, rank * tokens])
            seconds.append(statistics.median(one for one, _ in took[1:]))
            updates.append(statistics.median(other for _, other in took[1:]))
            print(
                f"rank {rank}, {tokens} tokens: {1000 * seconds[-1]:.1f} ms, update {1000 * updates[-1]:.1f} ms",
                flush=True,
            )
    shared.close()
    weights = np.array(rows) / np.array(seconds)[:, None]  # relative errors count
    found, *_ = np.linalg.lstsq(weights, np.ones(len(rows)), rcond=None)
    return Costs(*(max(0.0, float(cost)) for cost in found), statistics.median(updates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--seeds", type=int, default=50)
    options = parser.parse_args()
    costs, pack = measured() if options.measure else MEASURED, pack_size()
    ratios: dict[str, list[float]] = {"as_drawn": [], "longest_first": [], "not_packed": []}
    for seed in range(options.seeds):
        trials = trials_of(seed)
        bound = lower_bound(trials, costs)
        longest = sorted(trials, key=lambda trial: -trial.steps * costs.of_step(trial, 1.0))
        ratios["as_drawn"].append(makespan(trials, costs, pack) / bound)
        ratios["longest_first"].append(makespan(longest, costs, pack) / bound)
        ratios["not_packed"].append(makespan(trials, costs, 1) / bound)
    output: dict[str, Any] = {"trials": TRIALS, "gpus": GPUS, "pack": pack, "costs": asdict(costs)}
    for name, found in ratios.items():
        output[name] = {"median": round(statistics.median(found), 3), "most": round(max(found), 3)}
        print(f"{name}: {output[name]['median']} times the lower bound, at most {output[name]['most']}")
    print(json.dumps(output))


if __name__ == "__main__":
    main()
