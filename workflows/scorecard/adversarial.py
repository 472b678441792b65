"""evaluate, for an adversarial pair: the gain by the discriminator, and how real the replies look.

Runs as one task on the cluster. A fresh discriminator learns from half of the held-out conversations to tell real
replies from generated ones, and is tested on the other half. For comparison: real against real replies (0.5 except
for chance), random tokens (1.0), and a classifier that sees only lengths. The generator is compared with the control,
likelihood training for the same time, at several temperatures.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from models.exchange import Exchange
from models.trees import COLUMNS
from workflows.cluster.board import watching
from workflows.cluster.workers import worker_environment
from workflows.corpus.new_model import discriminator_base
from workflows.scorecard.records import AdversarialScorecard, Controls, Diversity, PairLosses, RepliesFigures
from workflows.spec import AdversarialSpec, PairSpec, PipelineSpec
from workflows.stage import CONTINUED, DISCRIMINATOR, Context
from workflows.store import Store

# Fewer histories give no meaningful result.
_LEAST_HISTORIES = 16
_SEED = 2_000_003
GENERATOR, LIKELIHOOD = "generator", "likelihood continued"
Replies = list[list[Exchange]]
Scores = list[list[float]]
"""logits of the discriminator for each history's replies"""


def measure_pair(context: Context) -> AdversarialScorecard | None:
    """The scorecard's part `pair`; None if there are too few held-out conversations."""
    evaluate, trained = context.spec.evaluate, context.inputs["train"]
    task = ray.remote(_measure).options(
        num_cpus=evaluate.cpus_per_worker,
        num_gpus=evaluate.gpus_per_worker or None,
        runtime_env={"env_vars": worker_environment(evaluate.cpus_per_worker, evaluate.gpus_per_worker)},
    )
    corpus = context.inputs["prepare"].key
    with watching(context.progress, "measures of the pair") as board:
        found: AdversarialScorecard | None = ray.get(
            task.remote(context.spec, context.store.uri, corpus, trained.key, board)
        )
    if found is None:
        context.progress.note(
            f"evaluate: measuring a pair needs at least {_LEAST_HISTORIES} held-out conversations; add data, or "
            "raise data.held_out_share"
        )
    return found


def _measure(
    spec: PipelineSpec, store_uri: str, corpus: str, checkpoint: str, board: Any
) -> AdversarialScorecard | None:
    import torch

    from models.measures.adversarial import diversity

    torch.set_num_threads(max(1, int(spec.evaluate.cpus_per_worker)))
    store, settings = Store(store_uri), spec.evaluate.pair
    reals = _real_replies(spec, store, corpus)
    if len(reals) < _LEAST_HISTORIES:
        return None
    players = Players(spec, store, checkpoint, reals, board)
    models = 2 if players.continued is None else 3
    board.post.remote(total=models * len(settings.temperatures) + 2)
    drawn = players.drawn(max(settings.best_of, settings.candidates), 1.0)
    scores = players.scores([[real, *own] for real, own in zip(reals, drawn, strict=True)])
    losses = _losses(players, scores, settings.candidates)
    return AdversarialScorecard(
        **vars(losses),
        histories=len(reals),
        replies=tuple(_replies(players, settings, drawn, scores)),
        controls=Controls(**players.judges.controls(players.vocabulary)),
        real=Diversity(**diversity([real.reply for real in reals])),
    )


def _real_replies(spec: PipelineSpec, store: Store, corpus: str) -> list[Exchange]:
    """The last replies of held-out conversations, with their histories."""
    from models.exchange import exchange_of
    from workflows.corpus.reader import open_split

    assert isinstance(spec.train.objective, AdversarialSpec)
    most = spec.train.objective.max_reply_tokens
    rows = open_split(store, "prepare", corpus, "corpus", "held_out", [*COLUMNS])
    rows = rows.take(min(spec.evaluate.pair.histories, len(rows)))
    return [exchange_of(row, most, lambda n: n - 1) for row in rows]


def _losses(players: "Players", scores: Scores, candidates: int) -> PairLosses:
    """`scores` has those of the real reply to each history, and of drawn ones."""
    from models.measures.adversarial import reply_log_probabilities, reranked_log_probabilities

    reals = players.reals
    tokens = sum(len(real.reply) for real in reals)

    def loss_of(log_p: Any) -> float:
        return round(-float(log_p.sum()) / tokens, 4)

    log_p, reranked = reranked_log_probabilities(
        players.generator, reals, [some[: 1 + candidates] for some in scores]
    )
    loss, reranked_loss, continued_loss, turns_verdict = loss_of(log_p), loss_of(reranked), None, None
    if players.continued is not None:
        others = reply_log_probabilities(players.continued, reals)
        continued_loss = loss_of(others)
        turns_verdict = (
            f"the turns lower the held-out loss by {continued_loss - loss:.4f} nats a token more than likelihood "
            "training did in the same time"
            if _is_positive(log_p - others)
            else "no gain from the turns: likelihood training in the same time reaches a held-out loss as low, "
            "within chance, or lower"
        )
    return PairLosses(
        loss=loss,
        reranked_loss=reranked_loss,
        candidates=candidates,
        discriminator_accuracy=round(sum(some[0] > some[1] for some in scores) / len(scores), 4),
        verdict=f"the discriminator lowers the held-out loss by {loss - reranked_loss:.4f} nats a token"
        if _is_positive(reranked - log_p)
        else "no gain: the discriminator does not lower the held-out loss by more than chance",
        continued_loss=continued_loss,
        turns_verdict=turns_verdict,
    )


