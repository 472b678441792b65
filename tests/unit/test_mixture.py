"""Sources by weight, repeats and temperature: each epoch's rows."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from models.errors import RayconteurError
from models.mixture import Mixture, MixtureSettings
from models.packing import StepPlan
from workflows.spec import DataSpec, PipelineSpec
from workflows.training.steps import mixture_of

SOURCES = [0] * 60 + [1] * 30 + [2] * 10
TOKENS = [10] * 60 + [20] * 30 + [100] * 10  # 600, 600 and 1,000 tokens


def read(settings: MixtureSettings, epochs: int) -> list[Counter[int]]:
    mixture = Mixture.of(SOURCES, TOKENS, settings)
    return [Counter(mixture.rows(epoch, seed=3).tolist()) for epoch in range(epochs)]


def tokens_by_source(rows: Counter[int]) -> dict[int, int]:
    found: Counter[int] = Counter()
    for row, times in rows.items():
        found[SOURCES[row]] += TOKENS[row] * times
    return dict(found)


def test_without_settings_an_epoch_reads_every_row_once() -> None:
    for rows in read(MixtureSettings(), 3):
        assert rows == Counter(range(100))


def test_weights_are_shares_of_tokens() -> None:
    settings = MixtureSettings(weights={0: 1, 1: 2, 2: 1})
    for rows in read(settings, 4):
        found = tokens_by_source(rows)
        assert sum(found.values()) == pytest.approx(2200, rel=0.05)
        assert found[1] / sum(found.values()) == pytest.approx(0.5, abs=0.03)


def test_a_source_is_read_evenly_over_the_epochs() -> None:
    """However its share falls between whole passes, no row is read twice more than another."""
    total: Counter[int] = Counter()
    for rows in read(MixtureSettings(weights={0: 5, 1: 2, 2: 1}), 7):
        total += rows
        for source in (0, 1, 2):
            counts = [total[row] for row in range(100) if SOURCES[row] == source]
            assert max(counts) - min(counts) <= 1


def test_a_source_without_a_weight_is_not_read() -> None:
    assert set(tokens_by_source(read(MixtureSettings(weights={1: 1}), 1)[0])) == {1}


def test_repeats() -> None:
    first, second = read(MixtureSettings(repeats={2: 2.5}), 2)
    assert all(first[row] == 1 for row in range(90))
    assert sum(first[row] for row in range(90, 100)) == 25
    assert all(first[row] + second[row] == 5 for row in range(90, 100))


def test_temperature_favours_small_sources() -> None:
    shares = []
    for temperature in (1.0, 2.0, 1e9):
        found = tokens_by_source(read(MixtureSettings(temperature=temperature), 1)[0])
        shares.append(found[2] / sum(found.values()))
    assert shares[0] == pytest.approx(1000 / 2200, abs=0.02)
    assert shares[0] > shares[1] > shares[2] == pytest.approx(1 / 3, abs=0.04)


def test_an_epoch_is_known_from_its_number_alone() -> None:
    settings = MixtureSettings(weights={0: 1, 1: 3, 2: 2})
    one, other = (Mixture.of(SOURCES, TOKENS, settings) for _ in range(2))
    expected = [one.rows(epoch, seed=1) for epoch in range(5)]
    assert np.array_equal(other.rows(4, seed=1), expected[4])
    assert not np.array_equal(other.rows(4, seed=2), expected[4])


def test_weights_of_zero_alone_are_refused() -> None:
    with pytest.raises(RayconteurError, match=r"data\.sources: every source that has conversations has weight 0"):
        Mixture.of(SOURCES, TOKENS, MixtureSettings(weights={0: 0, 7: 1}))


def plan_of(settings: MixtureSettings) -> StepPlan:
    mixture = Mixture.of(SOURCES, TOKENS, settings)
    return StepPlan(TOKENS, TOKENS, 150, num_workers=2, gradient_accumulation=2, seed=5, mixture=mixture)


def test_the_steps_of_an_epoch_read_the_rows_of_the_mixture_in_any_order_of_asking() -> None:
    settings = MixtureSettings(repeats={0: 0.5, 2: 2.0})
    plan = plan_of(settings)
    for epoch in (3, 0, 1):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        found = Counter(row for step in steps for rows in plan.rows(step) for row in rows)
        assert found == Counter(Mixture.of(SOURCES, TOKENS, settings).rows(epoch, seed=5).tolist())
        assert plan_of(settings).rows(steps[1]) == plan.rows(steps[1])
        assert all(sum(TOKENS[row] for row in rows) <= 150 for step in steps for rows in plan.rows(step) if rows[1:])


def test_without_settings_the_steps_are_those_without_a_mixture() -> None:
    plain = StepPlan(TOKENS, TOKENS, 150, num_workers=2, gradient_accumulation=2, seed=5)
    mixed = plan_of(MixtureSettings())
    assert mixed.steps_per_epoch == plain.steps_per_epoch
    counts = [Counter(row for rows in plan.rows(2) for row in rows) for plan in (plain, mixed)]
    assert counts[0].total() > 1
    assert counts[0].keys() <= set(range(100))


@pytest.mark.parametrize(("data", "problem"), [
    ({"sources": [{"path": "a", "weight": 1}, {"path": "b"}]}, "sources.1 has no weight, and others have one"),
    ({"sources": [{"path": "a", "weight": 0}, {"path": "b", "weight": 0}]}, "every source has weight 0"),
    ({"sources": [{"path": "a", "weight": 1}], "temperature": 2}, "exclude each other"),
    ({"sources": [{"path": "a", "repeat": 2}], "temperature": 2}, "exclude each other"),
    ({"sources": [{"path": "a", "weight": 1, "repeat": 2}]}, "exclude each other"),
])  # fmt: skip
def test_what_cannot_be_one_mixture_is_refused(data: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DataSpec.model_validate(data)


def test_the_entries_of_the_sources_decide_and_not_their_files() -> None:
    data = DataSpec.model_validate({"sources": [{"path": "folder", "weight": 3}, {"path": "b", "weight": 1}]})
    mixture = mixture_of(data, entries=(0, 0, 1), files=SOURCES, num_tokens=TOKENS)
    assert mixture is not None
    found = tokens_by_source(Counter(mixture.rows(0, 0).tolist()))
    assert found[2] / sum(found.values()) == pytest.approx(0.25, abs=0.05)
    assert mixture_of(DataSpec.model_validate({"sources": [{"path": "a"}]}), (), SOURCES, TOKENS) is None
    one = DataSpec.model_validate({"sources": [{"path": "folder", "repeat": 2}]})
    twice = mixture_of(one, (), SOURCES, TOKENS)
    assert twice is not None
    assert len(twice.rows(0, 0)) == 200


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tune": {"searcher": "mixture", "trials": 5}}, "leave out trials"),
        ({"tune": {"searcher": "mixture", "space": {"train.epochs": [1, 2]}}}, "leave out space"),
        ({"tune": {"searcher": "mixture", "scheduler": "asha"}}, "leave out scheduler and metric"),
        ({"tune": {"searcher": {"name": "mixture", "proxy": {"hidden_size": 100}}}}, "multiple of 64"),
        ({"train": {"objective": "dpo"}}, "with train.objective sft, which is dpo"),
        ({"data": {"sources": [{"path": "a"}]}}, "needs two or more data.sources"),
        ({"data": {"sources": [{"path": "a"}, {"path": "b"}], "temperature": 2}}, "leave out data.temperature"),
        ({"data": {"sources": [{"path": "a"}, {"path": "b", "repeat": 2}]}}, "leave out data.temperature and repeat"),
    ],
)
def test_a_search_over_mixtures_that_cannot_be_is_refused(changed: dict[str, Any], words: str) -> None:
    plain = {
        "name": "mix", "base_model": "random:tiny-llama", "data": {"sources": [{"path": "a"}, {"path": "b"}]},
        "tune": {"searcher": "mixture"},
    }  # fmt: skip
    PipelineSpec.model_validate(plain)
    with pytest.raises(ValidationError, match=words):
        PipelineSpec.model_validate({**plain, **changed})
