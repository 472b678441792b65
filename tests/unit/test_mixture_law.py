"""The regression of a search over mixtures: finds a known law again, and its best mixture."""

import numpy as np
import pytest

from models.mixture_law import MixtureLaw, best_weights, cross_validated, draw_weights, rounded

SHARES = np.array([0.7, 0.2, 0.1])
FLOORS = np.array([1.0, 1.5, 2.0])
SLOPES = np.array([[-1.0, 0.4, 0.3], [0.5, -2.0, 0.2], [0.6, 0.5, -3.0]])


def measured(weights, noise=0.0):
    losses = FLOORS + np.exp(weights @ SLOPES.T)
    losses = losses + noise * np.random.default_rng(5).standard_normal(losses.shape)
    return losses, losses @ SHARES


def test_a_law_is_found_again_from_noisy_losses():
    weights = draw_weights(SHARES, 64, np.random.default_rng(0))
    unseen = draw_weights(SHARES, 200, np.random.default_rng(1))
    law = MixtureLaw.fit(weights, *measured(weights, noise=0.005))
    assert law.sizes == pytest.approx(SHARES, abs=1e-6)
    assert law.predict(unseen) == pytest.approx(measured(unseen)[1], abs=0.02)
    checked = cross_validated(weights, *measured(weights, noise=0.005))
    assert np.corrcoef(checked, measured(weights)[1])[0, 1] > 0.98


def test_the_best_weights_are_those_of_the_law():
    weights = draw_weights(SHARES, 64, np.random.default_rng(0))
    best = best_weights(MixtureLaw.fit(weights, *measured(weights)), SHARES, seed=0)
    steps = np.linspace(0, 1, 101)
    grid = np.array([[one, other, 1 - one - other] for one in steps for other in steps if one + other <= 1])
    _, losses = measured(grid)
    assert best == pytest.approx(grid[losses.argmin()], abs=0.05)
    assert measured(best[None])[1][0] < losses.min() + 0.002
    assert best.tolist() == best_weights(MixtureLaw.fit(weights, *measured(weights)), SHARES, seed=0).tolist()


def test_drawn_weights_are_shares_of_all_degrees():
    weights = rounded(draw_weights([0.98, 0.01, 0.01], 500, np.random.default_rng(0)))
    assert weights.sum(axis=1) == pytest.approx(np.ones(500), abs=2e-4)
    assert (weights >= 0).all()
    assert weights.min(axis=0).max() < 0.01
    assert weights.max(axis=0).min() > 0.8
