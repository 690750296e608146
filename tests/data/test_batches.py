import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tether.data.batches import (
    SHARING_PAYS,
    Row,
    buckets,
    device_batches,
    epoch_order,
    lengths_mask,
    pack,
    pad,
    shared_rows,
    split_by_prompt,
    step_indices,
    to_grid,
)

A, B, C = Row([5, 6, 7], 1), Row([8, 9], 2), Row([3, 4, 2, 1], 0)

rows = st.builds(
    lambda ids, share: Row(ids, round(share * len(ids))),
    st.lists(st.integers(0, 50), min_size=1, max_size=12),
    st.floats(0, 1),
)


# --- rows -----------------------------------------------------------------------------------------


def test_completion_tokens_have_something_before_them():
    assert [A.num_completion, B.num_completion] == [2, 0]
    # Without a prompt the first token has nothing to be predicted from, so it only predicts.
    assert (C.first, C.num_completion) == (1, 3)


# --- rectangles -----------------------------------------------------------------------------------


def test_padded_on_the_right():
    batch = pad([A, B, C])
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [8, 9, 0, 0], [3, 4, 2, 1]]
    assert batch.completion_mask.int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]]
    assert batch.last_mask.int().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert batch.position_ids is None
    assert batch.attention_mask is None


def test_padded_on_the_left():
    batch = pad([A, B, C], side="left")
    assert batch.input_ids.tolist() == [[0, 5, 6, 7], [0, 0, 8, 9], [3, 4, 2, 1]]
    assert batch.completion_mask.int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]]
    assert batch.last_mask.int().tolist() == [[0, 0, 0, 1]] * 3
    assert batch.attention_mask.int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2], [0, 0, 0, 1], [0, 1, 2, 3]]


def test_packed():
    batch = pack([A, B], [C])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, 2, 1, 0]]
    assert batch.completion_mask.int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]
    assert batch.last_mask.int().tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 1, 0]]
    # 0 wherever a row begins, and on the padding, which so begins a row of its own
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert batch.attention_mask is None


def test_one_row_alone():
    assert pad([A]).input_ids.tolist() == pack([A]).input_ids.tolist() == [[5, 6, 7]]


def test_moving_a_batch_keeps_what_is_not_there():
    batch = pad([A, B]).to(torch.device("cpu"))
    assert batch.position_ids is None
    assert torch.equal(batch.input_ids, pad([A, B]).input_ids)


# --- forward passes -------------------------------------------------------------------------------


def test_buckets_are_of_similar_length_longest_first():
    assert buckets([3, 9, 1, 9, 4], 2) == [[1, 3], [4, 0], [2]]
    assert buckets([3, 9, 1], 0) == [[1, 0, 2]]
    assert buckets([], 3) == buckets([], 0) == []


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(0, 6))
def test_buckets_cover_every_row_once(lengths, size):
    found = buckets(lengths, size)
    flat = [i for chunk in found for i in chunk]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)
    assert all(len(chunk) <= (size or len(lengths)) for chunk in found)


