"""Packing and batching change only the speed."""

import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from models.base.load import load_model
from models.base.lstm import LstmConfig, LstmForCausalLM
from models.kernels.attention import PACKED_ATTENTION, _whole, packed_attention
from models.kernels.blocked_attention import blocks_of
from models.kernels.loss import log_probabilities, supervised_loss_sum
from models.packing import PackedBatch, StepPlan, pack, pack_replies, pack_trees
from models.trees import Tree, ancestors, paths, sequences_of, tree_of

Conversation = tuple[list[int], list[bool]]
PlainLoss = Callable[[Any, list[Conversation]], torch.Tensor]


# A gradient in bfloat16 has a mantissa of 8 bits, so it is itself rounded by up to 0.4 %.
@pytest.mark.parametrize(("dtype", "of_loss", "of_gradients"), [
    (torch.float32, 1e-6, 1e-5), (torch.bfloat16, 1e-3, 1e-2),
])  # fmt: skip
def test_the_loss_does_not_depend_on_packing_or_batching(
    tiny_model: Path, token_rows: list[Conversation], plain_loss_sum: PlainLoss, dtype: torch.dtype, of_loss: float,
    of_gradients: float,
) -> None:  # fmt: skip
    rows = token_rows
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype, attn_implementation="sdpa").eval()
    expected = plain_loss_sum(plain, rows)
    expected.backward()
    model = load_model(tiny_model, dtype, PACKED_ATTENTION)
    groupings = [[rows], [[row] for row in rows], [rows[::-1]], [rows[:3], rows[3:]], [rows[4:], rows[:4]]]
    for grouping in groupings:
        model.zero_grad()
        total = sum(supervised_loss_sum(model, pack(group)) for group in grouping)
        assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=of_loss)
        total.backward()
        mine, theirs = (
            torch.cat([parameter.grad.double().flatten() for parameter in each.parameters()])
            for each in (model, plain)
        )
        assert torch.linalg.vector_norm(mine - theirs) <= of_gradients * torch.linalg.vector_norm(theirs)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            within = 10 * of_gradients * torch.linalg.vector_norm(other.grad)
            assert dtype == torch.bfloat16 or torch.linalg.vector_norm(one.grad - other.grad) <= within


