"""The adversarial pair on real conversations: adapters of one pretrained chat model, compared with likelihood alone.

    python benchmarks/adversarial_dialogue.py conversations.jsonl.gz --folder runs/chitchat

Takes exchanges from each conversation: an assistant's reply and the two messages before it, all of them short, under
a system message of two words (the model's default would be a third of the tokens). All exchanges of a conversation
are on the same side of the split.

Trains a LoRA adapter by likelihood, with `--quick` for fewer steps than its plateau needs. A discriminator, a second
adapter, learns to tell its replies from real ones; then both train alternately. `likelihood continued` trains from
the same point for the same CPU time. The table compares replies to the held-out histories, at several temperatures:
of the likelihood model, the same continued, the adversarial one, and the best of 4 and of 8 of the likelihood model.
The judge is a fresh discriminator for each row, on the base model's hidden states: it learns from half of the
held-out conversations and is tested on the others (`linear_accuracy` in models/measures/adversarial.py). `pair.html`
in the folder shows the figures.

Results are stored in the folder, and an interrupted run resumes after its last complete phase or row. The last line
is one JSON object. On two slow cores, the sizes of `--quick` take about three hours, the others a day.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from models.base import adapters
from models.base.discriminator import Discriminator
from models.base.load import BUILTIN_SMOLLM2, load_model, load_tokenizer, resolve
from models.base.precision import dtype_of
from models.chat import encode_conversation, end_token_ids
from models.exchange import Exchange, exchange_of
from models.kernels.attention import PACKED_ATTENTION
from models.measures.adversarial import (
    best_of,
    diversity,
    drawn_to,
    frechet_distance,
    length_accuracy,
    linear_accuracy,
    readings,
    reply_log_probabilities,
    scores_of,
)
from models.objectives.adversarial import Discriminate, Generate
from models.packing import pack
from models.training.adversarial import AdversarialSettings, AdversarialTrainer
from models.training.engine import TorchEngine
from workflows.scorecard.adversarial_plot import pair_page
from workflows.scorecard.records import Controls, Diversity, RepliesFigures

MAX_WORDS, MAX_REPLY_TOKENS = 20, 32
SYSTEM = {"role": "system", "content": "You chat."}
BEST_OF = (4, 8)
LIKELIHOOD, CONTINUED, ADVERSARIAL = "likelihood", "likelihood continued", "adversarial"


@dataclass(frozen=True)
class Sizes:
    likelihood_steps: int
    warmup_steps: int
    turns: int
    temperatures: tuple[float, ...]


FULL = Sizes(likelihood_steps=600, warmup_steps=200, turns=60, temperatures=(0.7, 0.85, 1.0))
QUICK = Sizes(likelihood_steps=120, warmup_steps=40, turns=12, temperatures=(0.7, 1.0))
HELD_OUT = 1000
BATCH, TURN_BATCH, TURN_REPLIES = 16, 8, 4
RATE, PLAYER_RATE, TURN_RATE = 5e-4, 3e-4, 1e-4
MEASURE_EVERY = 40
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = dtype_of("auto", DEVICE)


def exchanges_of(file: Path, tokenizer: Any) -> tuple[list[Exchange], list[Exchange], list[Exchange]]:
    """Exchanges for training, for validation (100), and one from each of 1,000 other conversations."""
    random, by_conversation = np.random.default_rng(0), []
    with gzip.open(file, "rt") as stream:
        for line in stream:
            messages = [{name: each[name] for name in ("role", "content")} for each in json.loads(line)["messages"]]
            short = [len(message["content"].split()) <= MAX_WORDS for message in messages]
            places = [
                at
                for at in range(2, len(messages))
                if messages[at]["role"] == "assistant" and all(short[at - 2 : at + 1])
            ]
            if places:
                chosen = random.permutation(places)[:4]
                by_conversation.append([[SYSTEM, *messages[at - 2 : at + 1]] for at in chosen])

    def encoded(messages: list[Any]) -> Exchange:
        whole = encode_conversation(tokenizer, messages, last_reply_only=True)
        row = {"input_ids": whole.input_ids, "supervised": whole.supervised}
        return exchange_of(row, MAX_REPLY_TOKENS, lambda replies: replies - 1)

    order = random.permutation(len(by_conversation)).tolist()
    tests, validation, training = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + 100], order[HELD_OUT + 100 :]
    if len(tests) < HELD_OUT or not training:
        raise SystemExit(
            f"{file} has {len(by_conversation)} conversations with short messages; {HELD_OUT} are held out, 100 are "
            "for validation, and the others for training: give a larger file"
        )
    return (
        [encoded(messages) for number in training for messages in by_conversation[number]],
        [encoded(by_conversation[number][0]) for number in validation],
        [encoded(by_conversation[number][0]) for number in tests],
    )


class Run:
    """One run; its folder keeps all results."""

    def __init__(self, file: Path, base: str, folder: Path, sizes: Sizes) -> None:
        self.sizes, self._base, self._folder = sizes, resolve(base), folder
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = load_tokenizer(self._base)
        self._ends, self._vocabulary = sorted(end_token_ids(tokenizer)), len(tokenizer)
        self.training, self.validation, self.tests = exchanges_of(file, tokenizer)
        self._objective = Generate(MAX_REPLY_TOKENS)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of `make`, stored in the folder; an earlier run's if it exists."""
        path = self._folder / f"{name}.pt"
        if not path.is_file():
            began, found = time.process_time(), make()
            torch.save({"found": found, "seconds": time.process_time() - began}, path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)
        return torch.load(path, map_location=DEVICE, weights_only=False)["found"]

    def seconds(self, name: str) -> float:
        """The CPU seconds that it took."""
        return float(torch.load(self._folder / f"{name}.pt", weights_only=False)["seconds"])

    def base(self) -> Any:
        return load_model(self._base, DTYPE, PACKED_ATTENTION).to(DEVICE)

    def model(self, weights: dict[str, torch.Tensor] | None = None) -> Any:
        """The base model with an adapter: a new one, or one with these weights."""
        torch.manual_seed(0)
        model = adapters.attach(self.base(), 16, 32.0, 0.0, "all-linear", base=str(self._base)).to(DEVICE)
        if weights is not None:
            model.load_state_dict(weights, strict=False)
        return model.eval()

    def loss(self, model: Any, exchanges: Sequence[Exchange]) -> float:
        """Nats per token."""
        log_p = float(reply_log_probabilities(model.eval(), exchanges).sum())
        return -log_p / sum(len(exchange.reply) for exchange in exchanges)

    def likelihood(
        self, name: str, weights: dict[str, torch.Tensor] | None, rate: float, share_left: Callable[[int], float]
    ) -> dict[str, torch.Tensor]:
        """Train, and return the weights with the lowest validation loss, which may be the initial ones.
        `share_left(step)` is the remaining share of the training, and scales the learning rate; training ends at 0,
        or after three measurements without improvement.
        """
        engine = TorchEngine(self.model(weights), self._objective)
        best, kept, worse = self.loss(engine.model, self.validation), trained(engine.model), 0
        engine.model.train()
        for step, numbers in enumerate(orders(len(self.training), BATCH, seed=len(name))):
            left = share_left(step)
            if step and (step % MEASURE_EVERY == 0 or left <= 0):
                found = self.loss(engine.model, self.validation)
                engine.model.train()
                say(name, step=step, validation_loss=found)
                worse = 0 if found < best else worse + 1
                if found < best:
                    best, kept = found, trained(engine.model)
                if worse == 3:
                    break
            if left <= 0:
                break
            some = [self.training[number] for number in numbers]
            batch = pack([exchange.sequence for exchange in some]).to(DEVICE)
            engine.accumulate(batch, batch.weight)
            engine.update(rate * left)
        return kept

    def trainer(
        self, generator: dict[str, torch.Tensor], player: dict[str, torch.Tensor] | None
    ) -> tuple[Any, Any, Any]:
        """The trainer with both engines; without its own weights, the discriminator starts from the generator's."""
        torch.manual_seed(1)
        discriminator = Discriminator(self.model(generator), MAX_REPLY_TOKENS)
        if player is not None:
            discriminator.load_state_dict(player, strict=False)
        ours = TorchEngine(self.model(generator), self._objective)
        theirs = TorchEngine(discriminator, Discriminate(), weight_decay=0.01)
        settings = AdversarialSettings(
            1 if player is None else TURN_REPLIES, MAX_REPLY_TOKENS, TURN_RATE, PLAYER_RATE, replay_steps=8
        )
        return ours, theirs, AdversarialTrainer(ours, theirs, settings, self._ends, self._objective, self._copied)

    def _copied(self, model: Any) -> Any:
        return self.model(trained(model))

    def play(self, trainer: AdversarialTrainer, name: str, steps: int, batch: int, turns: bool) -> None:
        for step, numbers in enumerate(orders(len(self.training), batch, seed=len(name))):
            if step == steps:
                break
            part = [(number, self.training[number]) for number in numbers]
            figures = trainer.step(step, [part], batch, train_generator=turns)
            if step % 10 == 9:
                say(name, step=step + 1, accuracy=figures["discriminator_accuracy"])

    def warm_up(self, generator: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The trained weights of the discriminator."""
        _, player, trainer = self.trainer(generator, None)
        self.play(trainer, "warm-up", self.sizes.warmup_steps, BATCH, turns=False)
        return trained(player.model)

    def turns(self, generator: dict[str, torch.Tensor], player: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The generator's weights after the alternating phase."""
        ours, _, trainer = self.trainer(generator, player)
        self.play(trainer, "turns", self.sizes.turns, TURN_BATCH, turns=True)
        return trained(ours.model)

    def measured(self) -> dict[str, Any]:
        """Run all phases and make the table."""
        sizes = self.sizes
        likely = self.kept(
            LIKELIHOOD,
            lambda: self.likelihood(LIKELIHOOD, None, RATE, lambda step: 1 - step / sizes.likelihood_steps),
        )
        player = self.kept("discriminator", lambda: self.warm_up(likely))
        played = self.kept(ADVERSARIAL, lambda: self.turns(likely, player))
        budget, began = self.seconds("discriminator") + self.seconds(ADVERSARIAL), time.process_time()
        continued = self.kept(
            CONTINUED,
            lambda: self.likelihood(
                CONTINUED, likely, RATE / 2, lambda step: 1 - (time.process_time() - began) / budget
            ),
        )
        models = {LIKELIHOOD: likely, CONTINUED: continued, ADVERSARIAL: played}
        rows: list[dict[str, Any]] = []
        accuracy = {}
        for temperature in sizes.temperatures:
            replies, scores = self.replies(temperature, models, player)
            read = self.read(str(temperature), list(replies.values()))
            for place, (name, own) in enumerate(replies.items(), start=1):
                rows.append(self.row(name, temperature, own, read[:, [0, place]]))
            accuracy[str(temperature)] = round(sum(some[0] > some[1] for some in scores) / len(scores), 4)
        return {
            "histories": len(self.tests),
            "training_exchanges": len(self.training),
            "seconds": {
                name: round(self.seconds(name)) for name in (LIKELIHOOD, "discriminator", ADVERSARIAL, CONTINUED)
            },
            "loss": {
                name: round(self.kept(f"{name} loss", lambda: self.loss(self.merged(weights), self.tests)), 4)  # noqa: B023
                for name, weights in models.items()
            },
            "discriminator_accuracy": accuracy,
            "replies": rows,
            "controls": self.controls(),
            "real": diversity([exchange.reply for exchange in self.tests]),
        }

    def replies(
        self, temperature: float, models: dict[str, dict[str, torch.Tensor]], player: dict[str, torch.Tensor]
    ) -> tuple[dict[str, list[Exchange]], list[list[float]]]:
        """A reply to each history, for each row of the table; and D's scores of the real replies and likelihood's."""
        drawn = {}
        for name, weights in models.items():
            count = max(BEST_OF) if name == LIKELIHOOD else 1
            drawn[name] = self.kept(f"{name} {temperature} drawn", lambda: self.drawn(weights, count, temperature))  # noqa: B023
        likely = drawn[LIKELIHOOD]
        groups = [[real, *own] for real, own in zip(self.tests, likely, strict=True)]
        scores = self.kept(f"scores {temperature}", lambda: scores_of(self.discriminator(player), groups))
        found = {name: [own[0] for own in replies] for name, replies in drawn.items()}
        for n in BEST_OF:
            found[f"best of {n}"] = best_of([own[:n] for own in likely], [some[1 : n + 1] for some in scores], seed=n)
        return found, scores

    def read(self, name: str, replies: Sequence[list[Exchange]]) -> torch.Tensor:
        """float32 [histories, 1 + rows, 2, H]: the base model's hidden states for the real replies and for these."""
        groups = list(zip(self.tests, *replies, strict=True))
        found: torch.Tensor = self.kept(f"read {name}", lambda: readings(self.base(), groups))
        return found

    def row(self, model: str, temperature: float, replies: list[Exchange], read: torch.Tensor) -> dict[str, Any]:
        """A row of the table; `read` has the hidden states of the real replies and of these."""
        pairs = list(zip(self.tests, replies, strict=True))
        real, own = read[:, :, 1].double().unbind(1)
        row = {
            "model": model,
            "temperature": temperature,
            "fresh_accuracy": told(*read.unbind(1)),
            "length_accuracy": round(length_accuracy(pairs[::2], pairs[1::2]), 4),
            "frechet_distance": round(frechet_distance(real, own), 4),
            **diversity([exchange.reply for exchange in replies]),
        }
        print(json.dumps(row), flush=True)
        return row

    def controls(self) -> dict[str, float]:
        """Check the judge: about 0.5 for real against real replies, about 1 for random tokens."""
        random = np.random.default_rng(7)
        lengths = [(real.history, len(real.reply)) for real in self.tests]
        noise = [Exchange(history, random.integers(self._vocabulary, size=n).tolist()) for history, n in lengths]
        reals, others = self.read("random", [noise]).unbind(1)
        # From the same half, each in one pair: a linear layer learns nothing from what both sides share.
        fours = reals[: len(reals) // 4 * 4].unflatten(0, (-1, 4))
        one, other = fours[:, :2].flatten(0, 1), fours[:, 2:].flatten(0, 1)
        return {"real_against_real": told(one, other), "random_tokens": told(reals, others)}

    def merged(self, weights: dict[str, torch.Tensor]) -> Any:
        """The model with merged adapter, which samples and computes faster."""
        return adapters.merge(self.model(weights)).eval()

    def discriminator(self, player: dict[str, torch.Tensor]) -> Discriminator:
        found = Discriminator(self.model(), MAX_REPLY_TOKENS)
        found.load_state_dict(player, strict=False)
        found.reader = adapters.merge(found.reader)
        return found.eval()

    def drawn(self, weights: dict[str, torch.Tensor], count: int, temperature: float) -> list[list[Exchange]]:
        return drawn_to(self.tests, self.merged(weights), count, MAX_REPLY_TOKENS, self._ends, temperature, seed=5)


def told(reals: torch.Tensor, others: torch.Tensor) -> float:
    """The accuracy of a fresh discriminator on these two, both [N, 2, H]."""
    return round(linear_accuracy(reals.flatten(1), others.flatten(1)), 4)


def trained(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the trainable weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def orders(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of numbers below `count`, epoch after epoch."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(count).tolist()
        yield from (order[at : at + batch] for at in range(0, count - batch + 1, batch))


def say(phase: str, **figures: float) -> None:
    print(json.dumps({"phase": phase, "time": time.strftime("%H:%M:%S"), **figures}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="gzipped JSON lines with `messages`")
    parser.add_argument("--folder", type=Path, required=True, help="where what is done is kept")
    parser.add_argument("--base-model", default=BUILTIN_SMOLLM2)
    parser.add_argument("--quick", action="store_true", help="a fifth of the steps")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    run = Run(arguments.file, arguments.base_model, arguments.folder, QUICK if arguments.quick else FULL)
    say("begins", training=len(run.training), held_out=len(run.tests))
    found = run.measured()
    rows = [RepliesFigures(**row) for row in found["replies"]]
    page = pair_page(
        "the adversarial pair on conversations", rows, Diversity(**found["real"]), Controls(**found["controls"])
    )
    (arguments.folder / "pair.html").write_text(page)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
