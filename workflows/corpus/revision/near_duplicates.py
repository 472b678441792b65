"""Near-duplicates among the conversations or the replies of a corpus, found by tasks over its files on all nodes.

found = find_near_duplicates(filesystem, files, data.deduplicate, board)
found.members, found.kept, found.similarity

Each text is known by a number: that of its row, or of the reply in it (workflows/corpus/rows.py).

Four steps, each a task for a file or for a share of the keys; between them Ray's object store holds the pieces, and
spills them to disk where memory is short:

1. of each file, the keys of its texts' signatures, by key;
2. of each share of the keys, the pairs of texts that have one in common, by pair;
3. of each file, the shingles of the texts that are in a pair;
4. of each share of the pairs, those whose texts are similar enough.

What comes back to this process grows with the near-duplicates found, not with the corpus.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet
import ray

from models.chat.form import Message
from models.text.near_duplicates import Bands, Numbers, candidate_pairs, components
from models.text.shingles import Hashes, Shingles, is_first, similarity, word_count
from workflows.corpus.reader import conversations_of
from workflows.corpus.rows import place_of, reply_numbers, reply_of
from workflows.spec.data import MIN_REPLY_WORDS, Compared, DeduplicateSpec

_BYTES_OF_A_KEY = 16
_SHARE_BYTES = 64 << 20
# Multiplied by it, numbers are spread over all bits (Knuth, "The Art of Computer Programming", section 6.4).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class NearDuplicates:
    """Clusters of conversations or replies, each by its number; all arrays are (M,), in the order of the numbers."""

    members: Numbers
    """all that are in a cluster"""

    kept: Numbers
    """the longest one of each one's cluster, of equally long ones the first"""

    similarity: Any
    """the largest Jaccard index of each one with another of its cluster"""

    compared: Compared = "conversations"

    @property
    def are_replies(self) -> bool:
        """Whether the numbers are those of replies, and not of rows."""
        return self.compared == "replies"

    def place(self, number: int, paths: Sequence[str]) -> str:
        """The file and line of a member, and of a reply the message; `paths`: by the number of each source."""
        row, message = reply_of(number) if self.are_replies else (number, None)
        source, line = place_of(row)
        return f"{paths[source]}:{line}" + ("" if message is None else f", message {message}")

    def rows(self, numbers: Numbers) -> Numbers:
        """The numbers of the rows of these members."""
        return reply_of(numbers)[0] if self.are_replies else numbers


def find_near_duplicates(
    filesystem: Any, files: Sequence[str], settings: DeduplicateSpec, board: Any, bytes_of_a_share: int = _SHARE_BYTES
) -> NearDuplicates:
    """Clusters among the rows, or their replies, of Parquet files with `source`, `line`, `messages`, `num_messages`.

    `board` counts every row twice. Raises StageFailed for replies that cannot be numbered.
    """
    threshold, compare = settings.threshold, settings.compare
    rows, texts = _counted(filesystem, files, compare)
    board.post.remote(total=2 * rows)
    size = texts * Bands.at(threshold).count * _BYTES_OF_A_KEY
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
    shingles = [shingles_of.remote(filesystem, file, compare, board, *wanted) for file in files]
    similar = [
        similar_of.remote(threshold, pairs[share][0], *(each[share] for each in shingles)) for share in range(shares)
    ]
    del shingles
    return _clusters(ray.get(similar), compare)


_Share = tuple[Hashes, Numbers]
_Texts = tuple[Numbers, Numbers, Shingles]  # number, length in characters and shingles of each
_Similar = tuple[Numbers, Numbers, Any]  # (P, 2) pairs, (P, 2) lengths, (P,) similarity


def _counted(filesystem: Any, files: Sequence[str], compare: Compared) -> tuple[int, int]:
    """How many rows there are, and about how many texts."""
    parts = pyarrow.dataset.dataset(list(files), filesystem=filesystem, format="parquet")
    rows = parts.count_rows()
    if compare == "conversations":
        return rows, rows
    messages = sum(
        pyarrow.compute.sum(batch["num_messages"]).as_py() or 0
        for batch in parts.to_batches(columns=["num_messages"])
    )
    return rows, messages // 2