@pytest.mark.parametrize("window", [None, 5, 300])
@pytest.mark.parametrize("lengths", [(1, 2, 3), (40, 1, 700), (256, 257, 512)])
def test_the_attention_is_torchs_own(lengths: tuple[int, ...], window: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value, upstream = (
        torch.randn(1, heads, sum(lengths), 8, generator=draw, dtype=torch.float64) for heads in (6, 2, 2, 6)
    )
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    mine, _ = packed_attention(
        torch.nn.Identity(), *inputs, None, scaling=0.3, sequence_lengths=list(lengths), sliding_window=window
    )
    distance = torch.arange(sum(lengths))[:, None] - torch.arange(sum(lengths))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = (distance >= 0) & (distance < (window or 10**9)) & (owner[:, None] == owner)
    plain = F.scaled_dot_product_attention(*inputs, attn_mask=seen, scale=0.3, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(mine, plain)
    upstream = upstream.transpose(1, 2)
    for one, other in zip(
        torch.autograd.grad(mine, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)  # sums over blocks are accumulated in float32


def test_a_sliding_window_and_a_models_own_scale_are_kept(
    token_rows: list[Conversation], plain_loss_sum: PlainLoss
) -> None:
    config = MistralConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.2
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = float(plain_loss_sum(model, token_rows))
        model.set_attn_implementation(PACKED_ATTENTION)
        assert float(supervised_loss_sum(model, pack(token_rows))) == pytest.approx(expected, rel=1e-5)
        model.config.sliding_window = None
        for layer in model.model.layers:
            layer.self_attn.sliding_window = None
        assert float(supervised_loss_sum(model, pack(token_rows))) != pytest.approx(expected, rel=1e-3)


def test_pack_starts_every_conversation_anew() -> None:
    batch = pack([([5, 6, 7], [True, False, True]), ([8, 9], [True, True])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.sequence_lengths == [3, 2]
    assert (batch.predictors.tolist(), batch.targets.tolist()) == ([1, 3], [7, 9])


EXCHANGES = [
    ([1, 2, 3], [4, 5], [True, True]), ([1, 2, 3], [6, 7, 8], [True, False, True]), ([9, 10], [4], [True]),
    ([1, 2, 3], [4], [True]), ([1, 2, 3], [7], [True]), ([], [8, 9], [True, True]),
]  # fmt: skip


def test_a_shared_history_is_in_the_row_once() -> None:
    batch = pack_replies([*EXCHANGES[:3], ([9, 10], [], []), ([9, 10], [5, 6], [True, True]), EXCHANGES[-1]])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 4, 5, 6, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 2, 3, 0, 1]]
    assert (batch.sequence_lengths, batch.prefixes) == ([3, 2, 3, 2, 1, 2, 2], [-1, 0, 0, -1, 3, 3, -1])
    assert batch.predictors.tolist() == [2, 3, 2, 6, 9, 9, 11, 13]
    assert batch.target_positions.tolist() == [3, 4, 5, 7, 10, 11, 12, 14]
    assert batch.targets.tolist() == [4, 5, 6, 8, 4, 5, 6, 9]
    assert batch.target_sequences.tolist() == [0, 0, 1, 1, 2, 4, 4, 5]
    assert (batch.num_sequences, batch.weight) == (6, 6)
    assert pack_replies(EXCHANGES[-1:]).prefixes == []


def model_of(kind: str, tiny_llama: Path, tiny_gpt2: Path) -> Any:
    torch.manual_seed(0)
    model: Any
    if kind == "lstm":
        model = LstmForCausalLM(LstmConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, initializer_range=0.5))
    elif kind == "mistral":
        config = MistralConfig(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=3, initializer_range=0.5,
        )  # fmt: skip
        model = MistralForCausalLM(config)
    else:
        model = load_model(tiny_llama if kind == "llama" else tiny_gpt2, torch.float32)
    model.set_attn_implementation(PACKED_ATTENTION)
    return model.eval()


def check_the_same(model: Any, one: PackedBatch, other: PackedBatch, order: Sequence[int]) -> None:
    """Compare log-probabilities and gradients; target n of `other` is target order[n] of `one`."""
    found = []
    for batch, places in ((one, torch.tensor(order)), (other, slice(None))):
        model.zero_grad()
        log_p = log_probabilities(model, batch)[places]
        (log_p * torch.arange(1, len(log_p) + 1)).sum().backward()
        found.append([log_p.detach(), *(parameter.grad for parameter in model.parameters())])
    for theirs, mine in zip(*found, strict=True):
        assert torch.linalg.vector_norm(mine - theirs) <= 1e-5 * torch.linalg.vector_norm(theirs)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "lstm"])
def test_what_is_read_once_changes_nothing(kind: str, tiny_llama: Path, tiny_gpt2: Path) -> None:
    model = model_of(kind, tiny_llama, tiny_gpt2)
    one_by_one = pack(
        [([*history, *reply], [False] * len(history) + supervised) for history, reply, supervised in EXCHANGES]
    )
    with torch.inference_mode():  # what it caches must also work for a gradient
        log_probabilities(model, pack_replies(EXCHANGES))
    assert one_by_one.input_ids.shape[1] - pack_replies(EXCHANGES).input_ids.shape[1] == 6
    check_the_same(model, one_by_one, pack_replies(EXCHANGES), range(len(one_by_one.targets)))


def row_of(lengths: Sequence[int], parents: Sequence[int], seed: int) -> dict[str, Any]:
    """A row of the corpus in which every other token is supervised."""
    draw, total = random.Random(seed), sum(lengths)
    return {
        "input_ids": [draw.randrange(40) for _ in range(total)],
        "supervised": [place % 2 == 0 for place in range(total)],
        "piece_lengths": list(lengths),
        "piece_parents": list(parents),
    }


