"""What further trials are expected to gain (`tune.min_gain`). Decides by reports alone; imports no Ray.

gain = Gain()
gain.report(trial=7, tokens=17_000, whole=120_000, badness=2.41)
gain.end(7)
gain.expected()     # the improvement that as many tokens as a whole training takes are expected to bring
"""

import math
import statistics

# The best values whose spacings say how far apart the next two best ones are.
_BEST = 5
# Trials that must have ended before anything is expected of the next ones.
_LEAST = 10


class Gain:
    """Looks at the later half of the ended trials, since a searcher's trials become better.

    The last of n exchangeable trials is the best with probability 1/n, and then it improves on the others by the
    distance of the best two. Their expected distance follows from the best few: i times the distance from the i-th
    best to the next one has the same expectation for all small i if the tail is exponential (Rényi 1953), and grows
    with i if losses have a bound, so the estimate is cautious.
    """

    def __init__(self) -> None:
        self._best: dict[int, float] = {}
        self._tokens: dict[int, float] = {}
        self._whole = 0.0
        self._ended: list[int] = []

    def report(self, trial: int, tokens: float, whole: float, badness: float) -> None:
        """A trial has reported, after `tokens` of the `whole` of its training."""
        self._tokens[trial], self._whole = tokens, max(self._whole, whole)
        if math.isfinite(badness):
            self._best[trial] = min(badness, self._best.get(trial, math.inf))

    def end(self, trial: int) -> None:
        """A trial has ended."""
        if trial in self._tokens:
            self._ended.append(trial)

    def expected(self) -> float | None:
        """The expected improvement by further trials for the tokens of a whole training; None while it is unknown."""
        if len(self._ended) < _LEAST:
            return None
        late = self._ended[len(self._ended) // 2 :]
        values = sorted(self._best[trial] for trial in late if trial in self._best)
        best = min(self._best.values(), default=math.inf)
        if len(values) <= _BEST:
            return None
        if best < values[0]:
            values.insert(0, best)
        distance = values[_BEST] - statistics.fmean(values[:_BEST])
        tokens = statistics.fmean(self._tokens[trial] for trial in late)
        return distance / (len(late) + 1) * self._whole / tokens
