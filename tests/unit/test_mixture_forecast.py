"""What the small models of a search over mixtures predict, and how it is shown."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored import run_record

from models.mixture_law import draw_weights, rounded
from models.training.report import Report
from workflows.runs.page.report import write_report
from workflows.search.mixture import forecast_of, values_of_weights
from workflows.search.plots import forecast_points
from workflows.search.records import FAILED, FINISHED, Search, Trial, read_search, write_search
from workflows.search.table import search_text
from workflows.stage import StageFailed
from workflows.store import Store

NAMES = ["shop", "talk"]
SHARES = np.array([0.75, 0.25])


def trial(number: int, weights: list[float], held_out: list[str]) -> Trial:
    """A trial whose loss of each source falls with the source's share."""
    losses = {name: float(2 + np.exp(-3 * share)) for name, share in zip(NAMES, weights, strict=True)}
    if len(held_out) == 1:  # then training reports no parts
        figures = {"held_out_loss": losses[held_out[0]]}
    else:
        parts = {f"held_out_loss_{name}": loss for name, loss in losses.items()}
        figures = {"held_out_loss": float(SHARES @ [*losses.values()]), **parts}
    return Trial(number, f"key{number}", values_of_weights(weights), FINISHED, [Report(8, 8, figures, None)])


def searched(weights: list[list[float]], held_out: list[str] = NAMES) -> Search:
    trials = [trial(number, each, held_out) for number, each in enumerate(weights)]
    return Search("mix", "abc", ["held_out_loss"], {}, "mixture", "none", len(trials), trials)


def drawn(count: int) -> list[list[float]]:
    return rounded(draw_weights(SHARES, count, np.random.default_rng(1))).tolist()


def test_the_best_mixture_is_predicted_from_the_losses_of_the_sources() -> None:
    forecast, (best, *_) = forecast_of(searched(drawn(40)), NAMES, SHARES, seed=0)
    grid = np.linspace(0, 1, 1001)
    losses = SHARES[0] * np.exp(-3 * grid) + SHARES[1] * np.exp(-3 * (1 - grid))
    assert best[0] == pytest.approx(grid[losses.argmin()], abs=0.03)
    assert forecast.spearman > 0.95
    assert forecast.predicted[0] <= min(forecast.predicted[1:]) + 1e-3


def test_a_source_without_held_out_conversations_helps_nothing() -> None:
    forecast, (best, *_) = forecast_of(searched(drawn(40), held_out=["talk"]), NAMES, SHARES, seed=0)
    assert best[1] > 0.99
    assert forecast.spearman > 0.95


def test_too_few_small_models_are_an_error_with_their_reasons() -> None:
    search = searched(drawn(5))
    search.trials += [Trial(9, "key9", values_of_weights([1, 0]), FAILED, error="the loss is not finite")]
    with pytest.raises(StageFailed, match=r"5 small models .* 6 are needed for 2 sources: the loss is not finite"):
        forecast_of(search, NAMES, SHARES, seed=0)


def test_it_is_in_the_text_on_the_page_and_in_the_record(tmp_path: Path) -> None:
    forecast, (best, *_) = forecast_of(searched(drawn(40)), NAMES, SHARES, seed=0)
    search = replace(searched([list(best), [0.75, 0.25], [0.5, 0.5]]), forecast=forecast)
    text = search_text(search)
    assert "predicted best" in text
    assert "in proportion to tokens  75.0%  25.0%" in text
    assert f"rank correlation of predicted and measured losses of 40 small models: {forecast.spearman:.2f}" in text
    figure = forecast_points(search)
    assert len(figure.data[1].x) == 40
    store = Store(str(tmp_path / "store"))
    write_search(store, search)
    assert read_search(store, "abc") == search
    store.write_run(run_record(to="tune", stages={"tune": {"key": "abc", "seconds": 9.0}}))
    page = write_report(store, "shop", None, str(tmp_path / "page.html"))[0].read_text()
    assert "small model, predicted" in page
    assert "equal shares" in page
