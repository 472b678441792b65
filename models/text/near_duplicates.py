"""Near-duplicates among texts: MinHash signatures in bands propose pairs, the texts' own shingles decide.

bands = Bands.at(threshold=0.8)
keys = bands.keys(texts)                              # (D, 21): texts with one key in common are candidates
pairs = candidate_pairs(keys.ravel(), np.repeat(numbers, bands.count))      # (P, 2), to be compared by `similarity`
members, clusters = components(similar_pairs)        # (M,) numbers, and the smallest number of the cluster of each

Signatures: Broder 1997; bands: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4. Of r rows a
band and b bands, two texts with Jaccard index s share a key with probability 1 - (1 - s^r)^b.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.text.shingles import Hashes, all_shingles

_PERMUTATIONS = 128
_SEED = 1
# At the threshold itself; more similar pairs are found more surely.
_MIN_RECALL = 0.995
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bands:
    """How a signature is cut into keys."""

    count: int
    rows: int

    @classmethod
    def at(cls, threshold: float) -> "Bands":
        """The bands of the most rows, so the fewest candidates, that still find 99.5% of the pairs at `threshold`."""
        for rows in range(_PERMUTATIONS // 2, 1, -1):
            bands = cls(_PERMUTATIONS // rows, rows)
            if bands.recall(threshold) >= _MIN_RECALL:
                return bands
        return cls(_PERMUTATIONS, 1)

    def recall(self, similarity: float) -> float:
        """The probability that two texts with this Jaccard index share a key."""
        return 1 - (1 - similarity**self.rows) ** self.count

    def keys(self, texts: Sequence[str]) -> Hashes:
        """(D, count) the keys of each text; those of different bands differ."""
        from rensa import RMinHash

        if not len(texts):
            return np.empty((0, self.count), np.uint64)
        shingles = all_shingles(texts)
        size = self.count * self.rows
        starts = shingles.starts.astype(np.uint64)
        signatures = RMinHash.digest_matrix_from_flat_token_hashes(shingles.hashes, starts, size, _SEED).to_rows()
        parts = np.array(signatures, np.uint64).reshape(len(texts), self.count, self.rows)
        keys = np.broadcast_to(np.arange(self.count, dtype=np.uint64), parts.shape[:2]).copy()
        for row in range(self.rows):
            keys = (keys ^ parts[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        return keys


# Of texts that share a key: each with the next ones in order, and with the first.
_NEIGHBOURS = 16


def candidate_pairs(keys: Hashes, numbers: Numbers) -> Numbers:
    """(P, 2) pairs of different numbers (smaller first, each pair once) whose texts share a key.

    `keys` and `numbers`: (N,) each a key and the text that has it. Where very many texts share one (a template, a
    greeting), each is paired with its neighbours and with the first, which is enough to join them in one cluster:
    P grows with N, not with its square.
    """
    order = np.lexsort((numbers, keys))
    keys, numbers = keys[order], numbers[order]
    first = np.searchsorted(keys, keys)
    found = [np.stack([numbers[first], numbers], axis=1)]
    for distance in range(1, _NEIGHBOURS + 1):
        same = np.flatnonzero(keys[distance:] == keys[:-distance])
        if not len(same):
            break
        found.append(np.stack([numbers[same], numbers[same + distance]], axis=1))
    pairs = np.concatenate(found)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def components(pairs: Numbers) -> tuple[Numbers, Numbers]:
    """The clusters that pairs (P, 2) join: the numbers in them, sorted, and for each the smallest of its cluster.

    Every number points at the smallest one known of its cluster, and follows what that one points at (Shiloach and
    Vishkin 1982), on arrays: as many pairs as memory holds.
    """
    numbers, places = np.unique(pairs, return_inverse=True)
    one, other = places.reshape(-1, 2).T
    smallest = np.arange(len(numbers))
    while True:
        low = np.minimum(smallest[one], smallest[other])
        before = smallest.copy()
        for side in (smallest[one], smallest[other]):
            np.minimum.at(smallest, side, low)
        smallest = smallest[smallest]
        if np.array_equal(before, smallest):
            return numbers, numbers[smallest]
