"""Which mixtures of the sources the base model tries: small models, the proxies, try many before it (RegMix).

forecast, values = forecast_mixtures(...)      # as tune's searcher `mixture`

The proxies are trials like those of any search, with their own base model: what an interrupted or smaller search has
trained is not trained again. Their record is beside the search's, in `proxies/search.json`.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from models.mixture_law import MixtureLaw, best_weights, cross_validated, draw_weights, rounded
from workflows.progress import Progress
from workflows.search.records import Forecast, Search, read_search, write_search
from workflows.search.run import run_trials
from workflows.search.trial import Shared
from workflows.spec import MixtureSearchSpec, PipelineSpec, ZeroSpec
from workflows.spec.space import Values
from workflows.stage import StageFailed
from workflows.store import Store, content_key
from workflows.training.inputs import TrainingInputs
from workflows.training.steps import entries_of_rows, lengths_and_files, part_names

PROXIES = "proxies"
"""the folder of the proxies' search in the artifact of a search, and of their random weights in the store"""

CANDIDATES = ("predicted best", "in proportion to tokens", "equal shares")
"""what the base model tries, in the order of the trials"""

_COMPLETE = "complete.json"
_EPOCHS = 1000.0  # the maximum: max_steps ends a proxy's training
_LOW_AGREEMENT = 0.7


def forecast_mixtures(
    spec: PipelineSpec, store: Store, progress: Progress, search: Search, shared: Shared
) -> tuple[Forecast, list[Values]]:
    """Train the proxies, and predict the best mixture; returns the forecast and the settings of each candidate.

    Raises StageFailed if too few proxies come to their end.
    """
    assert spec.tune is not None
    searcher = spec.tune.searcher
    assert isinstance(searcher, MixtureSearchSpec)
    shares = _shares(store, shared.inputs)
    drawn = rounded(draw_weights(shares, searcher.proxies, np.random.default_rng([spec.tune.seed, 0])))
    key = f"{search.key}/{PROXIES}"
    proxies = replace(search, key=key, searcher="mixture, small models", trials=[], family="")
    proxy_spec = _proxy_spec(spec, searcher, store)
    progress.note(f"tune: {searcher.proxies} small models try mixtures of {len(shares)} sources")
    write_search(store, proxies)
    run_trials(
        proxy_spec,
        proxies,
        replace(
            shared, spec=proxy_spec.model_copy(update={"tune": None}), search=key, folder=f"{shared.folder}/{PROXIES}"
        ),
        progress,
        chosen=[values_of_weights(weights) for weights in drawn],
    )
    write_search(store, proxies)
    forecast, candidates = forecast_of(proxies, part_names(spec.data), shares, spec.tune.seed)
    shown = ", ".join(f"{name} {share:.0%}" for name, share in zip(forecast.sources, candidates[0], strict=True))
    low = "" if forecast.spearman >= _LOW_AGREEMENT else "; that is low: more searcher.proxies may help"
    progress.note(
        f"tune: the small models predict the best mixture: {shown}; rank correlation of predicted and measured "
        f"losses {forecast.spearman:.2f}{low}"
    )
    return forecast, [values_of_weights(weights) for weights in candidates]


def values_of_weights(weights: Any) -> Values:
    """The settings of a trial with these weights."""
    return {f"data.sources.{number}.weight": float(weight) for number, weight in enumerate(weights)}