def test_short_rows_share_a_row():
    # Width 9: 9 fills the first; 5 + 4 the second; 3 + 2 + 2 the third, in falling order.
    lengths = [9, 5, 4, 3, 2, 2]
    assert shared_rows([0, 1, 2, 3, 4, 5], lengths) == [[0], [1, 2], [3, 4, 5]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_no_shared_row_is_wider_than_the_longest(lengths):
    chunk = buckets(lengths, 0)[0]
    packs = shared_rows(chunk, lengths)
    assert sorted(i for members in packs for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= max(lengths) for members in packs)


def test_rows_are_packed_only_where_that_saves_enough():
    similar = [Row([1] * n, 1) for n in (9, 8, 7, 9)]
    [(order, batch)] = device_batches(similar, 0)
    assert (order, batch.position_ids, len(batch.input_ids)) == ([0, 3, 1, 2], None, 4)
    mixed = [Row([1] * n, 1) for n in (9, 2, 3, 4)]
    [(order, batch)] = device_batches(mixed, 0)
    assert (order, batch.input_ids.shape) == ([0, 3, 2, 1], (2, 9))
    assert batch.position_ids is not None


@given(st.lists(rows, min_size=1, max_size=12), st.integers(0, 5))
def test_forward_passes_hold_every_token_of_every_row_once(every, size):
    seen = []
    for order, batch in device_batches(every, size):
        assert len(order) <= (size or len(every))
        # What a forward pass gives comes back row after row in this order.
        wanted = [token for i in order for token in every[i].ids[every[i].first :]]
        assert batch.input_ids[batch.completion_mask].tolist() == wanted
        ends = [every[i].ids[-1] for i in order]
        assert batch.input_ids[batch.last_mask].tolist() == ends
        assert batch.input_ids.shape[1] == max(len(every[i].ids) for i in order)
        if batch.position_ids is not None:  # packed: fewer rows
            assert len(batch.input_ids) <= SHARING_PAYS * len(order)
        seen += order
    assert sorted(seen) == list(range(len(every)))


# --- grids ----------------------------------------------------------------------------------------


def test_a_grid_of_per_token_values():
    mask = lengths_mask([2, 0, 3])
    assert mask.int().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    flat = torch.tensor([0.5, -1.0, 2.0, 3.0, 4.0], requires_grad=True)
    grid = to_grid(flat, mask)
    assert grid.tolist() == [[0.5, -1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 3.0, 4.0]]
    (grid * torch.tensor([[1.0, 2.0, 9.0], [9.0, 9.0, 9.0], [3.0, 4.0, 5.0]])).sum().backward()
    assert flat.grad.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


# --- which examples a step sees -------------------------------------------------------------------


@given(
    num=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 1000),
    epochs=st.integers(1, 3),
)
def test_every_example_comes_once_an_epoch(num, batch_size, seed, epochs):
    steps = -(-epochs * num // batch_size)
    stream = [i for step in range(steps) for i in step_indices(num, batch_size, seed, step)]
    assert len(stream) == steps * batch_size
    for epoch in range(epochs):
        assert sorted(stream[epoch * num : (epoch + 1) * num]) == list(range(num))


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 1000), st.integers(0, 40))
def test_a_step_is_a_function_of_seed_and_step(num, batch_size, seed, step):
    # Neither numpy's nor torch's global state counts, nor which steps were asked for before.
    found = step_indices(num, batch_size, seed, step)
    np.random.default_rng().random(3)
    torch.rand(3)
    step_indices(num, batch_size, seed, step + 1)
    assert step_indices(num, batch_size, seed, step) == found


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [epoch_order(20, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert orders[0] != list(range(20))


# --- held-out prompts -----------------------------------------------------------------------------

keys = st.lists(st.sampled_from("abcdefgh"), max_size=25)


@given(keys, st.floats(0, 0.99), st.integers(0, 100))
def test_a_prompt_is_never_on_both_sides(keys, share, seed):
    train, held = split_by_prompt(keys, share, seed)
    assert sorted([*train, *held]) == list(range(len(keys)))
    assert not {keys[i] for i in train} & {keys[i] for i in held}
    assert train == sorted(train)
    if share > 0 and len(set(keys)) > 1:
        assert train
        assert held
    assert split_by_prompt(keys, share, seed) == (train, held)


@given(keys, st.floats(0, 0.99), st.integers(0, 100), st.randoms())
def test_which_prompts_are_held_out_does_not_depend_on_their_order(keys, share, seed, random):
    shuffled = random.sample(keys, len(keys))
    held, again = (
        {part[i] for i in split_by_prompt(part, share, seed)[1]} for part in (keys, shuffled)
    )
    assert held == again


def test_the_share_is_of_the_prompts_not_of_the_rows():
    # 10 prompts, one of them with 90 rows: 0.3 of the prompts are 3 prompts
    keys = ["p0"] * 90 + [f"p{i}" for i in range(1, 10)]
    for seed in range(5):
        _, held = split_by_prompt(keys, 0.3, seed)
        assert len({keys[i] for i in held}) == 3


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_single_prompt_is_trained_on(share):
    assert split_by_prompt(["a", "a"], share, 0) == ([0, 1], [])


def test_nothing_is_held_out_unless_asked():
    assert split_by_prompt(list("abcd"), 0.0, 0) == ([0, 1, 2, 3], [])


def test_seeds_hold_out_different_prompts():
    keys = [str(i) for i in range(40)]
    assert split_by_prompt(keys, 0.25, 0)[1] != split_by_prompt(keys, 0.25, 1)[1]


# --- gaps -----------------------------------------------------------------------------------------


GAPPED = Row([1, 2, 3, 4, 5, 6, 7], 2, ((3, 5),))  # 3, 6 and 7 are the completion


def test_a_gap_is_no_part_of_the_completion():
    assert GAPPED.num_completion == 3
    assert GAPPED.mask.tolist() == [False, False, True, False, False, True, True]
    assert Row([1, 2, 3], 0, ((1, 2),)).num_completion == 1  # nothing comes before the first token


@pytest.mark.parametrize("other", [Row([8, 9], 1), Row([8, 9, 10, 11, 12, 13, 14, 15], 1)])
def test_gaps_move_with_their_row(other):
    rows = [GAPPED, other]
    wanted = [3, 6, 7, *other.ids[1:]]
    for batch in (pad(rows), pad(rows, side="left"), pack(rows)):
        assert batch.input_ids[batch.completion_mask].tolist() == wanted
    moved = GAPPED.after([8, 9, 10, 11])
    assert moved.ids[:5] == [8, 9, 10, 11, 3]
    assert [i for i, own in zip(moved.ids, moved.mask, strict=True) if own] == [3, 6, 7]