TREES = {
    "replies beside what is read on": ([5, 2, 3, 2, 4, 2], [-1, 0, 0, 2, 2, 4]),
    "replies after all that is read on": ([5, 3, 4, 2, 2, 2], [-1, 0, 1, 0, 1, 2]),
    "a chain": ([4, 3, 2, 5], [-1, 0, 1, 2]),
    "two beginnings": ([3, 2, 4, 2, 1], [-1, 0, -1, 2, 0]),
    "nothing in a piece": ([3, 0, 2, 2, 0], [-1, 0, 1, 1, 3]),
    "a single token to go on from": ([1, 1, 1, 2], [-1, 0, 1, 0]),
    "more than a block of queries": ([200, 30, 100, 40, 9], [-1, 0, 0, 2, 2]),
}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "lstm"])
@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_its_conversations(name: str, kind: str, tiny_llama: Path, tiny_gpt2: Path) -> None:
    rows = [row_of(*TREES[name], seed=0), {"input_ids": [1, 2, 3], "supervised": [False, True, True]}]
    rows.append(row_of(*TREES["a chain"], seed=1))
    tree = pack_trees([tree_of(row) for row in rows])
    whole = [sequence for row in rows for sequence in sequences_of(row)]
    assert tree.input_ids.shape[1] == sum(len(row["input_ids"]) for row in rows)
    assert tree.weight == len(tree.targets) == len(pack(whole).targets)
    assert torch.bincount(tree.target_sequences).tolist() == [
        sum(row["supervised"]) - sum(places_without_history(row)) for row in rows
    ]
    check_the_same(model_of(kind, tiny_llama, tiny_gpt2), pack(whole), tree, order_of(rows))


def places_without_history(row: dict[str, Any]) -> list[bool]:
    """For each root of the tree, whether its first token is supervised: it has no history."""
    tree = tree_of(row)
    return [marks[0] for marks, parent in zip(tree.supervised, tree.parents, strict=True) if parent < 0]


def order_of(rows: Sequence[dict[str, Any]]) -> list[int]:
    """For each target of the rows as trees, its index among the targets of the separate conversations."""
    number = {}
    for index, row in enumerate(rows):
        tree = tree_of(row)
        for path in paths(tree.parents):
            for piece in path:
                for place, mark in enumerate(tree.supervised[piece]):
                    is_first = place == 0 and tree.parents[piece] < 0
                    if mark and not is_first:
                        number.setdefault((index, piece, place), len(number))
    return [number[key] for key in sorted(number)]


def test_a_row_without_pieces_is_one() -> None:
    row = {"input_ids": [1, 2], "supervised": [False, True]}
    for pieces in ({}, {"piece_lengths": None, "piece_parents": None}, {"piece_lengths": [], "piece_parents": []}):
        assert tree_of(row | pieces) == ([[1, 2]], [-1], [[False, True]])
        assert sequences_of(row | pieces) == [([1, 2], [False, True])]


def test_each_token_is_learned_in_one_conversation() -> None:
    row = {
        "input_ids": [1, 2, 3, 4, 5], "supervised": [False, True, True, True, True],
        "piece_lengths": [2, 1, 1, 1], "piece_parents": [-1, 0, 0, 2],
    }  # fmt: skip
    assert sequences_of(row) == [([1, 2, 3], [False, True, True]), ([1, 2, 4, 5], [False, False, True, True])]


def test_a_row_has_as_few_pieces_as_possible() -> None:
    batch = pack_trees(
        [Tree([[1, 2], [3], [], [4], [5]], [-1, 0, 1, 2, 3], [[True] * 2, [True], [], [True], [True]])]
    )
    assert (batch.sequence_lengths, batch.prefixes) == ([5], [])
    chain = pack_trees([tree_of(row_of([2, 2, 2, 2], [-1, 0, 1, 1], 0))])
    assert (chain.sequence_lengths, chain.prefixes) == ([4, 2, 2], [-1, 0, 0])
    assert chain.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5]]