def _replies(players: "Players", settings: PairSpec, drawn: Replies, scores: Scores) -> Iterator[RepliesFigures]:
    """Each model's replies at each temperature; those at temperature 1 are given, scored after the real ones."""
    from models.measures.adversarial import best_of

    n = settings.best_of
    for temperature in settings.temperatures:
        if temperature == 1.0:
            own, by = [some[:n] for some in drawn], [some[1 : n + 1] for some in scores]
        else:
            own = players.drawn(n, temperature)
            by = players.scores(own)
        found = {GENERATOR: [some[0] for some in own], f"best of {n}": best_of(own, by, _SEED)}
        if players.continued is not None:
            found[LIKELIHOOD] = [some[0] for some in players.drawn(1, temperature, players.continued)]
        for model, replies in found.items():
            yield RepliesFigures(model=model, temperature=temperature, **players.judges.of(replies))


def _is_positive(gains: Any) -> bool:
    """Whether the mean of the gains, float64 [histories], exceeds 0 by more than two standard errors."""
    return float(gains.mean()) > 2 * float(gains.std()) / math.sqrt(len(gains))


class Players:
    """Generator and discriminator of the checkpoint, and fresh discriminators."""

    def __init__(self, spec: PipelineSpec, store: Store, checkpoint: str, reals: list[Exchange], board: Any) -> None:
        from models.base import adapters
        from models.base.discriminator import open_discriminator
        from models.base.load import load_tokenizer, resolve
        from models.base.precision import dtype_of
        from models.chat import end_token_ids
        from models.measures.adversarial import FreshDiscriminators

        assert isinstance(spec.train.objective, AdversarialSpec)
        self.reals = reals
        self._spec, self._objective = spec, spec.train.objective
        self._device = "cuda" if spec.evaluate.gpus_per_worker else "cpu"
        self._dtype = dtype_of(spec.train.precision, self._device)
        self._base, folder = resolve(spec.base_model), store.local_folder("train", checkpoint, "model")
        self._tokenizer, self._is_adapter = load_tokenizer(folder), adapters.is_adapter(folder)
        steps, rate = spec.evaluate.pair.fresh_steps, self._objective.discriminator_learning_rate
        self.judges = FreshDiscriminators(
            reals, self._fresh(self._base)[0], self._reader, steps, rate,
            on_step=lambda: board.add.remote(done=1 / steps),
        )  # fmt: skip
        self.generator = self._opened(folder)
        self.continued = None
        if store.is_folder(store.path("train", checkpoint, CONTINUED)):
            self.continued = self._opened(store.local_folder("train", checkpoint, CONTINUED))
        player = store.local_folder("train", checkpoint, DISCRIMINATOR)
        self._discriminator = open_discriminator(player, discriminator_base(spec)).to(self._device)
        self._ends, self.vocabulary = sorted(end_token_ids(self._tokenizer)), len(self._tokenizer)

    def drawn(self, count: int, temperature: float, model: Any = None) -> Replies:
        """`count` replies to each history, by the generator unless another model is given."""
        from models.measures.adversarial import drawn_to

        most = self._objective.max_reply_tokens
        return drawn_to(self.reals, model or self.generator, count, most, self._ends, temperature, _SEED)

    def scores(self, groups: Replies) -> Scores:
        """The discriminator's score of each reply; a group has the replies to one history."""
        from models.measures.adversarial import scores_of

        return scores_of(self._discriminator, groups)

    def _load(self, folder: Path) -> Any:
        from models.base.load import load_model
        from models.kernels.attention import PACKED_ATTENTION

        return load_model(folder, self._dtype, PACKED_ATTENTION).to(self._device)

    def _opened(self, folder: Path) -> Any:
        """A trained model: an adapter on the base model, or a whole model."""
        from models.base import adapters

        model = adapters.load(self._load(self._base), folder) if self._is_adapter else self._load(folder)
        return model.eval()

    def _fresh(self, folder: Path) -> tuple[Any, list[int]]:
        """A model before training, and its new tokens."""
        from models.base.new_tokens import fit_embeddings

        model = self._load(folder)
        return model, fit_embeddings(model, self._base, self._tokenizer)

    def _reader(self) -> Any:
        """The initial model of a fresh discriminator."""
        from models.base import adapters

        adapter = self._spec.train.adapter
        model, new = self._fresh(discriminator_base(self._spec))
        if adapter is None:
            return model
        base = self._spec.base_model
        return adapters.attach(model, **adapter.arguments(), base=base, new_tokens=new).to(self._device)


def pair_text(pair: AdversarialScorecard) -> list[str]:
    """The scorecard's lines on the pair."""
    continued = "" if pair.continued_loss is None else f", likelihood continued {pair.continued_loss:.4f}"
    lines = [
        f"  pair: held-out loss of the last replies {pair.loss:.4f}, reranked {pair.reranked_loss:.4f}"
        f"{continued} ({pair.histories} histories, {pair.candidates} candidates each)",
        f"  its discriminator tells {pair.discriminator_accuracy:.1%} right",
        "  replies                    told by a fresh discriminator, by length   Fréchet   distinct-1 -2   self-BLEU",
    ]
    lines += [
        f"    {row.model:<20} {row.temperature:<4g} {row.fresh_accuracy:>8.2f} "
        f"{row.length_accuracy:>21.2f}{row.frechet_distance:>17.3f} {_diversity(row)}"
        for row in pair.replies
    ]
    lines.append(f"    real replies {'':>59} {_diversity(pair.real)}")
    controls = pair.controls
    lines.append(
        f"    controls: real against real {controls.real_against_real:.2f}, random tokens "
        f"{controls.random_tokens:.2f}"
    )
    return [*lines, *(f"  {verdict}" for verdict in (pair.verdict, pair.turns_verdict) if verdict)]


def _diversity(row: Diversity | RepliesFigures) -> str:
    return f"{row.distinct_1:>9.3f} {row.distinct_2:.3f} {row.self_bleu:>9.3f}"
