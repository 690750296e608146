import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.backends import (
    BACKENDS,
    HALF_STEP,
    NEEDS_C,
    backend_of,
    rotary_of,
    tables,
    threads,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tether.kernels.cache import Cache
from tether.kernels.layers import Heads, Rotary

CPU = torch.device("cpu")
BF16 = torch.bfloat16
LENGTHS = (1, 63, 64, 65, 130)  # decoding sweeps over 64 positions at a time
ROOM = 130
SHAPES = [Heads(4, 2, 8), Heads(3, 1, 16), Heads(2, 1, 32), Heads(2, 2, 48), Heads(6, 2, 64)]
SHAPES += [Heads(1, 1, 80), Heads(2, 1, 128)]
NAMES = [f"{heads.query}on{heads.key}x{heads.size}" for heads in SHAPES]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with backend_of(request.param):
        yield request.param


def tokens_of(lengths, heads, dtype=torch.float32):
    """Queries, keys and values of the tokens of each sequence."""
    width = (heads.query + 2 * heads.key) * heads.size
    return [torch.randn(length, width).to(dtype) for length in lengths]


def last_attention(qkv, rotated, heads):
    """What the last token of one sequence sees, by transformers' rotation, in float64."""
    grid = qkv.double().unflatten(1, (-1, heads.size)).transpose(0, 1)[None]
    q, k, v = grid.split([heads.query, heads.key, heads.key], 1)
    if rotated:
        cos, sin = (t.repeat(1, 2)[None] for t in tables(len(qkv), heads.size))
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
    k, v = (each.repeat_interleave(heads.query // heads.key, 1) for each in (k, v))
    return F.scaled_dot_product_attention(q[:, :, -1:], k, v)[0].flatten()


def filled(sequences, slots, heads, rotary, num_slots, room=ROOM, stale=0.0):
    """A cache that holds whole sequences in some slots, and something stale everywhere else."""
    dtype = sequences[0].dtype
    cache = Cache.empty(num_slots, room, heads, dtype, CPU)
    cache.keys.fill_(stale)
    cache.values.fill_(stale)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    slot = torch.tensor(slots).repeat_interleave(lengths)
    position = torch.cat([torch.arange(length) for length in lengths.tolist()])
    order = torch.randperm(len(slot))  # tokens may come in any order
    cache.write(torch.cat(sequences)[order], slot[order], position[order], rotary, heads)
    return cache


def newest(sequences):
    """Queries, keys and values of each sequence's last token, and its position."""
    return (
        torch.stack([sequence[-1] for sequence in sequences]),
        torch.tensor([len(sequence) - 1 for sequence in sequences]),
    )


def assert_rounded_once(found, wanted, scale):
    assert found.dtype == BF16
    limit = 0.02 * HALF_STEP * scale
    torch.testing.assert_close(found.double(), wanted, atol=limit, rtol=1.01 * HALF_STEP)


# --- by hand --------------------------------------------------------------------------------------


def test_by_hand(backend):
    # One key head of size 4 with two query heads; the second of three slots, positions 0 and 1.
    # At position 1 the pairs (0, 2) and (1, 3) turn by 90° and 180°:
    # (a, b, c, d) → (-c, -b, a, -d).
    cos, sin = torch.tensor([[1.0, 1.0], [0.0, -1.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    heads, rotary, ln3 = Heads(2, 1, 4), Rotary(cos, sin), math.log(3)
    cache = Cache.empty(3, 2, heads, torch.float32, CPU)
    first = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 5, 0, 0], [4, 0, 8, 0]]  # q, q, k, v
    second = [[0, 0, -2 * ln3, 0], [0, 0, 0, 4 * ln3], [0, 2, 0, 1], [0, 4, 0, -4]]
    slot, out = torch.tensor([1]), torch.empty(0)
    for position, token in enumerate((first, second)):
        qkv = torch.tensor([token]).float().flatten(1)
        at = torch.tensor([position])
        cache.write(qkv, slot, at, rotary, heads)
        out = cache.attention(qkv, slot, at, rotary, heads, seen=position + 1)
        if position == 0:
            assert out.tolist() == [[4, 0, 8, 0] * 2]  # sees itself only
    assert cache.keys[1, 0, :, :2].t().tolist() == [[1, 5, 0, 0], [0, -2, 0, -1]]
    assert cache.values[1, 0, :2].tolist() == [[4, 0, 8, 0], [0, 4, 0, -4]]
    assert not cache.keys[[0, 2]].any()
    assert not cache.values[[0, 2]].any()
    # Scores (ln 3, 0) and (0, ln 9) of the two heads: weights (3/4, 1/4) and (1/10, 9/10).
    assert out[0].tolist() == pytest.approx([3, 1, 6, -1, 0.4, 3.6, 0.8, -3.6], abs=1e-6)


# --- against attention over the whole sequence ----------------------------------------------------


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("heads", SHAPES, ids=NAMES)
def test_a_token_sees_its_sequence_and_nothing_else(backend, heads, rotated):
    sequences = tokens_of(LENGTHS, heads)
    rotary = rotary_of(ROOM, heads.size) if rotated else None
    slots = [0, 2, 3, 5, 6]  # of 7; what else the cache holds is of sequences that have ended
    cache = filled(sequences, slots, heads, rotary, 7, stale=50.0)
    qkv, position = newest(sequences)
    out = cache.attention(qkv, torch.tensor(slots), position, rotary, heads, seen=ROOM)
    for sequence, found in zip(sequences, out, strict=True):
        wanted = last_attention(sequence, rotated, heads)
        torch.testing.assert_close(found.double(), wanted, atol=5e-6, rtol=0)


@pytest.mark.parametrize("heads", SHAPES, ids=NAMES)
def test_in_bfloat16(backend, heads):
    sequences = tokens_of(LENGTHS, heads, BF16)
    rotary = rotary_of(ROOM, heads.size)
    cache = filled(sequences, range(5), heads, rotary, 5)
    assert cache.keys.dtype == cache.values.dtype == BF16
    qkv, position = newest(sequences)
    out = cache.attention(qkv, torch.arange(5), position, rotary, heads, seen=ROOM)
    for sequence, found in zip(sequences, out, strict=True):
        wanted = last_attention(sequence, True, heads)
        # Keys are stored rotated, and so rounded once more than in training.
        torch.testing.assert_close(found.double(), wanted, atol=6 * HALF_STEP, rtol=0)


@NEEDS_C
@pytest.mark.parametrize("heads", SHAPES, ids=NAMES)
def test_in_bfloat16_c_rounds_the_result_only_once(heads):
    sequences = tokens_of(LENGTHS, heads, BF16)
    cache = filled(sequences, range(5), heads, None, 5)
    qkv, position = newest(sequences)
    out = cache.attention(qkv, torch.arange(5), position, None, heads, seen=ROOM)
    for sequence, found in zip(sequences, out, strict=True):
        assert_rounded_once(found, last_attention(sequence, False, heads), 1.0)


@NEEDS_C
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 140), min_size=1, max_size=4),
    keys=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.integers(1, 20),
    rotated=st.booleans(),
    more=st.integers(0, 3),
)
def test_of_any_shape(lengths, keys, group, half, rotated, more):
    torch.manual_seed(half)
    heads, room = Heads(keys * group, keys, 2 * half), max(lengths) + more
    sequences = tokens_of(lengths, heads)
    rotary = rotary_of(room, heads.size) if rotated else None
    slots = torch.arange(len(lengths))
    qkv, position = newest(sequences)

    def attended():
        cache = filled(sequences, slots.tolist(), heads, rotary, len(lengths) + more, room, -9.0)
        return cache.attention(qkv, slots, position, rotary, heads, seen=max(lengths))

    ours = attended()
    with backend_of("torch"):
        theirs = attended()
    for sequence, one, other in zip(sequences, ours, theirs, strict=True):
        wanted = last_attention(sequence, rotated, heads)
        torch.testing.assert_close(one.double(), wanted, atol=5e-6, rtol=0)
        torch.testing.assert_close(other.double(), wanted, atol=5e-6, rtol=0)


def test_heads_of_an_odd_size(backend):
    heads = Heads(2, 1, 33)
    sequences = tokens_of((70, 3), heads)
    cache = filled(sequences, (0, 1), heads, None, 2)
    qkv, position = newest(sequences)
    out = cache.attention(qkv, torch.arange(2), position, None, heads, seen=70)
    for sequence, found in zip(sequences, out, strict=True):
        wanted = last_attention(sequence, False, heads)
        torch.testing.assert_close(found.double(), wanted, atol=5e-6, rtol=0)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_scores_far_out(backend, size):
    # Scores of size · (0, 1, 2): the token looks at one position, wholly.
    heads = Heads(1, 1, 4)
    qkv = torch.zeros(3, 3, 4)
    qkv[:, 0, 0], qkv[:, 1, 0] = 2 * size, torch.tensor([0.0, 1.0, 2.0])
    qkv[:, 2] = torch.arange(12.0).view(3, 4)
    cache = filled([qkv.flatten(1)], [0], heads, None, 1)
    at = torch.tensor([2])
    out = cache.attention(qkv.flatten(1)[2:], torch.tensor([0]), at, None, heads, seen=3)
    assert out.tolist() == [[8.0, 9, 10, 11] if size > 0 else [0.0, 1, 2, 3]]


# --- copies, refills, and what does not change ----------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_copy_is_the_same_sequence_in_other_slots(dtype):
    heads = Heads(4, 2, 8)
    [sequence] = tokens_of([20], heads, dtype)
    cache = filled([sequence], [2], heads, rotary_of(ROOM, 8), 5, stale=3.0)
    cache.copy(2, [0, 4], 20)
    for slot in (0, 4):
        assert torch.equal(cache.keys[slot, :, :, :20], cache.keys[2, :, :, :20])
        assert torch.equal(cache.values[slot, :, :20], cache.values[2, :, :20])
    for slot, first in ((0, 20), (1, 0), (3, 0), (4, 20)):  # nothing else is touched
        assert (cache.keys[slot, :, :, first:] == 3).all()
        assert (cache.values[slot, :, first:] == 3).all()


def test_copies_go_their_own_ways(backend):
    heads, rotary = Heads(4, 2, 8), rotary_of(ROOM, 8)
    prompt, *ends = tokens_of([20, 5, 9], heads)
    sequences = [torch.cat([prompt, end]) for end in ends]
    cache = filled([prompt], [1], heads, rotary, 3, stale=3.0)
    cache.copy(1, [2], 20)
    for slot, end in enumerate(ends, 1):
        position = torch.arange(20, 20 + len(end))
        cache.write(end, torch.full((len(end),), slot), position, rotary, heads)
    qkv, position = newest(sequences)
    out = cache.attention(qkv, torch.tensor([1, 2]), position, rotary, heads, seen=ROOM)
    for sequence, found in zip(sequences, out, strict=True):
        wanted = last_attention(sequence, True, heads)
        torch.testing.assert_close(found.double(), wanted, atol=5e-6, rtol=0)


def test_a_slot_serves_one_sequence_after_another(backend):
    heads, rotary = Heads(4, 2, 8), rotary_of(ROOM, 8)
    long, short = tokens_of([ROOM, 30], heads)
    cache = filled([long], [1], heads, rotary, 2)
    cache.write(short, torch.full((30,), 1), torch.arange(30), rotary, heads)
    qkv, position = newest([short])
    for seen in (30, ROOM):
        out = cache.attention(qkv, torch.tensor([1]), position, rotary, heads, seen=seen)
        wanted = last_attention(short, True, heads)
        torch.testing.assert_close(out[0].double(), wanted, atol=5e-6, rtol=0)


def test_a_write_touches_its_own_place_only(backend):
    heads = Heads(2, 2, 6)
    [sequence] = tokens_of([3], heads)
    cache = Cache.empty(4, 7, heads, torch.float32, CPU)
    cache.write(sequence, torch.tensor([3, 0, 3]), torch.tensor([6, 2, 0]), rotary_of(7, 6), heads)
    written = {(3, 6), (0, 2), (3, 0)}
    assert {tuple(each) for each in cache.keys.any(1).any(1).nonzero().tolist()} == written
    assert {tuple(each) for each in cache.values.any(1).any(-1).nonzero().tolist()} == written


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_no_token_at_all(backend, dtype):
    heads = Heads(4, 2, 8)
    cache = Cache.empty(2, 5, heads, dtype, CPU)
    none, qkv = torch.empty(0, dtype=torch.long), torch.empty(0, 64, dtype=dtype)
    cache.write(qkv, none, none, rotary_of(5, 8), heads)
    assert not cache.keys.any()


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("part", [0, 1, 2])  # query, key, value
def test_a_nan_comes_out_as_one(backend, part, dtype):
    heads = Heads(1, 1, 8)
    sequences = tokens_of((20, 20), heads, dtype)
    where = -1 if part == 0 else 4
    sequences[1][where, 8 * part + 3] = math.nan
    cache = filled(sequences, (0, 1), heads, rotary_of(ROOM, 8), 2)
    qkv, position = newest(sequences)
    out = cache.attention(qkv, torch.arange(2), position, rotary_of(ROOM, 8), heads, seen=20)
    assert out[0].isfinite().all()
    assert out[1].isnan().any()


# --- the same bits --------------------------------------------------------------------------------


def everything(dtype, shift=0):
    """Cache and attention of inputs that lie `shift` numbers into memory."""
    heads, rotary = Heads(6, 2, 64), rotary_of(ROOM, 64)
    generator = torch.Generator().manual_seed(3)
    width = (heads.query + 2 * heads.key) * heads.size
    memory = torch.empty(sum(LENGTHS) * width + shift, dtype=dtype)
    qkv = memory[shift:].view(sum(LENGTHS), width)
    qkv.copy_(torch.randn(qkv.shape, generator=generator))
    slot = torch.arange(5).repeat_interleave(torch.tensor(LENGTHS))
    position = torch.cat([torch.arange(length) for length in LENGTHS])
    cache = Cache.empty(5, ROOM, heads, dtype, CPU)
    cache.write(qkv, slot, position, rotary, heads)
    new = torch.empty(5 * width + shift, dtype=dtype)[shift:].view(5, width)
    new.copy_(qkv[torch.tensor(LENGTHS).cumsum(0) - 1])
    at = torch.tensor(LENGTHS) - 1
    out = cache.attention(new, torch.arange(5), at, rotary, heads, seen=ROOM)
    return cache.keys, cache.values, out


@NEEDS_C
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_threads_do_not_change_a_bit(dtype):
    with threads(1):
        one = everything(dtype)
    with threads(2):
        two = everything(dtype)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


@NEEDS_C
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_where_the_inputs_lie_does_not_change_a_bit(dtype):
    wanted = everything(dtype)
    for shift in (0, 1, 3, 8, 17):
        for a, b in zip(everything(dtype, shift), wanted, strict=True):
            assert torch.equal(a, b)


@NEEDS_C
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_who_else_is_decoded_does_not_change_a_bit(dtype):
    heads, rotary = Heads(4, 2, 8), rotary_of(ROOM, 8)
    sequences = tokens_of(LENGTHS, heads, dtype)
    cache = filled(sequences, range(5), heads, rotary, 5)
    qkv, position = newest(sequences)
    all_five = cache.attention(qkv, torch.arange(5), position, rotary, heads, seen=ROOM)
    for i, length in enumerate(LENGTHS):
        one = slice(i, i + 1)
        out = cache.attention(
            qkv[one], torch.tensor([i]), position[one], rotary, heads, seen=length
        )
        assert torch.equal(out[0], all_five[i])


@NEEDS_C
def test_views_are_refused():
    heads = Heads(1, 1, 8)
    cache = Cache.empty(1, 5, heads, torch.float32, CPU)
    slot = position = torch.zeros(8, dtype=torch.long)
    with pytest.raises(ValueError, match="cache_write: tensors must be contiguous"):
        cache.write(torch.randn(24, 8).t(), slot, position, None, heads)
