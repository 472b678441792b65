"""The region of the best trials of a search on a small model, and the search that it gives to the base model."""

from pathlib import Path
from typing import Any

import pytest

from models.training.report import Report
from workflows.search.records import OnProxy, Search, Trial, read_search, write_search
from workflows.search.region import Region, for_width, region_of
from workflows.search.table import region_text, search_text
from workflows.search.tuner import searcher_of
from workflows.spec import TrainSpec, TuneSpec
from workflows.spec.errors import SpecError
from workflows.spec.paths import local_paths, with_paths
from workflows.spec.read import read_spec
from workflows.spec.space import dimension_of, dimensions_of, entry_of, proxy_pipeline
from workflows.stage import StageFailed
from workflows.store import Store

RATE, RANK, METHOD = "train.learning_rate", "train.adapter.rank", "train.adapter.method"


def search_of(space: dict[str, Any], trials: list[tuple[dict[str, Any], float]]) -> Search:
    made = [
        Trial(number, str(number), values, "finished", [Report(10, 10, {"held_out_loss": loss})])
        for number, (values, loss) in enumerate(trials)
    ]
    return Search("shop.proxy", "key", ["held_out_loss"], space, "random", "none", len(made), made)


def test_a_range_becomes_that_of_the_best_trials_and_a_margin() -> None:
    """Of 15 rates, 4 to a decade, the best four go from 10^-3.5 to 10^-2.75; the margin is 1/16 of the range."""
    rates = [10 ** (-5 + number / 4) for number in range(15)]
    search = search_of({RATE: {"loguniform": [1e-5, 1e-1]}}, [({RATE: rate}, abs(rate / 1e-3 - 1)) for rate in rates])
    found = region_of(search, best_share=0.25)
    (low, high) = found.space[RATE]["loguniform"]
    assert found.best == {RATE: pytest.approx(1e-3)}
    assert found.num_best == 4
    margin = 4 / 16
    assert low == pytest.approx(10 ** (-3.5 - margin))
    assert high == pytest.approx(10 ** (-2.75 + margin))


def test_a_region_never_leaves_the_space_and_has_three_trials() -> None:
    space = {RATE: {"uniform": [0.0, 1.0]}, RANK: {"int": [4, 64], "step": 4}, "train.seed": {"logint": [1, 100]}}
    trials = [({RATE: number / 4, RANK: 4, "train.seed": 100}, float(number)) for number in range(5)]
    found = region_of(search_of(space, trials), best_share=0.01)
    assert found.num_best == 3
    assert found.space[RATE] == {"uniform": [0.0, pytest.approx(0.5 + 1 / 6)]}
    assert found.space[RANK] == {"int": [4, 16], "step": 4}
    assert found.space["train.seed"]["logint"][1] == 100
    assert dimensions_of(found.space)[RANK].count == 4


def test_a_list_keeps_the_choices_of_the_best_trials_and_loses_conditions() -> None:
    space = {
        METHOD: ["lora", "rslora", "mua"],
        "train.adapter.alpha": {"when": {METHOD: ["lora", "rslora"]}, "choices": [8, 16]},
        RANK: [4, 16, 64],
    }
    trials: list[tuple[dict[str, Any], float]] = [
        ({METHOD: "mua", RANK: 64}, 1.0), ({METHOD: "mua", RANK: 4}, 1.1), ({METHOD: "mua", RANK: 4}, 1.2),
        ({METHOD: "lora", "train.adapter.alpha": 8, RANK: 16}, 2.0),
    ]  # fmt: skip
    assert region_of(search_of(space, trials), 0.5).space == {METHOD: ["mua"], RANK: [4, 64]}
    both = region_of(search_of(space, trials), 1.0).space
    assert both[METHOD] == ["lora", "mua"]
    assert both["train.adapter.alpha"] == {"when": {METHOD: ["lora", "rslora"]}, "choices": [8]}


@pytest.mark.parametrize(("adapter", "factor"), [
    (None, 0.25), ({"method": "mua"}, 0.25), ({}, 0.5), ({"method": "rslora"}, 0.5),
])  # fmt: skip
def test_learning_rates_fall_with_the_width(adapter: Any, factor: float) -> None:
    train = TrainSpec.model_validate({"adapter": adapter})
    wide = for_width(Region({RATE: {"loguniform": [1e-3, 4e-3]}, RANK: [4, 8]}, {RATE: 2e-3, RANK: 4}, 3), train, 4.0)
    assert wide.space == {RATE: {"loguniform": [1e-3 * factor, 4e-3 * factor]}, RANK: [4, 8]}
    assert (wide.best, wide.rate_factor) == ({RATE: 2e-3 * factor, RANK: 4}, factor)
    chosen = for_width(
        Region({RATE: [1e-3, 3e-3], METHOD: ["lora", "mua"]}, {RATE: 3e-3, METHOD: "mua"}, 3), train, 4.0
    )
    assert chosen.space[RATE] == [2.5e-4, 7.5e-4]
    assert chosen.best[RATE] == 7.5e-4
    assert (
        for_width(narrow := Region({RATE: {"loguniform": [1 / 3000, 4e-3]}}, {RATE: 1 / 700}, 3), train, 1.0)
        == narrow
    )
    same = Region({RANK: [4, 8]}, {RANK: 4}, 3)
    assert for_width(same, train, 4.0) == same


