"""Near-duplicates among the rows of a corpus, found by tasks over its files on all nodes.

found = find_near_duplicates(filesystem, files, data.deduplicate, board)
found.members, found.kept, found.similarity

Four steps, each a task for a file or for a share of the keys; between them Ray's object store holds the pieces, and
spills them to disk where memory is short:

1. of each file, the keys of its rows' signatures, by key;
2. of each share of the keys, the pairs of rows that have one in common, by pair;
3. of each file, the shingles of the rows that are in a pair;
4. of each share of the pairs, those whose texts are similar enough.

What comes back to this process grows with the near-duplicates found, not with the corpus.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet
import ray

from models.chat.form import Message
from models.text.near_duplicates import Bands, Numbers, candidate_pairs, components
from models.text.shingles import Hashes, Shingles, is_first, similarity
from workflows.corpus.reader import conversations_of
from workflows.spec.data import DeduplicateSpec

_BYTES_OF_A_KEY = 16
_SHARE_BYTES = 64 << 20


@dataclass(frozen=True)
class NearDuplicates:
    """Clusters of rows, each row by its number; all arrays are (M,), in the order of the numbers."""

    members: Numbers
    """all rows that are in a cluster"""

    kept: Numbers
    """the longest row of each one's cluster, of equally long ones the first"""

    similarity: Any
    """the largest Jaccard index of each one with another of its cluster"""


def find_near_duplicates(
    filesystem: Any, files: Sequence[str], settings: DeduplicateSpec, board: Any, bytes_of_a_share: int = _SHARE_BYTES
) -> NearDuplicates:
    """Clusters among the rows of Parquet files with `source`, `line` and `messages`.

    `board` counts every row twice.
    """
    threshold, compare = settings.threshold, settings.compare
    rows = sum(pyarrow.parquet.read_metadata(file, filesystem=filesystem).num_rows for file in files)
    board.post.remote(total=2 * rows)
    size = rows * Bands.at(threshold).count * _BYTES_OF_A_KEY
    shares = 2 + size // bytes_of_a_share
    many = ray.remote(num_cpus=1, num_returns=shares)
    keys_of, candidates_of, shingles_of = map(many, (_keys, _candidates, _wanted_shingles))
    unique_of, similar_of = ray.remote(num_cpus=1, num_returns=2)(_unique), ray.remote(num_cpus=1)(_similar)
    keys = [keys_of.remote(filesystem, file, settings, shares, board) for file in files]
    found = [candidates_of.remote(shares, *(each[share] for each in keys)) for share in range(shares)]
    del keys
    pairs = [unique_of.remote(*(each[share] for each in found)) for share in range(shares)]
    del found
    wanted = [each[1] for each in pairs]
    texts = [shingles_of.remote(filesystem, file, compare, board, *wanted) for file in files]
    similar = [
        similar_of.remote(threshold, pairs[share][0], *(each[share] for each in texts)) for share in range(shares)
    ]
    del texts
    return _clusters(ray.get(similar))


_Share = tuple[Hashes, Numbers]
_Texts = tuple[Numbers, Numbers, Shingles]  # number, length in characters and shingles of each
_Similar = tuple[Numbers, Numbers, Any]  # (P, 2) pairs, (P, 2) lengths, (P,) similarity


def _keys(filesystem: Any, file: str, settings: DeduplicateSpec, shares: int, board: Any) -> list[_Share]:
    """Keys and numbers of the file's rows, by share."""
    bands = Bands.at(settings.threshold)
    found: list[_Share] = [(np.empty(0, np.uint64), np.empty(0, np.int64))]
    for numbers, texts in _texts(filesystem, file, settings.compare):
        keys = bands.keys(texts)
        found.append((keys.ravel(), np.repeat(numbers, bands.count)))
        board.add.remote(done=len(texts))
    keys, numbers = (np.concatenate(column) for column in zip(*found, strict=True))
    share = keys % np.uint64(shares)
    return [(keys[share == each], numbers[share == each]) for each in range(shares)]


def _candidates(shares: int, *pieces: _Share) -> list[Numbers]:
    """Pairs of rows with a key in common, by share."""
    keys, numbers = (np.concatenate(column) for column in zip(*pieces, strict=True))
    pairs = candidate_pairs(keys, numbers)
    share = pairs[:, 0] % shares
    return [pairs[share == each] for each in range(shares)]


def _unique(*pieces: Numbers) -> tuple[Numbers, Numbers]:
    """Each pair once, and the rows that are in them."""
    pairs = np.unique(np.concatenate(pieces), axis=0)
    return pairs, np.unique(pairs)


def _wanted_shingles(filesystem: Any, file: str, compare: str, board: Any, *wanted: Numbers) -> list[_Texts]:
    """The file's rows that each share wants."""
    found: list[list[_Texts]] = [[] for _ in wanted]
    everything = np.unique(np.concatenate(wanted))
    for numbers, texts in _texts(filesystem, file, compare, everything):
        shingles = Shingles.of(texts)
        lengths = np.array([len(text) for text in texts], np.int64)
        for share, theirs in enumerate(wanted):
            inside = np.isin(numbers, theirs)
            found[share].append((numbers[inside], lengths[inside], shingles.only(inside)))
    board.add.remote(done=pyarrow.parquet.read_metadata(file, filesystem=filesystem).num_rows)
    return [_joined(each) for each in found]


def _similar(threshold: float, pairs: Numbers, *pieces: _Texts) -> _Similar:
    """The pairs whose texts are as similar as `threshold`, with the lengths of both."""
    numbers, lengths, shingles = _joined(pieces)
    order = np.argsort(numbers)
    at = order[np.searchsorted(numbers, pairs, sorter=order)]
    alike = np.array([similarity(shingles[one], shingles[other]) for one, other in at], np.float64)
    enough = alike >= threshold
    return pairs[enough], lengths[at[enough]], alike[enough]


def _texts(
    filesystem: Any, file: str, compare: str, only: Numbers | None = None
) -> Iterator[tuple[Numbers, list[str]]]:
    """Numbers and texts of a file's rows, or of `only` these, some at a time."""
    for numbers, conversations in conversations_of(filesystem, file, only):
        yield numbers, [text_of(messages, compare) for messages in conversations]


def text_of(messages: Sequence[Message], compare: str) -> str:
    """What is compared: the texts of all messages, or of the replies, one after the other."""
    taken = [message for message in messages if compare == "conversations" or message["role"] == "assistant"]
    return "\n".join(message["content"] for message in taken)


def _joined(pieces: Sequence[_Texts]) -> _Texts:
    numbers, lengths, shingles = zip(*pieces, strict=True)
    return np.concatenate(numbers), np.concatenate(lengths), Shingles.joined(shingles)


def _clusters(found: Sequence[_Similar]) -> NearDuplicates:
    pairs, lengths, alike = (np.concatenate(column) for column in zip(*found, strict=True))
    members, clusters = components(pairs)
    size = np.zeros(len(members), np.int64)
    most = np.zeros(len(members))
    for side in (0, 1):
        place = np.searchsorted(members, pairs[:, side])
        size[place] = lengths[:, side]
        np.maximum.at(most, place, alike)
    # By cluster, the longest first, then the first in the order of the sources.
    order = np.lexsort((members, -size, clusters))
    first = order[is_first(clusters[order])]
    kept = members[first][np.searchsorted(clusters[first], clusters)]
    return NearDuplicates(members, kept, most)
