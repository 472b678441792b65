"""evaluate, of an adversarial pair: what the discriminator adds, and how well its replies pass for real ones.

One task on the cluster. A fresh discriminator, never trained against, learns from half of the held-out conversations
to tell real replies from generated ones and is asked about the other half. Beside it stand the same of two real ones
(0.5 but for chance), of tokens drawn at random (1.0), and one that sees the replies' lengths alone. The generator's
replies stand beside those of likelihood training that went on for as long, over temperatures.
"""

import math
from typing import Any

import ray

from models.exchange import Exchange
from models.trees import COLUMNS
from workflows.cluster.board import watching
from workflows.cluster.workers import worker_environment
from workflows.corpus.new_model import discriminator_base
from workflows.spec import AdversarialSpec, PipelineSpec
from workflows.stage import CONTINUED, DISCRIMINATOR, Context
from workflows.store import Store

# Fewer say nothing.
_LEAST_HISTORIES = 16
_SEED = 2_000_003
GENERATOR, LIKELIHOOD = "generator", "likelihood continued"
Replies = list[list[Exchange]]


def measure_pair(context: Context) -> dict[str, Any] | None:
    """The scorecard's part `pair`; None where there are too few held-out conversations."""
    evaluate, trained = context.spec.evaluate, context.inputs["train"]
    task = ray.remote(_measure).options(
        num_cpus=evaluate.cpus_per_worker,
        num_gpus=evaluate.gpus_per_worker or None,
        runtime_env={"env_vars": worker_environment(evaluate.cpus_per_worker, evaluate.gpus_per_worker)},
    )
    corpus = context.inputs["prepare"].key
    with watching(context.progress, "measures of the pair") as board:
        found: dict[str, Any] | None = ray.get(
            task.remote(context.spec.model_dump(), context.store.uri, corpus, trained.key, board)
        )
    if found is None:
        context.progress.note(
            f"evaluate: measuring a pair needs at least {_LEAST_HISTORIES} held-out conversations; add data, or "
            "raise data.held_out_share"
        )
    return found


def _measure(
    raw_spec: dict[str, Any], store_uri: str, corpus: str, checkpoint: str, board: Any
) -> dict[str, Any] | None:
    import torch

    from models.exchange import exchange_of
    from models.measures.adversarial import (
        best_of,
        diversity,
        reply_log_probabilities,
        reranked_log_probabilities,
        scores_of,
    )
    from workflows.corpus.reader import open_split

    spec, store = PipelineSpec.model_validate(raw_spec), Store(store_uri)
    objective, settings = spec.train.objective, spec.evaluate.pair
    assert isinstance(objective, AdversarialSpec)
    torch.set_num_threads(max(1, int(spec.evaluate.cpus_per_worker)))
    rows = open_split(store, "prepare", corpus, "corpus", "held_out", [*COLUMNS])
    rows = rows.take(min(settings.histories, len(rows)))
    if len(rows) < _LEAST_HISTORIES:
        return None
    reals = [exchange_of(row, objective.max_reply_tokens, lambda n: n - 1) for row in rows]
    players = Players(spec, store, checkpoint, reals, board)
    models = 2 if players.continued is None else 3
    board.post.remote(total=models * len(settings.temperatures) + 2)
    n = settings.best_of
    drawn = players.drawn(max(n, settings.candidates), 1.0)
    scores = scores_of(players.discriminator, [[real, *own] for real, own in zip(reals, drawn, strict=True)])
    candidates = [some[: 1 + settings.candidates] for some in scores]
    log_p, reranked = reranked_log_probabilities(players.generator, reals, candidates)
    tokens = sum(len(real.reply) for real in reals)
    found: dict[str, Any] = {
        "histories": len(reals),
        "loss": round(-float(log_p.sum()) / tokens, 4),
        "reranked_loss": round(-float(reranked.sum()) / tokens, 4),
        "candidates": settings.candidates,
        "discriminator_accuracy": round(sum(some[0] > some[1] for some in scores) / len(scores), 4),
    }
    found["verdict"] = (
        f"the discriminator lowers the held-out loss by {found['loss'] - found['reranked_loss']:.4f} nats a token"
        if _is_positive(reranked - log_p)
        else "no gain: the discriminator does not lower the held-out loss by more than chance"
    )
    if players.continued is not None:
        others = reply_log_probabilities(players.continued, reals)
        found["continued_loss"] = round(-float(others.sum()) / tokens, 4)
        found["turns_verdict"] = (
            f"the turns lower the held-out loss by {found['continued_loss'] - found['loss']:.4f} nats a token more "
            "than likelihood training did in the same time"
            if _is_positive(log_p - others)
            else "no gain from the turns: likelihood training in the same time reaches a held-out loss as low, "
            "within chance, or lower"
        )
    found["replies"] = []

    def add(model: str, temperature: float, own: list[Exchange]) -> None:
        found["replies"].append({"model": model, "temperature": temperature, **players.judges.of(own)})

    for temperature in settings.temperatures:
        if temperature == 1.0:
            own, by = [some[:n] for some in drawn], [some[1 : n + 1] for some in scores]
        else:
            own = players.drawn(n, temperature)
            by = scores_of(players.discriminator, own)
        add(GENERATOR, temperature, [some[0] for some in own])
        add(f"best of {n}", temperature, best_of(own, by, _SEED))
        if players.continued is not None:
            likely = players.drawn(1, temperature, players.continued)
            add(LIKELIHOOD, temperature, [some[0] for some in likely])
    found["controls"] = players.judges.controls(players.vocabulary)
    found["real"] = diversity([real.reply for real in reals])
    return found