def test_a_search_without_a_report_has_no_region() -> None:
    with pytest.raises(StageFailed, match=r"tune\.proxy: no trial of the small model has reported"):
        region_of(search_of({RATE: [1e-3]}, [({RATE: 1e-3}, float("nan"))]), 0.25)


@pytest.mark.parametrize("entry", [
    [8, 16], {"uniform": [0.0, 0.5]}, {"loguniform": [1e-5, 1e-3]}, {"int": [8, 64], "step": 8}, {"logint": [1, 64]},
    {"when": {METHOD: ["lora"]}, "choices": [8, 16]}, {"when": {METHOD: ["lora"]}, "int": [1, 3]},
])  # fmt: skip
def test_an_entry_comes_back_from_its_dimension(entry: Any) -> None:
    assert entry_of(dimension_of(entry)) == entry


@pytest.mark.parametrize("searcher", ["random", "grid", "tpe"])
def test_the_base_model_tries_the_best_setting_of_the_proxy_first(searcher: str) -> None:
    tune = TuneSpec.model_validate({"space": {RANK: [4, 8, 16]}, "trials": 3, "searcher": searcher})
    made = searcher_of(tune, dimensions_of(tune.space), {}, {RANK: 16})
    tried = [made.suggest(str(number))["values"][RANK] for number in range(3)]
    assert tried[0] == 16
    assert sorted(tried) == [4, 8, 16]


FILE = """\
name: shop
base_model: random:tiny-llama
data: {sources: [{path: talks.jsonl}]}
tune:
  space: {train.learning_rate: {loguniform: [1e-4, 1e-2]}}
  trials: 4
  proxy: {base_model: random:tiny-gpt2, trials: 20}
"""


def written(folder: Path, text: str = FILE) -> Path:
    (folder / "shop.yaml").write_text(text)
    return folder / "shop.yaml"


def test_the_pipeline_of_the_proxy(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path), ["tune.time_minutes=5"])
    proxy = proxy_pipeline(spec)
    assert (proxy.name, proxy.base_model) == ("shop.proxy", "random:tiny-gpt2")
    assert proxy.tune is not None
    assert (proxy.tune.trials, proxy.tune.time_minutes, proxy.tune.proxy) == (20, None, None)
    assert proxy.train == spec.train
    assert spec.tune is not None
    without = read_spec(written(tmp_path), ["tune.proxy=null"]).tune
    assert without is not None
    assert "proxy" not in without.result_fields(), "keys of searches without a proxy stay"


def test_a_proxy_in_a_folder_travels_with_the_pipeline(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path), ["tune.proxy.base_model=./small"])
    assert local_paths(spec)["tune.proxy.base_model"] == str(tmp_path / "small")
    moved = with_paths(spec, {"tune.proxy.base_model": "/there"}).tune
    assert moved is not None
    assert moved.proxy is not None
    assert moved.proxy.base_model == "/there"


@pytest.mark.parametrize(("overrides", "words"), [
    (["tune.proxy.base_model=random:tiny-llama"], "tune.proxy.base_model is base_model itself, random:tiny-llama"),
    (["tune.proxy.base_model=new"], "and tune.proxy.base_model is new"),
    (["base_model=new", "train.adapter=null"], "and base_model is new"),
    (["tune.scheduler=population"], "tune: scheduler population changes settings during a training"),
    (["tune.searcher=mixture", "tune.space={}", "tune.trials=null"], "searcher mixture has small models of its"),
    (["tune.proxy.trials=2"], "tune.proxy.trials: got 2; must be greater than or equal to 3"),
    (["tune.space={base_model: [a, b]}"], "base_model: decides what all trials share"),
])  # fmt: skip
def test_what_a_proxy_cannot_do(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_spec(written(tmp_path), overrides)
    assert words in str(caught.value)


def test_a_search_says_where_its_space_is_from(tmp_path: Path) -> None:
    space = {RATE: {"loguniform": [1e-4, 4e-4]}, RANK: [4, 8]}
    search = search_of(space, [({RATE: 1e-4, RANK: 4}, 1.0)])
    search.proxy = OnProxy("random:tiny-gpt2", "small", 20, 5, {RATE: 2e-4, RANK: 4})
    said = "the best 5 of 20 trials on random:tiny-gpt2 span the region train.learning_rate 0.0001 to 0.0004, "
    assert region_text(search.proxy, space) == f"{said}train.adapter.rank 4 or 8"
    moved = OnProxy("random:tiny-gpt2", "small", 20, 5, {RATE: 2e-4, RANK: 4}, 0.25)
    assert region_text(moved, space) == f"{said}train.adapter.rank 4 or 8 (rates times 0.25 for the width)"
    assert f"proxy: {said}" in search_text(search)
    store = Store(str(tmp_path))
    write_search(store, search)
    read = read_search(store, "key")
    assert read is not None
    assert read.proxy == search.proxy
