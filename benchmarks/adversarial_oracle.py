"""The adversarial pair where the truth is known: the data are sampled from an LSTM with random weights, the oracle
(Yu et al. 2017, arXiv:1609.05473, section 4.1).

    python benchmarks/adversarial_oracle.py --seeds 0,1,2,3,4
    python benchmarks/adversarial_oracle.py --published --seeds 44,52

For each seed: a generator too small for the oracle trains by likelihood to its plateau. A discriminator, pretrained
by likelihood on the same sequences, learns to tell its sequences from the oracle's; then both train alternately. For
comparison, likelihood training continues for the same CPU time.

nll_test: nats per token of the oracle's held-out sequences under the model (does it cover all of them?). nll_oracle:
of the model's sequences under the oracle (are its sequences good?). A temperature trades one for the other, so
neither is meaningful alone. `reranked` is the pair as one model, p(y) exp(D(y)) / Z (a residual energy-based model,
Deng et al. 2020, arXiv:2004.11714): log Z is estimated by the mean of exp(D) over sequences of the generator, which
is biased low and so favours this model a little; nll_oracle is of sequences chosen among 16 by the softmax of D.

With --published, the sizes are those of the papers (5,000 tokens, both LSTMs of 32 units, 10,000 sequences), and
every model is measured at several temperatures: nll_oracle at equal nll_test, beside the frontier that Caccia et al.
2020 (arXiv:1811.02549) published for likelihood training with a temperature. Among random oracles, seeds 44 and 52
have about the entropy of the published one, 5.75 nats per token.

The last line is one JSON object.
"""

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from models.base.discriminator import Discriminator
from models.base.lstm import LstmConfig, LstmForCausalLM
from models.exchange import Exchange
from models.generation import drawn_replies
from models.kernels.attention import PACKED_ATTENTION
from models.kernels.loss import log_probabilities
from models.objectives.adversarial import Discriminate, Generate
from models.packing import pack
from models.training.adversarial import AdversarialSettings, AdversarialTrainer, Part
from models.training.engine import TorchEngine

START = 0
Sequences = list[list[int]]


@dataclass(frozen=True)
class Sizes:
    vocabulary: int
    length: int
    oracle: int
    generator: int
    discriminator: int
    sequences: int
    batch: int = 128
    rate: float = 0.01
    measured: int = 10_000
    """number of held-out and of sampled sequences"""
    temperatures: tuple[float, ...] = (1.0,)


