"""A search on a small model, whose region the base model searches."""

from collections.abc import Callable
from typing import Any

import pytest

from workflows.cli.trials import find_searches
from workflows.search.records import read_search
from workflows.spec import PipelineSpec
from workflows.spec.space import dimensions_of

RATE = "train.learning_rate"


@pytest.mark.slow
def test_the_base_model_searches_the_region_of_the_small_ones_best_trials(
    run: Callable[..., Any], tiny: dict[str, Any]
) -> None:
    """The proxy has another tokenizer, so its conversations are prepared anew."""
    tiny["train"] |= {
        "num_workers": 1, "max_steps": 6, "checkpoint_every_steps": 6, "adapter": {"method": "mua", "rank": 4},
    }  # fmt: skip
    tiny["tune"] = {
        "space": {RATE: {"loguniform": [1e-5, 1e-1]}, "train.adapter.rank": [2, 4]},
        "trials": 2, "max_concurrent": 2, "proxy": {"base_model": "random:tiny-gpt2", "trials": 6},
    }  # fmt: skip
    done, store = run("train", tiny)
    search = read_search(store, done["tune"].key)
    assert search is not None
    assert search.proxy is not None
    proxy = read_search(store, search.proxy.search)
    assert proxy is not None
    assert (proxy.pipeline, len(proxy.trials)) == (f"{tiny['name']}.proxy", 6)
    assert (search.proxy.base_model, search.proxy.trials, search.proxy.best) == ("random:tiny-gpt2", 6, 3)
    assert proxy.winner is not None
    [best] = [trial for trial in proxy.trials if trial.key == proxy.winner.key]
    first, second = sorted(search.trials, key=lambda trial: trial.number)
    assert first.values == best.values == search.proxy.first
    region = dimensions_of(search.space)[RATE]
    assert 1e-5 <= region.low < best.values[RATE] < region.high <= 1e-1
    assert region.low <= second.values[RATE] <= region.high
    assert search.winner is not None
    assert not {trial.key for trial in search.trials} & {trial.key for trial in proxy.trials}
    prepared = {artifact.key for artifact in store.all_of("prepare")}
    assert len(prepared) == 2
    spec = PipelineSpec.model_validate(tiny)
    assert [each.key for each in find_searches(spec, store, None)] == [proxy.key, search.key]

    tiny["tune"]["trials"] = 3
    again, _ = run("tune", tiny)
    wider = read_search(store, again["tune"].key)
    assert wider is not None
    assert wider.proxy == search.proxy, "the proxy's search is done"
    assert [len(trial.reports) > trial.reused for trial in sorted(wider.trials, key=lambda t: t.number)] == [
        False, False, True,
    ]  # fmt: skip