def test_a_chain_is_read_in_the_blocks_of_one_piece() -> None:
    assert blocks_of((200, 100, 20, 30), (-1, 0, 1, 0)) == (
        ((0, 256), ((0, 256),)), ((256, 320), ((0, 320),)), ((320, 350), ((0, 200), (320, 350))),
    )  # fmt: skip
    assert blocks_of((200, 100, 20, 30), (-1, 0, 1, 0), 64)[1:] == (
        ((256, 320), ((193, 320),)), ((320, 350), ((137, 200), (320, 350))),
    )  # fmt: skip


@pytest.mark.parametrize("window", [None, 7, 300])
@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_trees_sinks_and_capped_scores_by_hand(window: int | None, capped: bool, has_sinks: bool) -> None:
    lengths, parents = (200, 30, 100, 40, 0, 9), (-1, 0, 0, 2, 2, 4)
    draw = torch.Generator().manual_seed(0)
    query, key, value, upstream = (
        torch.randn(1, heads, sum(lengths), size, generator=draw, dtype=torch.float64)
        for heads, size in ((6, 8), (2, 8), (2, 5), (6, 5))
    )
    inputs = [query, key, value, *([torch.randn(6, generator=draw, dtype=torch.float64)] if has_sinks else [])]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    softcap, sinks = 1.5 if capped else None, inputs[3] if has_sinks else None
    mine, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, scaling=0.7, sequence_lengths=list(lengths),
        prefixes=parents, sliding_window=window, softcap=softcap, s_aux=sinks,
    )  # fmt: skip
    starts = [0, *accumulate(lengths)]
    plain = torch.empty_like(mine)
    for piece in range(len(lengths)):
        where = [p for each in [*ancestors(parents, piece), piece] for p in range(starts[each], starts[each + 1])]
        k, v = (tensor[0][:, where].repeat_interleave(3, 0) for tensor in (key, value))
        scores = query[0][:, where] @ k.transpose(1, 2) * 0.7
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        distance = torch.arange(len(where))[:, None] - torch.arange(len(where))
        scores = scores.masked_fill((distance < 0) | (distance >= (window or 10**9)), float("-inf"))
        more = [] if sinks is None else [sinks.view(6, 1, 1).expand(6, len(where), 1)]
        found = torch.softmax(torch.cat([scores, *more], -1), -1)[..., : len(where)] @ v
        own = slice(len(where) - lengths[piece], None)
        plain[0, starts[piece] : starts[piece + 1]] = found[:, own].transpose(0, 1)
    torch.testing.assert_close(mine, plain)
    upstream = upstream.transpose(1, 2)
    for one, other in zip(
        torch.autograd.grad(mine, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)  # sums over blocks are accumulated in float32


def test_what_a_graphics_card_reads_is_whole_conversations() -> None:
    lengths, parents = (3, 2, 1, 2), (-1, 0, 0, 2)
    places, sizes, own = _whole(lengths, parents)
    assert (places.tolist(), sizes) == ([0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7], (5, 6))
    assert places[own].tolist() == list(range(8))


def test_what_the_attention_does_not_know_is_refused() -> None:
    inputs = [torch.randn(1, heads, 3, 8) for heads in (4, 2, 2)]
    for given in ({"position_bias": torch.zeros(1)}, {"attention_mask": torch.zeros(1)}):
        with pytest.raises(ValueError, match=f"passes {next(iter(given))} to its attention"):
            packed_attention(torch.nn.Identity(), *inputs, **{"attention_mask": None, **given}, sequence_lengths=[3])


def test_with_dropout_what_is_read_once_is_seen_as_well() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, 9, 8, generator=draw) for heads in (4, 2, 2)]
    pieces: dict[str, Any] = {"sequence_lengths": [3, 2, 2, 2], "prefixes": [-1, 0, 0, 2]}
    with_it, without = (packed_attention(torch.nn.Identity(), *inputs, None, p, **pieces)[0] for p in (1e-12, 0.0))
    torch.testing.assert_close(with_it, without)


