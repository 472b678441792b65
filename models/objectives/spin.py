"""Self-play fine-tuning (SPIN; Chen et al. 2024, arXiv:2401.01335): DPO's loss with the model's own replies as the
rejected ones. The model itself is the discriminator: it scores a reply by beta (log p(y|h) - log p_start(y|h)).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from models.exchange import Exchange, exchange_of
from models.generation import drawn_replies
from models.objectives.preference import reference_values


def own_pairs(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    max_reply_tokens: int,
    end_tokens: Sequence[int],
    seeds: Sequence[Sequence[int]],
) -> dict[str, list[Any]]:
    """For each row, by column: its last reply with its history, the history with a reply sampled from the model, and
    the log-probabilities of both under the model. Both replies are truncated to `max_reply_tokens`.
    """
    reals = [exchange_of(row, max_reply_tokens, lambda n: n - 1) for row in rows]
    drawn = drawn_replies(model, [real.history for real in reals], 1, max_reply_tokens, end_tokens, seeds)
    own = [Exchange(real.history, replies[0]) for real, replies in zip(reals, drawn, strict=True)]
    columns: dict[str, list[Any]] = {}
    for prefix, exchanges in (("", reals), ("other_", own)):
        sequences = [exchange.sequence for exchange in exchanges]
        columns[f"{prefix}input_ids"] = [input_ids for input_ids, _ in sequences]
        columns[f"{prefix}supervised"] = [supervised for _, supervised in sequences]
    columns["piece_lengths"] = columns["piece_parents"] = [[]] * len(rows)
    columns["num_targets"] = [len(one.reply) + len(other.reply) for one, other in zip(reals, own, strict=True)]
    both = zip(reals, columns["num_targets"], strict=True)
    columns["num_tokens"] = [len(real.history) + targets for real, targets in both]
    pairs = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {**columns, **reference_values(model, pairs)}
