"""Sampling: the next token from a model's logits."""

from collections import Counter

import torch

from serve.engines.base import GenerationRequest, Unfollowable


class Sampler:
    """Samples the tokens of one reply; on the CPU, so that a seed gives the same tokens everywhere."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._drawn: Counter[int] = Counter()
        self._reply: list[int] = []
        allowed = request.allowed_token_ids
        self._allowed = None if allowed is None else torch.tensor(sorted(allowed | request.end_token_ids))
        self._seen = set(request.prompt_ids)
        self._grammar = request.grammar.start() if request.grammar else None
        self._generator = torch.Generator()
        if request.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.seed)

    def draw(self, logits: torch.Tensor) -> int:
        """A token id sampled from `logits` [vocabulary].

        The order: repetition, frequency and presence penalties, biases, forbidden tokens and words, end tokens before
        min_tokens, the grammar, temperature, min_p, top_k, top_p. top_p keeps the likeliest tokens until their
        probabilities reach it, at least one. Raises Unfollowable if no token is allowed.
        """
        token_id = self._draw(self._changed(logits) if self._request.changes_scores else logits)
        self._drawn[token_id] += 1
        self._reply.append(token_id)
        self._seen.add(token_id)
        if self._grammar is not None and token_id not in self._request.end_token_ids:
            self._grammar.accept(token_id)
        return token_id

    def _changed(self, logits: torch.Tensor) -> torch.Tensor:
        request = self._request
        scores = logits.float().cpu().clone()
        if request.repetition_penalty != 1:
            seen = torch.tensor(list(self._seen))
            found = scores[seen]
            penalty = request.repetition_penalty
            scores[seen] = torch.where(found > 0, found / penalty, found * penalty)
        if self._drawn and (request.frequency_penalty or request.presence_penalty):
            drawn, counts = (torch.tensor(list(part)) for part in (self._drawn.keys(), self._drawn.values()))
            scores[drawn] -= request.frequency_penalty * counts + request.presence_penalty
        for token_id, bias in request.logit_bias.items():
            scores[token_id] += bias
        if self._allowed is not None:
            others = torch.ones_like(scores, dtype=torch.bool)
            others[self._allowed] = False
            scores[others] = -torch.inf
        for *begin, last in request.bad_words:
            if not begin or self._reply[-len(begin) :] == begin:
                scores[last] = -torch.inf
        if self._drawn.total() < request.min_new_tokens:
            scores[list(request.end_token_ids)] = -torch.inf
        if self._grammar is not None:
            scores[~torch.from_numpy(self._grammar.allowed())] = -torch.inf
        if torch.isneginf(scores).all():
            raise Unfollowable("allowed_token_ids, bad_words, min_tokens and the format together allow no token")
        return scores

    def _draw(self, scores: torch.Tensor) -> int:
        request = self._request
        if request.is_greedy:
            return int(scores.argmax())
        scores = scores.float().cpu() / request.temperature
        token_ids = None
        if 0 < request.top_k < len(scores):
            scores, token_ids = scores.topk(request.top_k)
        probabilities = torch.softmax(scores, dim=-1)
        if request.min_p > 0:
            probabilities[probabilities < request.min_p * probabilities.max()] = 0
            probabilities /= probabilities.sum()
        if request.top_p < 1:
            probabilities, order = probabilities.sort(descending=True)
            token_ids = order if token_ids is None else token_ids[order]
            probability_before = probabilities.cumsum(dim=-1) - probabilities
            probabilities[probability_before >= request.top_p] = 0
        place = int(torch.multinomial(probabilities, 1, generator=self._generator))
        return place if token_ids is None else int(token_ids[place])


LogProbabilities = tuple[float, tuple[tuple[int, float], ...]]
"""a token's log-probability, and those of the likeliest tokens by id"""


def log_probabilities(logits: torch.Tensor, token_id: int, count: int) -> LogProbabilities:
    """Those of `token_id` and of the `count` likeliest tokens, from `logits` [vocabulary]."""
    all_of_them = torch.log_softmax(logits.float(), dim=-1)
    best = all_of_them.topk(count)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return float(all_of_them[token_id]), tuple(tops)
