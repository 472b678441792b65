"""Packed batches for a model that cannot keep the conversations of a row apart: each gets its own row.

    read_in_rows(model, "padded")    # from now on the model takes the packed batches of models/kernels/loss.py

A tree becomes its whole conversations, with shared beginnings repeated. If padding after a conversation's end does
not change the model's output, conversations of similar length are batched; otherwise they run one by one.

Shape suffixes: B rows of L tokens; P requested positions; H hidden size.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from models.trees import paths

How = Literal["packed", "padded", "alone"]
"""conversations share a row; each has its own row of a padded batch; one by one"""

_KNOWN_BY_THE_ROW = ("position_ids", "use_cache", "return_dict")
# The largest share of padding in a batch.
_MAX_PADDING = 0.2


@dataclass(frozen=True)
class Pass:
    """The input of one call of the model."""

    places: torch.Tensor
    """int64 [B, L]: for each input token its position in the packed row"""
    rows: torch.Tensor
    columns: torch.Tensor
    """int64 [P] both: where in it the requested positions are"""
    answers: list[int]
    """their indices among all requested positions"""
    lengths: list[int]
    """of each conversation"""


_OF_NOTHING = Pass(torch.tensor([[0]]), torch.tensor([0]), torch.tensor([0]), answers=[], lengths=[1])


def read_in_rows(model: Any, how: How, longest_short: int | None = None) -> None:
    """Make `model` take packed batches; calls without `sequence_lengths` stay unchanged.

    `longest_short`: a conversation with more tokens changes the model's output for shorter ones in the same batch, so
    the two are kept apart. `how` may be `packed` only for this purpose.
    """
    own = model.forward
    forward = functools.partial(_RowReader(model, own, how, longest_short).forward)
    forward.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]  # `generate` looks at it
    model.forward = forward
    model.reads_in_rows = how


def is_read_in_rows(model: Any) -> bool:
    """Whether `read_in_rows` was called for a model, or for the model inside PEFT's or DeepSpeed's wrapper."""
    return hasattr(getattr(model, "module", model), "reads_in_rows")


@dataclass(frozen=True)
class _RowReader:
    """The forward pass of a model that takes packed batches."""

    model: Any
    own: Callable[..., Any]
    """the model's own forward pass"""
    how: How
    longest_short: int | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("sequence_lengths") is None:
            return self.own(*args, **kwargs)
        assert not args
        return self.forward_packed(**kwargs)

    def forward_packed(
        self,
        *,
        sequence_lengths: Sequence[int],
        logits_to_keep: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        prefixes: Sequence[int] = (),
        only_hidden: bool = False,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [1, P, V] at the positions `logits_to_keep`; or, `only_hidden`, the head's inputs [1, P, H]."""
        unknown = [name for name, value in others.items() if value is not None and name not in _KNOWN_BY_THE_ROW]
        assert not unknown, unknown
        passes = passes_of(sequence_lengths, prefixes, logits_to_keep.tolist(), self.how, self.longest_short)
        head = self.model.get_output_embeddings()
        knows_hidden = only_hidden or hasattr(head, "fused_request")  # otherwise the model may change the logits
        if input_ids is not None:
            states = self._states(passes, "input_ids", input_ids, knows_hidden)
        else:
            assert inputs_embeds is not None
            states = self._states(passes, "inputs_embeds", inputs_embeds, knows_hidden)
        logits = head(states[None]) if knows_hidden and not only_hidden else states[None]
        return CausalLMOutputWithPast(logits=logits)

    def _states(self, passes: Sequence[Pass], argument: str, given: torch.Tensor, knows_hidden: bool) -> torch.Tensor:
        """The head's inputs [P, H], or the logits [P, V], at all positions of these passes over `given`."""
        head = self.model.get_output_embeddings()
        found, nothing = [], given.new_zeros((), dtype=torch.float32)
        for number in range(_as_often_as_others(self.model, len(passes), given.device)):
            each = passes[number] if number < len(passes) else _OF_NOTHING
            arguments: dict[str, Any] = {"use_cache": False, argument: given[0][each.places.to(given.device)]}
            if self.how == "packed":
                positions = torch.cat([torch.arange(length) for length in each.lengths])
                arguments |= {"sequence_lengths": each.lengths, "position_ids": positions[None].to(given.device)}
            with _answering(head, each, knows_hidden) as seen:
                output = self.own(**arguments)
            states = seen[0] if knows_hidden else output.logits[0]
            if each is _OF_NOTHING:
                nothing = nothing + 0 * states.sum()
            else:
                found.append(states)
        order = torch.tensor([answer for each in passes for answer in each.answers]).argsort().to(given.device)
        states = torch.cat(found).index_select(0, order)
        return states + nothing.to(states.dtype) if nothing.requires_grad else states


def _as_often_as_others(model: Any, passes: int, device: torch.device) -> int:
    """The number of calls of the model. With weights partitioned over the workers (ZeRO stage 3) it is the same on
    all, since they wait for each other in every call.
    """
    if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return passes
    most = torch.tensor(passes, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


@contextlib.contextmanager
def _answering(head: Any, each: Pass, knows_hidden: bool) -> Iterator[list[torch.Tensor]]:
    """Apply the head only at the positions of this pass, or at one position if only its inputs are needed."""
    seen: list[torch.Tensor] = []

    def select(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        states = args[0][each.rows.to(args[0].device), each.columns.to(args[0].device)]
        seen.append(states)
        return (states[None, :1] if knows_hidden else states[None],)

    request, hook = getattr(head, "fused_request", None), head.register_forward_pre_hook(select)
    if request is not None:
        head.fused_request = None
    try:
        yield seen
    finally:
        hook.remove()
        if request is not None:
            head.fused_request = request


def passes_of(
    lengths: Sequence[int], prefixes: Sequence[int], positions: Sequence[int], how: How, longest_short: int | None
) -> list[Pass]:
    """The calls of the model that together cover each of the positions of a packed row once."""
    starts = [0, *accumulate(lengths)]
    whole = list(paths(prefixes)) if prefixes else [[piece] for piece in range(len(lengths))]
    where: dict[int, tuple[int, int]] = {}  # position in the row: the conversation, and the position in it
    conversations = []
    for number, path in enumerate(whole):
        places = [place for piece in path for place in range(starts[piece], starts[piece + 1])]
        for at, place in enumerate(places):
            where.setdefault(place, (number, at))
        conversations.append(places)
    asked: dict[int, list[tuple[int, int]]] = {}
    for answer, position in enumerate(positions):
        number, at = where[position]
        asked.setdefault(number, []).append((answer, at))
    sizes = {number: len(conversations[number]) for number in asked}
    return [_pass(conversations, asked, group, how) for group in _groups(sizes, how, longest_short)]


def _groups(sizes: dict[int, int], how: How, longest_short: int | None) -> Iterator[list[int]]:
    """The conversations of each call, longest first."""
    longest_first = sorted(sizes, key=lambda number: -sizes[number])
    group: list[int] = []
    total = 0
    for number in longest_first:
        if group:
            longest, size = sizes[group[0]], sizes[number]
            padded = longest * (len(group) + 1)
            too_much = how == "padded" and padded - total - size > _MAX_PADDING * padded
            are_apart = longest_short is not None and size <= longest_short < longest
            if how == "alone" or too_much or are_apart:
                yield group
                group, total = [], 0
        group.append(number)
        total += sizes[number]
    if group:
        yield group


def _pass(
    conversations: list[list[int]], asked: dict[int, list[tuple[int, int]]], group: list[int], how: How
) -> Pass:
    lengths = [len(conversations[number]) for number in group]
    if how == "packed":
        before = [0, *accumulate(lengths)]
        places = [[place for number in group for place in conversations[number]]]
        spots = [(0, before[row] + at) for row, number in enumerate(group) for _, at in asked[number]]
    else:
        # Padding repeats the last token; the model's output before it does not depend on it.
        places = [
            conversations[number] + conversations[number][-1:] * (lengths[0] - length)
            for number, length in zip(group, lengths, strict=True)
        ]
        spots = [(row, at) for row, number in enumerate(group) for _, at in asked[number]]
    answers = [answer for number in group for answer, _ in asked[number]]
    rows, columns = (torch.tensor([spot[part] for spot in spots], dtype=torch.int64) for part in (0, 1))
    return Pass(torch.tensor(places), rows, columns, answers, lengths)
