"""Cross-entropy and log-probabilities at the supervised positions of a packed batch.

After `fuse_head(model)`, the head and the loss are computed in chunks of positions, so that the logits, the largest
tensor of a training step, never exist whole.

Shape suffixes: S supervised positions, H hidden size, V vocabulary, K requested tokens at each position.
"""

import contextlib
import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from models.packing import PackedBatch

_POSITIONS_AT_ONCE = 512


def supervised_logits(model: Any, batch: PackedBatch) -> torch.Tensor:
    """float32 [S, V]: logits only at the predicting positions of the batch.

    `models.base.load.load_model` must have loaded the model with `models.kernels.attention.PACKED_ATTENTION`.
    """
    return _forward(model, batch).float()


def supervised_loss_sum(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Sum over the targets of -log p(target | tokens before it in its conversation), in nats, as a scalar."""
    head = _fused_head(model)
    if head is None:
        return F.cross_entropy(supervised_logits(model, batch), batch.targets, reduction="sum")
    fused: Any = _CrossEntropySum.apply
    with _asked(head, lambda hidden: fused(hidden, head.weight, head.bias, batch.targets)):
        return _forward(model, batch)


def log_probabilities(model: Any, batch: PackedBatch, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """float32 [S]: log p(target | tokens before it), in nats; or [S, K] for `tokens` (int64 [S, K])."""
    ids = batch.targets[:, None] if tokens is None else tokens
    head = _fused_head(model)
    if head is None:
        found = F.log_softmax(supervised_logits(model, batch), dim=-1).gather(1, ids)
    else:
        fused: Any = _LogProbabilities.apply
        with _asked(head, lambda hidden: fused(hidden, head.weight, head.bias, ids)):
            found = _forward(model, batch)
    return found[:, 0] if tokens is None else found


def top_log_probabilities(
    model: Any, batch: PackedBatch, k: int, vocabulary: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k most likely tokens at each predicting position, likeliest first: int64 [S, k], and their
    log-probabilities, float32 [S, k], in nats. Only token ids below `vocabulary` count. Without gradients."""
    head = _fused_head(model)
    if head is None:
        log_p = F.log_softmax(supervised_logits(model, batch).detach(), dim=-1)
        values, tokens = log_p[:, :vocabulary].topk(k)
        return tokens, values
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def request(hidden: torch.Tensor) -> torch.Tensor:
        for chunk in _chunks(len(batch.targets)):
            log_p = F.log_softmax(F.linear(hidden[chunk], head.weight, head.bias).float(), dim=-1)
            values, tokens = log_p[:, :vocabulary].topk(k)
            found.append((tokens, values))
        return hidden

    with torch.no_grad(), _asked(head, request):
        _forward(model, batch)
    return torch.cat([tokens for tokens, _ in found]), torch.cat([values for _, values in found])


def fuse_head(model: Any) -> bool:
    """Compute the model's head in chunks from now on; returns whether the architecture allows it.

    It does if the head is a linear layer and its logits are the model's output, which is tested on a few tokens: some
    models scale or cap them.
    """
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    is_plain = head.__class__ is torch.nn.Linear  # an adapted or quantized head is not
    if not is_plain or hasattr(head, "fused_request"):
        return is_plain
    ids = torch.arange(4, device=head.weight.device)[None]
    seen: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda module, args, output: seen.append(output))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(
                input_ids=ids, position_ids=ids, sequence_lengths=[4], logits_to_keep=ids[0], use_cache=False
            ).logits
    finally:
        hook.remove()
        model.train(was_training)
    if len(seen) != 1 or not torch.equal(seen[0].float(), logits.float()):
        return False
    head.fused_request = None
    head.forward = functools.partial(_head_forward, head)
    return True


def predicting_states(model: Any, batch: PackedBatch) -> torch.Tensor:
    """[S, H]: the head's input at the predicting positions; logits [S, V] if the head is not fused."""
    head = _fused_head(model)
    if head is None:
        return _forward(model, batch)
    with _asked(head, lambda hidden: hidden):
        return _forward(model, batch)


class StatesModel:
    """Stands for a model in a loss: answers every call with states that were computed before."""

    def __init__(self, model: Any, states: torch.Tensor) -> None:
        """`states`: those of `predicting_states` for the batches with which it will be called."""
        self._model, self._states = model, states

    def get_output_embeddings(self) -> Any:
        """The model's head."""
        return self._model.get_output_embeddings()

    def __call__(self, **_: Any) -> Any:
        head = _fused_head(self._model)
        logits = self._states[None] if head is None else head(self._states[None])
        return SimpleNamespace(logits=logits)