def forecast_of(proxies: Search, names: Sequence[str], shares: Any, seed: int) -> tuple[Forecast, Any]:
    """The forecast of the proxies that came to their end, and the (3, S) weights of `CANDIDATES`."""
    from scipy.stats import spearmanr

    weights, losses, total = losses_of(proxies, names)
    least = 2 * (len(names) + 1)
    if len(total) < least:
        reasons = {trial.error for trial in proxies.trials if trial.error}
        raise StageFailed(
            f"tune: {len(total)} small models came to their end, and {least} are needed for {len(names)} sources: "
            f"{'; '.join(sorted(reasons)) or 'tune.searcher.proxies is too small'}"
        )
    law = MixtureLaw.fit(weights, losses, total)
    candidates = rounded([best_weights(law, shares, seed), shares, np.full(len(names), 1 / len(names))])
    checked = cross_validated(weights, losses, total)
    forecast = Forecast(
        sources=list(names),
        candidates=list(CANDIDATES),
        predicted=[float(loss) for loss in law.predict(candidates)],
        measured_of_proxies=[float(loss) for loss in total],
        predicted_of_proxies=[float(loss) for loss in checked],
        spearman=float(spearmanr(checked, total).statistic),
    )
    return forecast, candidates


def losses_of(proxies: Search, names: Sequence[str]) -> tuple[Any, Any, Any]:
    """(N, S) weights, (N, P) losses of the measured parts, and (N,) losses over all, in the order of the numbers."""
    metric = proxies.metrics[0]
    trials = sorted(proxies.trials, key=lambda trial: trial.number)
    found = [(trial.values, report.figures) for trial in trials if (report := trial.best(metric))]
    weights = [
        [float(str(values[f"data.sources.{number}.weight"])) for number in range(len(names))] for values, _ in found
    ]
    parts = [f"{metric}_{name}" for name in names]
    measured = [part for part in parts if all(part in figures for _, figures in found)] or [metric]
    losses = [[figures[part] for part in measured] for _, figures in found]
    return np.array(weights), np.array(losses), np.array([figures[metric] for _, figures in found])


def _shares(store: Store, inputs: TrainingInputs) -> Any:
    """(S,) each source's share of the corpus's tokens."""
    lengths, files = lengths_and_files(store, inputs)
    tokens = np.bincount(entries_of_rows(inputs.entries, files), lengths, minlength=max(inputs.entries) + 1)
    return tokens / tokens.sum()


def _proxy_spec(spec: PipelineSpec, searcher: MixtureSearchSpec, store: Store) -> PipelineSpec:
    """The pipeline of the proxies: like `spec`, with one worker, the small model and its length of training."""
    proxy = searcher.proxy
    train = spec.train.model_copy(
        update={
            "adapter": None, "frozen": [], "zero": ZeroSpec(), "deepspeed": {}, "num_workers": 1,
            "memory_gb_per_worker": None, "epochs": _EPOCHS, "max_steps": proxy.max_steps,
            "checkpoint_every_steps": proxy.max_steps, "learning_rate": proxy.learning_rate,
        }
    )  # fmt: skip
    return spec.model_copy(update={"base_model": _proxy_base(spec, searcher, store), "train": train})


def _proxy_base(spec: PipelineSpec, searcher: MixtureSearchSpec, store: Store) -> str:
    """The address of the proxies' random weights, made once for a base model and a size."""
    from models.base.load import identity

    sizes = {"hidden_size": searcher.proxy.hidden_size, "num_layers": searcher.proxy.num_layers}
    key = content_key({"base_model": identity(spec.base_model), **sizes})
    if store.read_json(store.path(PROXIES, key, _COMPLETE)) is None:
        ray.get(ray.remote(_make).options(num_cpus=1).remote(spec.base_model, store.uri, key, sizes))
        store.write_json(store.path(PROXIES, key, _COMPLETE), dict(sizes))
    return store.address(PROXIES, key, "model")


def _make(base_model: str, store_uri: str, key: str, sizes: dict[str, int]) -> None:
    from models.base.load import load_tokenizer, resolve
    from models.base.new_model import make_new_model

    with tempfile.TemporaryDirectory() as name:
        make_new_model(load_tokenizer(resolve(base_model)), Path(name), architecture="transformer", **sizes)
        Store(store_uri).add_folder(name, PROXIES, key, "model")


def proxies_of(store: Store, search: Search) -> Search | None:
    """The proxies' search of a search over mixtures; None of another one."""
    return read_search(store, f"{search.key}/{PROXIES}") if search.searcher == "mixture" else None