def _is_positive(gains: Any) -> bool:
    """Whether the mean of gains, float64 [histories], is above 0 by more than two standard errors."""
    return float(gains.mean()) > 2 * float(gains.std()) / math.sqrt(len(gains))


class Players:
    """Both, as the checkpoint has them, and fresh judges."""

    def __init__(self, spec: PipelineSpec, store: Store, checkpoint: str, reals: list[Exchange], board: Any) -> None:
        from models.base import adapters
        from models.base.discriminator import open_discriminator
        from models.base.load import load_model, load_tokenizer, resolve
        from models.base.new_tokens import fit_embeddings
        from models.base.precision import dtype_of
        from models.chat import end_token_ids
        from models.kernels.attention import PACKED_ATTENTION
        from models.measures.adversarial import FreshDiscriminators

        assert isinstance(spec.train.objective, AdversarialSpec)
        device = "cuda" if spec.evaluate.gpus_per_worker else "cpu"
        dtype = dtype_of(spec.train.precision, device)
        base, folder = resolve(spec.base_model), store.local_folder("train", checkpoint, "model")
        player = store.local_folder("train", checkpoint, DISCRIMINATOR)
        self._objective = spec.train.objective

        def load(name: Any) -> Any:
            return load_model(name, dtype, PACKED_ATTENTION).to(device)

        tokenizer = load_tokenizer(folder)

        def fresh(name: Any) -> tuple[Any, list[int]]:
            model = load(name)
            return model, fit_embeddings(model, base, tokenizer)

        def reader() -> Any:
            adapter = spec.train.adapter
            model, new = fresh(discriminator_base(spec))
            if adapter is None:
                return model
            fields = adapter.model_dump(exclude={"quantize"})
            return adapters.attach(model, **fields, base=spec.base_model, new_tokens=new).to(device)

        self._reals = reals
        steps, rate = spec.evaluate.pair.fresh_steps, spec.train.objective.discriminator_learning_rate
        judge = fresh(base)[0]
        self.judges = FreshDiscriminators(
            reals, judge, reader, steps, rate, on_step=lambda: board.add.remote(done=1 / steps)
        )
        is_adapter = adapters.is_adapter(folder)

        def opened(folder: Any) -> Any:
            return (adapters.load(load(base), folder) if is_adapter else load(folder)).eval()

        self.generator = opened(folder)
        self.continued = None
        if store.is_folder(store.path("train", checkpoint, CONTINUED)):
            self.continued = opened(store.local_folder("train", checkpoint, CONTINUED))
        self.discriminator = open_discriminator(player, discriminator_base(spec)).to(device)
        self._ends, self.vocabulary = sorted(end_token_ids(tokenizer)), len(tokenizer)

    def drawn(self, count: int, temperature: float, model: Any = None) -> Replies:
        """`count` replies to each history, of the generator's unless another model is given."""
        from models.measures.adversarial import drawn_to

        most = self._objective.max_reply_tokens
        return drawn_to(self._reals, model or self.generator, count, most, self._ends, temperature, _SEED)


def pair_text(found: dict[str, Any]) -> list[str]:
    """Lines of the scorecard as a person reads it."""
    continued = f", likelihood continued {found['continued_loss']:.4f}" if "continued_loss" in found else ""
    lines = [
        f"  pair: held-out loss of the last replies {found['loss']:.4f}, reranked {found['reranked_loss']:.4f}"
        f"{continued} ({found['histories']} histories, {found['candidates']} candidates each)",
        f"  its discriminator tells {found['discriminator_accuracy']:.1%} right",
        "  replies                    told by a fresh discriminator, by length   Fréchet   distinct-1 -2   self-BLEU",
    ]
    lines += [
        f"    {row['model']:<20} {row['temperature']:<4g} {row['fresh_accuracy']:>8.2f} "
        f"{row['length_accuracy']:>21.2f}{row['frechet_distance']:>17.3f} {_diversity(row)}"
        for row in found["replies"]
    ]
    lines.append(f"    real replies {'':>59} {_diversity(found['real'])}")
    controls = found["controls"]
    lines.append(
        f"    controls: real against real {controls['real_against_real']:.2f}, random tokens "
        f"{controls['random_tokens']:.2f}"
    )
    return [*lines, *(f"  {found[name]}" for name in ("verdict", "turns_verdict") if name in found)]


def _diversity(row: dict[str, float]) -> str:
    return f"{row['distinct_1']:>9.3f} {row['distinct_2']:.3f} {row['self_bleu']:>9.3f}"