def _forward(model: Any, batch: PackedBatch) -> torch.Tensor:
    """The model's output at the predicting positions: logits [S, V], or the fused head's requested values."""
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        sequence_lengths=batch.sequence_lengths,
        prefixes=batch.prefixes,
        logits_to_keep=batch.predictors,
        use_cache=False,
    )
    logits: torch.Tensor = output.logits
    return logits[0]


def _fused_head(model: Any) -> Any | None:
    module = getattr(model, "module", model)  # DeepSpeed's engine
    head = module.get_output_embeddings()
    return head if hasattr(head, "fused_request") else None


@contextlib.contextmanager
def _asked(head: Any, request: Any) -> Iterator[None]:
    head.fused_request = request
    try:
        yield
    finally:
        head.fused_request = None


def _head_forward(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    if head.fused_request is None:
        return F.linear(hidden, head.weight, head.bias)
    answer: torch.Tensor = head.fused_request(hidden[0])
    return answer[None]


def _chunks(size: int) -> Iterator[slice]:
    for start in range(0, size, _POSITIONS_AT_ONCE):
        yield slice(start, start + _POSITIONS_AT_ONCE)


class _HeadGradients:
    """Gradients of the head's input [S, H], weight [V, H] and bias [V], gathered chunk by chunk in float32."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, needed: Any) -> None:
        self._inputs = hidden, weight
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None

    def add(self, chunk: slice, logit_gradient: torch.Tensor) -> None:
        """`logit_gradient`: float32 [chunk, V]."""
        hidden, weight = self._inputs
        if self.bias is not None:
            self.bias += logit_gradient.sum(0)
        gradient = logit_gradient.to(hidden.dtype)
        if self.hidden is not None:
            torch.mm(gradient, weight, out=self.hidden[chunk])
        if self.weight is not None:
            self.weight += gradient.T @ hidden[chunk]

    def scaled(self, scale: torch.Tensor | float) -> tuple[torch.Tensor | None, ...]:
        """All three times a scalar, each in the dtype of its tensor."""
        dtype = self._inputs[0].dtype
        parts = (self.hidden, self.weight, self.bias)
        return tuple(None if part is None else part.mul_(scale).to(dtype) for part in parts)


class _CrossEntropySum(torch.autograd.Function):
    """Sum of -log softmax(hidden W^T + b)[target]. The forward pass computes the gradient while it has a chunk's
    probabilities; the backward pass only scales it."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any) -> torch.Tensor:
        needed = ctx.needs_input_grad
        gradients = _HeadGradients(hidden, weight, bias, needed) if any(needed[:3]) else None
        total = torch.zeros((), device=hidden.device)
        for chunk in _chunks(len(targets)):
            logits = F.linear(hidden[chunk], weight, bias).float()
            log_p = F.log_softmax(logits, dim=-1)
            del logits
            wanted = targets[chunk, None]
            total -= log_p.gather(1, wanted).sum()
            if gradients is not None:
                gradient = log_p.exp_()
                gradient.scatter_add_(1, wanted, gradient.new_full((), -1.0).expand(wanted.shape))
                gradients.add(chunk, gradient)
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        return (*gradients.scaled(upstream[0]), None)


class _LogProbabilities(torch.autograd.Function):
    """log softmax(hidden W^T + b) of the requested tokens, [S, K]; the backward pass recomputes it."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, tokens: Any) -> torch.Tensor:
        found = torch.empty(tokens.shape, dtype=torch.float32, device=hidden.device)
        for chunk in _chunks(len(tokens)):
            logits = F.linear(hidden[chunk], weight, bias).float()
            found[chunk] = F.log_softmax(logits, dim=-1).gather(1, tokens[chunk])
        ctx.save_for_backward(hidden, weight, bias, tokens)
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        hidden, weight, bias, tokens = ctx.saved_tensors
        gradients = _HeadGradients(hidden, weight, bias, ctx.needs_input_grad)
        for chunk in _chunks(len(tokens)):
            logits = F.linear(hidden[chunk], weight, bias).float()
            probabilities = F.softmax(logits, dim=-1)
            del logits
            outer = upstream[0][chunk]
            gradient = probabilities.mul_(-outer.sum(1, keepdim=True))
            gradient.scatter_add_(1, tokens[chunk], outer)
            gradients.add(chunk, gradient)
        return (*gradients.scaled(1.0), None)