def _keys(filesystem: Any, file: str, settings: DeduplicateSpec, shares: int, board: Any) -> list[_Share]:
    """Keys and numbers of the file's texts, by share."""
    bands = Bands.at(settings.threshold)
    found: list[_Share] = [(np.empty(0, np.uint64), np.empty(0, np.int64))]
    for rows, numbers, texts in _texts(filesystem, file, settings.compare):
        keys = bands.keys(texts)
        found.append((keys.ravel(), np.repeat(numbers, bands.count)))
        board.add.remote(done=rows)
    keys, numbers = (np.concatenate(column) for column in zip(*found, strict=True))
    share = keys % np.uint64(shares)
    return [(keys[share == each], numbers[share == each]) for each in range(shares)]


def _candidates(shares: int, *pieces: _Share) -> list[Numbers]:
    """Pairs of texts with a key in common, by share."""
    keys, numbers = (np.concatenate(column) for column in zip(*pieces, strict=True))
    pairs = candidate_pairs(keys, numbers)
    # Not the number itself, of which the last bits are a reply's place, an odd one in most conversations.
    share = (pairs[:, 0].astype(np.uint64) * _GOLDEN >> np.uint64(32)) % np.uint64(shares)
    return [pairs[share == each] for each in range(shares)]


def _unique(*pieces: Numbers) -> tuple[Numbers, Numbers]:
    """Each pair once, and the texts that are in them."""
    pairs = np.unique(np.concatenate(pieces), axis=0)
    return pairs, np.unique(pairs)


def _wanted_shingles(filesystem: Any, file: str, compare: Compared, board: Any, *wanted: Numbers) -> list[_Texts]:
    """The file's texts that each share wants."""
    found: list[list[_Texts]] = [[] for _ in wanted]
    everything = np.unique(np.concatenate(wanted))
    for _, numbers, texts in _texts(filesystem, file, compare, everything):
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
    filesystem: Any, file: str, compare: Compared, only: Numbers | None = None
) -> Iterator[tuple[int, Numbers, list[str]]]:
    """The number of a file's rows, some at a time, and the numbers and texts in them, or of `only` these numbers."""
    if compare == "conversations":
        for rows, conversations in conversations_of(filesystem, file, only):
            yield len(rows), rows, [text_of(messages) for messages in conversations]
        return
    own = None if only is None else np.unique(reply_of(only)[0])
    for rows, conversations in conversations_of(filesystem, file, own):
        found = [
            (row, message, text)
            for row, messages in zip(rows.tolist(), conversations, strict=True)
            for message, text in replies_of(messages)
        ]
        row, message = (np.array([each[column] for each in found], np.int64) for column in (0, 1))
        numbers = reply_numbers(row, message)
        texts = [text for *_, text in found]
        if only is not None:
            is_wanted = np.isin(numbers, only)
            numbers, texts = numbers[is_wanted], [texts[place] for place in np.flatnonzero(is_wanted)]
        yield len(rows), numbers, texts


def text_of(messages: Sequence[Message]) -> str:
    """What is compared of a conversation: the texts of all messages, one after the other."""
    return "\n".join(message["content"] for message in messages)


def replies_of(messages: Sequence[Message]) -> Iterator[tuple[int, str]]:
    """The replies of a conversation that are compared, each by its place and by all that is learned in it: its
    reasoning, its text and its calls.

    Not compared are those of fewer words than `MIN_REPLY_WORDS`, which stand in any conversation, and those that are
    not trained on.
    """
    for place, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("train") is False:
            continue
        if word_count(message["content"]) >= MIN_REPLY_WORDS:
            calls = [json.dumps(call["function"], sort_keys=True) for call in message.get("tool_calls", [])]
            parts = (message.get("reasoning_content", ""), message["content"], *calls)
            yield place, "\n".join(filter(None, parts))


def _joined(pieces: Sequence[_Texts]) -> _Texts:
    numbers, lengths, shingles = zip(*pieces, strict=True)
    return np.concatenate(numbers), np.concatenate(lengths), Shingles.joined(shingles)


def _clusters(found: Sequence[_Similar], compared: Compared) -> NearDuplicates:
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
    return NearDuplicates(members, kept, most, compared)
