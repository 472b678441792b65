"""Predict the held-out loss of a mixture of sources from the losses that small models reached on other mixtures.

law = MixtureLaw.fit(weights, losses, total) # (N, S) shares of the sources, (N, P) losses of the parts, (N,) of all
law.predict(weights)                         # (N,) the loss over all parts
best_weights(law, shares, seed=0)            # (S,) the mixture of the lowest predicted loss

The search is RegMix's (Liu et al. 2025, arXiv:2407.01492): many small models, a regression, and the mean of the best
of many simulated mixtures. The regression is the data mixing law (Ye et al. 2025, arXiv:2403.16952, eq. 8), which
needs fewer points than RegMix's trees: the loss of each part of the held-out conversations is
L(r) = c + exp(t r) for the shares r, with c and the S values of t fitted by robust least squares. (The paper's
factor k is in t, since the shares have a sum of 1.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

_DRAWN = 100_000
_MEAN_OF = 100
_FOLDS = 5
# RegMix draws from Dirichlet distributions around the sources' own shares, concentrated to different degrees.
_CONCENTRATIONS = (0.5, 5.0)
_DECIMALS = 4
# In nats; larger differences count less than their squares: with hardly any of a source, small models differ much.
_NOISE = 0.05


@dataclass(frozen=True)
class MixtureLaw:
    """The fitted law of each part."""

    floors: Numbers
    """(P,) c"""
    slopes: Numbers
    """(P, S) t"""
    sizes: Numbers
    """(P,) each part's share of the loss over all"""

    @classmethod
    def fit(cls, weights: Any, losses: Any, total: Any) -> "MixtureLaw":
        """`weights` (N, S), `losses` (N, P) of the parts, `total` (N,) over all parts: their mean, weighted by their
        tokens, which the fit finds out.
        """
        from scipy.optimize import nnls

        weights, losses = np.asarray(weights, float), np.asarray(losses, float)
        fitted = [_fit_part(weights, part) for part in losses.T]
        sizes, _ = nnls(losses, np.asarray(total, float))
        return cls(
            np.array([floor for floor, _ in fitted]),
            np.array([slopes for _, slopes in fitted]),
            sizes,
        )

    def predict(self, weights: Any) -> Numbers:
        """(N,) the loss over all parts, for `weights` (N, S)."""
        parts = self.floors + np.exp(np.asarray(weights, float) @ self.slopes.T)
        predicted: Numbers = parts @ self.sizes
        return predicted


def _fit_part(weights: Numbers, losses: Numbers) -> tuple[float, Numbers]:
    from scipy.optimize import least_squares

    def rest(values: Numbers) -> Any:
        return values[0] + np.exp(weights @ values[1:]) - losses

    # From half the lowest loss, where the logarithm of what is above it is nearly linear in the shares.
    floor = losses.min() / 2
    slopes, *_ = np.linalg.lstsq(weights, np.log(losses - floor), rcond=None)
    found = least_squares(rest, np.concatenate([[floor], slopes]), loss="soft_l1", f_scale=_NOISE, max_nfev=2000)
    return float(found.x[0]), found.x[1:]


def draw_weights(shares: Any, count: int, draw: np.random.Generator) -> Numbers:
    """(count, S) random mixtures around the sources' own `shares` (S,), each with a sum of 1.

    A larger `count` begins with the same mixtures.
    """
    of_concentrations, of_gammas = draw.spawn(2)
    shares = np.asarray(shares, float)
    low, high = _CONCENTRATIONS
    concentrations = np.exp(of_concentrations.uniform(np.log(low), np.log(high), count)) * len(shares)
    # Half of them around equal shares: otherwise few mixtures have much of a small source.
    equal = np.full(len(shares), 1 / len(shares))
    centres = np.where((np.arange(count) % 2 == 0)[:, None], shares, equal)
    gammas = of_gammas.gamma(np.maximum(centres * concentrations[:, None], 1e-2))
    weights: Numbers = gammas / gammas.sum(axis=1, keepdims=True)
    return weights


def best_weights(law: MixtureLaw, shares: Any, seed: int) -> Numbers:
    """(S,) the mean of the mixtures with the lowest predicted loss, among many drawn ones."""
    drawn = draw_weights(shares, _DRAWN, np.random.default_rng([seed, 1]))
    best = np.argsort(law.predict(drawn), kind="stable")[:_MEAN_OF]
    return rounded(drawn[best].mean(axis=0))


def rounded(weights: Any) -> Numbers:
    """Shares as a person would write them."""
    found: Numbers = np.round(np.asarray(weights, float), _DECIMALS)
    return found


def cross_validated(weights: Any, losses: Any, total: Any) -> Numbers:
    """(N,) the loss of each mixture, predicted by a law that was fitted without it."""
    weights, losses, total = (np.asarray(each, float) for each in (weights, losses, total))
    predicted = np.empty(len(weights))
    for fold in range(_FOLDS):
        out = np.arange(len(weights)) % _FOLDS == fold
        predicted[out] = MixtureLaw.fit(weights[~out], losses[~out], total[~out]).predict(weights[out])
    return predicted