SMALL = Sizes(vocabulary=500, length=20, oracle=32, generator=8, discriminator=64, sequences=12_000)
PUBLISHED = Sizes(
    vocabulary=5000, length=20, oracle=32, generator=32, discriminator=64, sequences=10_000, batch=64, rate=0.005,
    measured=3200, temperatures=(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
)  # fmt: skip
FRONTIER = {7.7: 9.05, 7.8: 8.73, 8.0: 8.24, 8.5: 7.15, 9.0: 6.36}
"""published nll_oracle by nll_test"""
CHOSEN_AMONG = 16
READING_EPOCHS, WARMUP_STEPS, WARMUP_PARTS = 12, 600, 5


def lstm(vocabulary: int, size: int, seed: int) -> Any:
    torch.manual_seed(seed)
    model = LstmForCausalLM(LstmConfig(vocab_size=vocabulary, hidden_size=size))
    model.set_attn_implementation(PACKED_ATTENTION)
    return model.eval()


def oracle_of(sizes: Sizes, seed: int) -> Any:
    """All parameters sampled from N(0, 1), with one bias for each gate."""
    model = lstm(sizes.vocabulary, sizes.oracle, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        for name, parameter in model.named_parameters():
            parameter.data.zero_() if "bias_hh" in name else parameter.data.normal_()
    return model


def drawn(model: Any, sizes: Sizes, count: int, seed: int, temperature: float = 1.0) -> Sequences:
    """Sequences sampled from the model, without the start token."""
    found: Sequences = []
    for number in range(-(-count // 1000)):
        prompts, seeds = [[START]], [(seed, number)]
        found += drawn_replies(model, prompts, 1000, sizes.length, [sizes.vocabulary], seeds, temperature)[0]
    return found[:count]


def tempered(model: Any, temperature: float) -> Any:
    """A model whose likelihoods are those of sampling at this temperature."""
    if temperature == 1.0:
        return model
    other = copy.deepcopy(model)
    for parameter in other.lm_head.parameters():
        parameter.data /= temperature
    return other


def packed(sequences: Sequences) -> Any:
    return pack([([START, *sequence], [False] + [True] * len(sequence)) for sequence in sequences])


def nll(model: Any, sequences: Sequences) -> float:
    """Nats per token."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(sequences), 500):
            total -= float(log_probabilities(model, packed(sequences[start : start + 500])).sum())
    return total / sum(map(len, sequences))


def scores(discriminator: Any, sequences: Sequences) -> torch.Tensor:
    """float64 [sequences]"""
    discriminator.eval()
    with torch.no_grad():
        parts = [discriminator(packed(sequences[at : at + 500])) for at in range(0, len(sequences), 500)]
    return torch.cat(parts).double()


def epochs(sequences: Sequences, batch: int, seed: int) -> Iterator[Sequences]:
    """Endless batches, epoch after epoch."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(sequences))
        for start in range(0, len(order) - batch + 1, batch):
            yield [sequences[index] for index in order[start : start + batch]]


def likelihood(
    engine: TorchEngine, sequences: Sequences, validation: Sequences, sizes: Sizes, rate: float,
    until: Callable[[int], bool] = lambda epochs: False, seed: int = 0,
) -> None:  # fmt: skip
    """Train until `until(epochs so far)`, or until the validation loss stays on a plateau: each plateau halves the
    learning rate, four times at most. Ends with the best weights.
    """
    best, weights, patience, halved = (
        nll(engine.model.eval(), validation),
        copy.deepcopy(engine.model.state_dict()),
        0,
        0,
    )
    engine.model.train()
    per_epoch = len(sequences) // sizes.batch
    for step, some in enumerate(epochs(sequences, sizes.batch, seed), start=1):
        batch = packed(some)
        engine.accumulate(batch, batch.weight)
        engine.update(rate)
        if step % per_epoch == 0:
            found = nll(engine.model.eval(), validation)
            engine.model.train()
            if found < best:
                patience = 0 if found < best - 1e-4 else patience + 1
                best, weights = found, copy.deepcopy(engine.model.state_dict())
            else:
                patience += 1
            if patience >= 3:
                rate, halved, patience = rate / 2, halved + 1, 0
            if halved > 4 or until(step // per_epoch):
                break
    engine.model.load_state_dict(weights)


def parts_of(sequences: Sequences, numbers: Sequence[int]) -> list[Part]:
    return [[(number, Exchange([START], sequence)) for number, sequence in zip(numbers, sequences, strict=True)]]


def both_ways(model: Any, oracle: Any, test: Sequences, sizes: Sizes) -> list[dict[str, float]]:
    """The figures at each temperature."""
    return [
        {
            "temperature": temperature,
            "nll_test": nll(tempered(model, temperature), test),
            "nll_oracle": nll(oracle, drawn(model, sizes, sizes.measured, 77, temperature)),
        }
        for temperature in sizes.temperatures
    ]


def reranked(model: Any, discriminator: Any, oracle: Any, test: Sequences, sizes: Sizes) -> list[dict[str, float]]:
    """The figures of the pair as one model, at each temperature of the generator."""
    of_test, rows = float(scores(discriminator, test).mean()), []
    for temperature in sizes.temperatures:
        began = time.process_time()
        own = drawn(model, sizes, 2 * sizes.measured, 88, temperature)
        own_scores = scores(discriminator, own)
        seconds = time.process_time() - began
        gain = of_test - float(torch.logsumexp(own_scores, 0) - math.log(len(own)))
        groups = own_scores.view(-1, CHOSEN_AMONG)
        torch.manual_seed(0)
        chosen = torch.multinomial(groups.softmax(1), 1)[:, 0] + torch.arange(len(groups)) * CHOSEN_AMONG
        rows.append(
            {
                "temperature": temperature,
                "nll_test": nll(tempered(model, temperature), test) - gain / sizes.length,
                "nll_oracle": nll(oracle, [own[index] for index in chosen.tolist()]),
                "seconds_for_1000": 1000 * seconds / len(groups),
            }
        )
    return rows


def at_levels(rows: Sequence[dict[str, float]]) -> dict[float, float]:
    """nll_oracle at each published nll_test, interpolated between temperatures; NaN beyond all of them."""
    found = sorted((row["nll_test"], row["nll_oracle"]) for row in rows)
    tests, oracles = zip(*found, strict=True)
    return {level: float(np.interp(level, tests, oracles, left=math.nan, right=math.nan)) for level in FRONTIER}


def tell(seed: int, phase: str, seconds: float, **figures: float) -> None:
    """Print the figures and the progress."""
    said = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    print(f"  seed {seed}: {phase} done in {seconds:.0f} CPU s, {said}", file=sys.stderr, flush=True)


def run(sizes: Sizes, seed: int, turns: int) -> dict[str, Any]:
    oracle = oracle_of(sizes, seed)
    train = drawn(oracle, sizes, sizes.sequences, 11 + 100 * seed)
    validation = drawn(oracle, sizes, 2000, 12 + 100 * seed)
    test = drawn(oracle, sizes, sizes.measured, 13 + 100 * seed)
    row: dict[str, Any] = {"seed": seed, "oracle_entropy": nll(oracle, test)}
    objective = Generate(sizes.length, l1_weight=0.01, likelihood_weight=0.5, kl_weight=0.001)
    generator = TorchEngine(lstm(sizes.vocabulary, sizes.generator, seed), objective)
    began = time.process_time()
    likelihood(generator, train, validation, sizes, sizes.rate, seed=seed)
    row["likelihood_seconds"] = time.process_time() - began
    row["likelihood"] = both_ways(generator.model.eval(), oracle, test, sizes)
    tell(seed, "likelihood", row["likelihood_seconds"], **row["likelihood"][0])
    generator.model.train()
    continued = copy.deepcopy(generator.model)
    began = time.process_time()
    reader = TorchEngine(lstm(sizes.vocabulary, sizes.discriminator, 7 + seed), objective)
    likelihood(reader, train, validation, sizes, 0.005, lambda epochs: epochs >= READING_EPOCHS, seed=7 + seed)
    row["reader_nll_test"] = nll(reader.model.eval(), test)
    discriminator = TorchEngine(Discriminator(reader.model.train()), Discriminate(), weight_decay=0.01)
    settings = AdversarialSettings(
        num_replies=1, max_reply_tokens=sizes.length, learning_rate=1e-3, discriminator_learning_rate=3e-3, seed=seed
    )
    step, batches = 0, epochs(train, sizes.batch, 1 + seed)

    def play(steps: int, settings: AdversarialSettings, turns: bool) -> AdversarialTrainer:
        nonlocal step
        trainer = AdversarialTrainer(generator, discriminator, settings, [sizes.vocabulary], objective)
        for _ in range(steps):
            trainer.step(step, parts_of(next(batches), range(sizes.batch)), sizes.batch, train_generator=turns)
            step += 1
        return trainer

    for part in range(WARMUP_PARTS):  # the learning rate falls to a fifth
        rate = settings.discriminator_learning_rate * (1 - part / WARMUP_PARTS)
        trainer = play(WARMUP_STEPS // WARMUP_PARTS, replace(settings, discriminator_learning_rate=rate), turns=False)
    row["warmup_steps"] = step
    asked = test[:4000]
    row["discriminator_accuracy"] = trainer.measure(parts_of(asked, range(len(asked))))["accuracy"]
    row["warmup_seconds"] = time.process_time() - began
    tell(seed, "warm-up", row["warmup_seconds"], accuracy=row["discriminator_accuracy"])
    row["reranked"] = reranked(generator.model.eval(), discriminator.model, oracle, test, sizes)
    generator.model.train()
    began = time.process_time()
    play(turns, replace(settings, num_replies=4, discriminator_learning_rate=rate), turns=True)
    row["turns_seconds"] = time.process_time() - began
    row["adversarial"] = both_ways(generator.model.eval(), oracle, test, sizes)
    tell(seed, "turns", row["turns_seconds"], **row["adversarial"][0])
    budget = row["warmup_seconds"] + row["turns_seconds"]
    began = time.process_time()
    other = TorchEngine(continued, objective)
    while time.process_time() - began < budget:
        # Starts with a learning rate that can still move the model; keeps the best weights.
        is_over = lambda epochs: time.process_time() - began > budget  # noqa: E731
        likelihood(other, train, validation, sizes, sizes.rate / 2, is_over, seed=50 + seed)
    row["likelihood_continued"] = both_ways(other.model.eval(), oracle, test, sizes)
    tell(seed, "likelihood continued", budget, **row["likelihood_continued"][0])
    return row


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and the half width of its 95 % confidence interval (Student's t)."""
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}.get(len(values), 2.0)
    half = t * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": round(statistics.mean(values), 4), "plus_minus": round(half, 4)}


def of_small(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statistics over all seeds, at temperature 1."""
    gains = [row["likelihood"][0]["nll_test"] - row["reranked"][0]["nll_test"] for row in rows]
    return {
        "least_discriminator_accuracy": round(min(row["discriminator_accuracy"] for row in rows), 4),
        "reranked_lower_by": {"least": round(min(gains), 4), **interval(gains)},
        "adversarial_minus_likelihood_continued": {
            name: interval([row["adversarial"][0][name] - row["likelihood_continued"][0][name] for row in rows])
            for name in ("nll_test", "nll_oracle")
        },
    }


def figure(values: Sequence[float]) -> float | None:
    """Their mean; None if one is missing."""
    mean = statistics.mean(values)
    return None if math.isnan(mean) else round(mean, 3)


def of_published(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """nll_oracle at each level of nll_test, averaged over the seeds."""
    models = ("likelihood", "likelihood_continued", "adversarial", "reranked")
    levels = {name: [at_levels(row[name]) for row in rows] for name in models}
    return {
        "oracle_entropy": [round(row["oracle_entropy"], 3) for row in rows],
        "likelihood": [[round(row["likelihood"][0][name], 3) for name in ("nll_test", "nll_oracle")] for row in rows],
        "nll_oracle_at_nll_test": {
            str(level): {
                "published": published,
                **{name: figure([row[level] for row in levels[name]]) for name in models},
            }
            for level, published in FRONTIER.items()
        },
        "reranked_costs_times": CHOSEN_AMONG,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--published", action="store_true", help="the papers' sizes, over temperatures")
    parser.add_argument("--turns", type=int, default=100, help="steps in which both learn")
    parser.add_argument("--processes", type=int, default=2, help="seeds at a time, each on one core")
    arguments = parser.parse_args()
    sizes = PUBLISHED if arguments.published else SMALL
    seeds = list(map(int, arguments.seeds.split(",")))
    rows = []
    with ProcessPoolExecutor(arguments.processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for row in pool.map(run, [sizes] * len(seeds), seeds, [arguments.turns] * len(seeds)):
            rows.append(row)
            print(json.dumps(row, default=float), flush=True)
    print(json.dumps(of_published(rows) if arguments.published else of_small(rows)))


if __name__ == "__main__":
    main()