def plan_of(workers: int = 3, accumulation: int = 2, seed: int = 1) -> tuple[StepPlan, list[int]]:
    draw = random.Random(3)
    lengths = [draw.randrange(5, 200) for _ in range(97)] + [900]
    return StepPlan(lengths, [n // 2 for n in lengths], 300, workers, accumulation, seed), lengths


@pytest.mark.parametrize(("workers", "accumulation"), [(1, 1), (3, 2), (7, 1), (49, 2)])
def test_an_epoch_reads_every_conversation_once_within_the_budget(workers: int, accumulation: int) -> None:
    plan, lengths = plan_of(workers, accumulation)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        batches = [
            rows for step in steps for worker in range(workers) for rows in plan.micro_batches(step, worker, workers)
        ]
        assert len(batches) == len(steps) * workers * accumulation
        assert sorted(row for rows in batches for row in rows) == list(range(98))
        for rows in batches:
            assert len(rows) == 1 or 0 < sum(lengths[row] for row in rows) <= 300
        assert sum(plan.num_tokens(step) for step in steps) == sum(lengths)
        assert sum(plan.weight(step) for step in steps) == sum(n // 2 for n in lengths)


def test_what_a_step_divides_by_is_what_its_workers_read() -> None:
    plan, lengths = plan_of()
    for step in range(plan.steps_per_epoch):
        read = [row for worker in range(3) for rows in plan.micro_batches(step, worker, 3) for row in rows]
        assert plan.num_tokens(step) == sum(lengths[row] for row in read)
        assert plan.weight(step) == sum(lengths[row] // 2 for row in read)


def test_a_step_can_be_computed_without_the_steps_before_it() -> None:
    plan, _ = plan_of()
    steps = [plan.micro_batches(step, 1, 3) for step in range(2 * plan.steps_per_epoch)]
    for step in (5, 0, 2 * plan.steps_per_epoch - 1):
        assert plan_of()[0].micro_batches(step, 1, 3) == steps[step]
    assert steps[: plan.steps_per_epoch] != steps[plan.steps_per_epoch :]
    assert plan_of(seed=2)[0].micro_batches(0, 1, 3) != steps[0]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 6])
def test_fewer_workers_divide_the_same_step(workers: int) -> None:
    plan, _ = plan_of(workers=3, accumulation=2)
    for step in range(plan.steps_per_epoch):
        shares = [plan.micro_batches(step, worker, workers) for worker in range(workers)]
        assert {len(share) for share in shares} == {plan.micro_batches_per_worker(workers)}
        assert all(share[0] for share in shares), "no worker is without work"
        assert sorted(rows for share in shares for rows in share if rows) == sorted(plan.rows(step))


def test_a_micro_batch_is_cut_into_even_parts() -> None:
    plan, lengths = plan_of(workers=3, accumulation=2)
    for step in range(plan.steps_per_epoch):
        whole, parts = plan.micro_batches(step, 1, 3), plan.micro_batches(step, 1, 3, parts=2)
        assert len(parts) == 2 * len(whole)
        for index, rows in enumerate(whole):
            one, other = parts[2 * index : 2 * index + 2]
            assert sorted(one + other) == sorted(rows)
            loads = [sum(lengths[row] for row in part) for part in (one, other)]
            assert abs(loads[0] - loads[1]) <= max(lengths[row] for row in rows)


def test_pairs_are_positions_that_see_each_other() -> None:
    plan = StepPlan([3, 5], [1, 1], 100, 1, 1, 0)
    assert plan.num_pairs(0) == (1 + 2 + 3) + (1 + 2 + 3 + 4 + 5)


def test_too_few_conversations_are_reported_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"2 training conversations are fewer than the 4 micro-batches"):
        StepPlan([5, 5], [2, 2], 100, 2, 2, 0)


def test_no_part_of_a_micro_batch_is_over_what_fits() -> None:
    plan, lengths = plan_of(workers=1, accumulation=2)
    found = [plan.parts_within(most) for most in (5000, 1200, 900)]
    assert found == sorted(found)
    assert found[0] == 1
    for most, parts in zip((5000, 1200, 900), found, strict=True):
        for step in range(plan.steps_per_epoch):
            cut = plan.micro_batches(step, 0, 1, parts=parts)
            assert all(sum(lengths[row] for row in rows) <= most for rows in cut)
            assert sorted(row for rows in cut for row in rows) == sorted(
                row for rows in plan.rows(step) for row in rows
            )
