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

from tether.kernels import layers
from tether.kernels.layers import Heads, Rotary, add_norm, attention, swiglu

EPS = 1e-5
LENGTHS = (1, 47, 48, 49, 200)  # attention takes 48 queries at a time
SHAPES = [Heads(4, 2, 8), Heads(3, 1, 16), Heads(2, 2, 48), Heads(6, 2, 64)]
NAMES = [f"{heads.query}on{heads.key}x{heads.size}" for heads in SHAPES]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with backend_of(request.param):
        yield request.param


def leaf(*shape, dtype=torch.float32, scale=1.0):
    return (scale * torch.randn(*shape)).to(dtype).requires_grad_()


def wide(tensor):
    """The same numbers in float64, with a gradient of their own."""
    return tensor.detach().double().requires_grad_()


def gradients(outputs, inputs):
    """Of a sum in which every number of the outputs has its own weight."""
    generator = torch.Generator().manual_seed(9)
    ups = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    return torch.autograd.grad(outputs, inputs, ups)


def assert_near(found, wanted, share):
    """Within `share` of the largest number."""
    assert found.shape == wanted.shape
    limit = share * max(wanted.detach().abs().max().item(), 1e-3) if wanted.numel() else 0.0
    torch.testing.assert_close(found.double(), wanted.double(), atol=limit, rtol=0)


def assert_rounded_once(found, wanted):
    """A bfloat16 result of a computation in float32."""
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted.double(), atol=1e-5, rtol=1.01 * HALF_STEP)


# --- add_norm -------------------------------------------------------------------------------------


def plain_add_norm(x, delta, weight):
    total = x if delta is None else x + delta
    return total, F.rms_norm(total, (x.shape[1],), weight, EPS)


def test_add_norm_by_hand(backend):
    # s = [1, 2] + [2, 2] = [3, 4]; mean of squares 12.5, with ε = 3.5 the root is 4
    x, delta = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 2.0]])
    weight = torch.tensor([2.0, 3.0])
    inputs = [each.requires_grad_() for each in (x, delta, weight)]
    total, out = add_norm(x, delta, weight, 3.5, torch.float32)
    assert total.tolist() == [[3, 4]]
    assert out.tolist() == [[2 * 3 / 4, 3 * 4 / 4]]
    # Upwards [1, 0] for s and [4, 8] for y. With unit u = [3/4, 1] and g = up · w = [8, 24]:
    # mean(g · u) = (6 + 24) / 2 = 15; (g - 15 u) / 4 = [-0.8125, 2.25], to which [1, 0] comes.
    grads = torch.autograd.grad(
        [total, out], inputs, [torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 8.0]])]
    )
    assert grads[0].tolist() == [[0.1875, 2.25]]
    assert grads[1].tolist() == [[0.1875, 2.25]]
    assert grads[2].tolist() == [4 * 0.75, 8]


@pytest.mark.parametrize("with_delta", [True, False])
@pytest.mark.parametrize("shape", [(0, 16), (1, 33), (5, 1), (37, 33), (150, 128)])
def test_add_norm_is_torchs(backend, shape, with_delta):
    x, weight = leaf(*shape), leaf(shape[1])
    delta = leaf(*shape) if with_delta else None
    inputs = [each for each in (x, delta, weight) if each is not None]
    doubles = [None if each is None else wide(each) for each in (x, delta, weight)]
    outputs, wanted = add_norm(x, delta, weight, EPS, torch.float32), plain_add_norm(*doubles)
    for found, want in zip(outputs, wanted, strict=True):
        assert_near(found, want, 1e-6)
    wanted = gradients(wanted, [each for each in doubles if each is not None])
    for found, want in zip(gradients(outputs, inputs), wanted, strict=True):
        assert_near(found, want, 5e-6)


@pytest.mark.parametrize("with_delta", [True, False])
def test_add_norm_in_bfloat16_rounds_only_what_it_hands_on(backend, with_delta):
    x, weight = leaf(37, 33), leaf(33)
    delta = leaf(37, 33, dtype=torch.bfloat16) if with_delta else None
    inputs = [x, weight] if delta is None else [x, weight, delta]
    doubles = [wide(each) for each in inputs]
    total, out = add_norm(x, delta, weight, EPS, torch.bfloat16)
    wanted = plain_add_norm(doubles[0], doubles[2] if with_delta else None, doubles[1])
    assert_near(total, wanted[0], 1e-6)
    assert_rounded_once(out, wanted[1])
    up_total, up = torch.randn_like(total), torch.randn_like(total).bfloat16()
    found = torch.autograd.grad([total, out], inputs, [up_total, up])
    want = torch.autograd.grad(wanted, doubles, [up_total.double(), up.double()])
    assert_near(found[0], want[0], 5e-6)
    assert_near(found[1], want[1], 5e-6)
    if with_delta:
        assert_rounded_once(found[2], want[2])


@pytest.mark.parametrize("used", [0, 1])
def test_add_norm_where_only_one_result_is_used(backend, used):
    x, delta, weight = leaf(6, 10), leaf(6, 10), leaf(10)
    doubles = [wide(x), wide(delta), wide(weight)]
    found = gradients([add_norm(x, delta, weight, EPS, torch.float32)[used]], [x, delta])
    wanted = gradients([plain_add_norm(*doubles)[used]], doubles[:2])
    for each, want in zip(found, wanted, strict=True):
        assert_near(each, want, 5e-6)


# --- swiglu ---------------------------------------------------------------------------------------


def plain_swiglu(both):
    gate, up = both.chunk(2, -1)
    return F.silu(gate) * up


def test_swiglu_by_hand(backend):
    # σ(0) = 1/2 and σ(ln 3) = 3/4
    ln3 = math.log(3)
    both = torch.tensor([[0.0, ln3, 5.0, 4.0]], requires_grad=True)
    out = swiglu(both)
    assert out[0].tolist() == pytest.approx([0, 3 * ln3], rel=1e-6)
    # d gate = up · u · σ(g) · (1 + g (1 - σ(g))), d up = up · silu(g)
    [grad] = torch.autograd.grad(out, both, torch.tensor([[2.0, 1.0]]))
    wanted = [2 * 5 / 2, 4 * 0.75 * (1 + ln3 / 4), 0, 0.75 * ln3]
    assert grad[0].tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("shape", [(0, 16), (1, 2), (37, 66), (150, 256)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_swiglu_is_torchs(backend, shape, scale):
    both = leaf(*shape, scale=scale)
    double = wide(both)
    assert_near(swiglu(both), plain_swiglu(double), 1e-6)
    [found], [want] = gradients([swiglu(both)], [both]), gradients([plain_swiglu(double)], [double])
    assert_near(found, want, 2e-6)


def test_swiglu_in_bfloat16(backend):
    both = leaf(37, 66, dtype=torch.bfloat16)
    double = wide(both)
    out, wanted = swiglu(both), plain_swiglu(double)
    up = torch.randn(37, 33).bfloat16()
    [found] = torch.autograd.grad(out, both, up)
    [want] = torch.autograd.grad(wanted, double, up.double())
    if backend == "C":
        assert_rounded_once(out, wanted)
        assert_rounded_once(found, want)
    assert_near(out, wanted, 2 * HALF_STEP)
    assert_near(found, want, 4 * HALF_STEP)


@pytest.mark.parametrize("gate", [-1e4, -100.0, -88.5, -87.0, 88.5, 100.0, 1e4])
def test_swiglu_far_out(backend, gate):
    both = torch.tensor([[gate, 2.0]], requires_grad=True)
    out = swiglu(both)
    [grad] = torch.autograd.grad(out.sum(), both)
    # silu is 0 far below and the identity far above
    assert out.item() == pytest.approx(2 * max(gate, 0), abs=1e-30)
    assert grad[0].tolist() == pytest.approx([2 * (gate > 0), max(gate, 0)], abs=1e-30)


# --- attention ------------------------------------------------------------------------------------


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def plain_attention(qkv, lengths, rotary, heads):
    """Each sequence alone, by transformers' rotation and torch's attention under a mask."""
    parts = []
    for rows in qkv.split(list(lengths)):
        grid = rows.unflatten(1, (-1, heads.size)).transpose(0, 1)[None]
        q, k, v = grid.split([heads.query, heads.key, heads.key], 1)
        if rotary:
            cos, sin = (t.repeat(1, 2)[None] for t in tables(len(rows), heads.size))
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
        mask = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
        k, v = (each.repeat_interleave(heads.query // heads.key, 1) for each in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        parts.append(out[0].transpose(0, 1).flatten(1))
    return torch.cat(parts)


def width_of(heads):
    return (heads.query + 2 * heads.key) * heads.size


def test_attention_by_hand(backend):
    # One sequence of two tokens, two query heads on one key head of size 4, so scores are halved.
    # At position 1 the pairs (0, 2) and (1, 3) turn by 90° and 180°:
    # (a, b, c, d) → (-c, -b, a, -d).
    cos, sin = torch.tensor([[1.0, 1.0], [0.0, -1.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    ln3 = math.log(3)
    first = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 5, 0, 0], [4, 0, 8, 0]]  # q, q, k, v
    # The first head's q turns to (2 ln 3, 0, 0, 0): scores (2 ln 3 · 1 / 2, 0) against the two
    # keys; the second head's to (0, 0, 0, -4 ln 3): scores 0 and, by the key (0, -2, 0, -1), ln 9.
    second = [[0, 0, -2 * ln3, 0], [0, 0, 0, 4 * ln3], [0, 2, 0, 1], [0, 4, 0, -4]]
    qkv = torch.tensor([first, second]).flatten(1)
    out = attention(qkv, torch.tensor([0, 2]), Rotary(cos, sin), Heads(2, 1, 4))
    assert out[0].tolist() == [4, 0, 8, 0] * 2  # sees itself only
    # weights (3/4, 1/4) and (1/10, 9/10)
    wanted = [3, 1, 6, -1, 0.4, 3.6, 0.8, -3.6]
    assert out[1].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("heads", SHAPES, ids=NAMES)
def test_attention_is_torchs_on_each_sequence(backend, heads, rotated):
    qkv = leaf(sum(LENGTHS), width_of(heads))
    rotary = rotary_of(256, heads.size) if rotated else None
    out = attention(qkv, offsets_of(LENGTHS), rotary, heads)
    double = wide(qkv)
    wanted = plain_attention(double, LENGTHS, rotary, heads)
    assert_near(out, wanted, 2e-6)
    [found], [want] = gradients([out], [qkv]), gradients([wanted], [double])
    # Queries, keys and values apart: a small one must not hide behind a large one.
    sizes = [count * heads.size for count in (heads.query, heads.key, heads.key)]
    for part, share in zip(found.split(sizes, 1), want.split(sizes, 1), strict=True):
        assert_near(part, share, 1e-5)


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("heads", SHAPES, ids=NAMES)
def test_attention_in_bfloat16(backend, heads, rotated):
    qkv = leaf(sum(LENGTHS), width_of(heads), dtype=torch.bfloat16)
    rotary = rotary_of(200, heads.size) if rotated else None
    out = attention(qkv, offsets_of(LENGTHS), rotary, heads)
    double = wide(qkv)
    wanted = plain_attention(double, LENGTHS, rotary, heads)
    up = torch.randn(wanted.shape).bfloat16()
    [found] = torch.autograd.grad(out, qkv, up)
    [want] = torch.autograd.grad(wanted, double, up.double())
    if backend == "C" and not rotated:
        assert_rounded_once(out, wanted)
    # Rotated keys may be rounded once more, as a cache holds them.
    assert_near(out, wanted, 2 * HALF_STEP if backend == "C" else 4 * HALF_STEP)
    assert_near(found, want, 3 * HALF_STEP if backend == "C" else 8 * HALF_STEP)


def test_attention_of_heads_of_an_odd_size(backend):
    heads = Heads(2, 1, 33)
    qkv = leaf(60, width_of(heads))
    assert_near(
        attention(qkv, offsets_of([50, 10]), None, heads),
        plain_attention(wide(qkv), [50, 10], None, heads),
        2e-6,
    )


@NEEDS_C
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=4),
    keys=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.integers(1, 20),
    rotated=st.booleans(),
)
def test_attention_of_any_shape(lengths, keys, group, half, rotated):
    torch.manual_seed(half)
    heads = Heads(keys * group, keys, 2 * half)
    qkv = leaf(sum(lengths), width_of(heads))
    rotary = rotary_of(max(lengths), heads.size) if rotated else None
    double = wide(qkv)
    wanted = plain_attention(double, lengths, rotary, heads)
    [want] = gradients([wanted], [double])
    out = attention(qkv, offsets_of(lengths), rotary, heads)
    assert_near(out, wanted, 3e-6)
    assert_near(gradients([out], [qkv])[0], want, 2e-5)
    with backend_of("torch"):
        out = attention(qkv, offsets_of(lengths), rotary, heads)
    assert_near(out, wanted, 3e-6)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_attention_with_scores_far_out(backend, size):
    # Scores of size · (0, 1, 2): the last token looks at one other, wholly.
    heads = Heads(1, 1, 4)
    qkv = torch.zeros(3, 3, 4)
    qkv[:, 0, 0], qkv[:, 1, 0] = 2 * size, torch.tensor([0.0, 1.0, 2.0])
    qkv[:, 2] = torch.arange(12.0).view(3, 4)
    qkv = qkv.flatten(1).requires_grad_()
    out = attention(qkv, torch.tensor([0, 3]), None, heads)
    seen = [0, 1, 2] if size > 0 else [0, 0, 0]
    assert out.tolist() == [[4.0 * s + i for i in range(4)] for s in seen]
    [grad] = torch.autograd.grad(out.sum(), qkv)
    counts = [float(seen.count(i)) for i in range(3)]
    assert grad[:, 8:].tolist() == [[count] * 4 for count in counts]
    assert not grad[:, :8].any()


# --- what is broken stays visible -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_number_comes_out_as_one(backend, bad, dtype):
    x = torch.randn(5, 33)
    x[2, 7] = bad
    total, out = add_norm(x, torch.zeros(5, 33, dtype=dtype), torch.ones(33), EPS, dtype)
    both = torch.randn(5, 66).to(dtype)
    both[2, 7] = bad
    gated = swiglu(both)
    assert [row for row in range(5) if not total[row].isfinite().all()] == [2]
    assert [row for row in range(5) if not out[row].isfinite().all()] == [2]
    assert [row for row in range(5) if not gated[row].isfinite().all()] == [2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [0, 1, 2])  # query, key, value
def test_a_nan_in_attention_reaches_all_who_see_it(backend, part, dtype):
    heads, lengths = Heads(1, 1, 8), [60, 60, 5]
    qkv = torch.randn(125, 24).to(dtype)
    qkv[60 + 50, 8 * part + 3] = math.nan
    out = attention(qkv.requires_grad_(), offsets_of(lengths), rotary_of(60, 8), heads)
    bad = out.isnan().any(-1)
    assert not bad[:60].any()
    assert not bad[120:].any()
    assert bad[110]
    if part > 0:
        assert bad[110:120].all()
    [grad] = torch.autograd.grad(out.float().sum(), qkv)
    assert grad.isnan().any()
    assert grad[:60].isfinite().all()


def test_a_nan_gradient_comes_out_as_one(backend):
    x, weight, both, qkv = leaf(4, 33), leaf(33), leaf(4, 66), leaf(4, 24)
    for out, inputs in (
        (add_norm(x, None, weight, EPS, torch.float32)[1], (x, weight)),
        (swiglu(both), (both,)),
        (attention(qkv, torch.tensor([0, 4]), None, Heads(1, 1, 8)), (qkv,)),
    ):
        up = torch.ones_like(out)
        up[1, 2] = math.nan
        for grad in torch.autograd.grad(out, inputs, up):
            assert grad.isnan().any()


# --- the same bits --------------------------------------------------------------------------------


def everything(seed, dtype, shift=0):
    """Results and gradients of all operations, on inputs that lie `shift` numbers into memory."""
    generator = torch.Generator().manual_seed(seed)

    def made(*shape, dtype=dtype):
        memory = torch.empty(math.prod(shape) + shift, dtype=dtype)
        view = memory[shift:].view(shape)
        view.copy_(torch.randn(*shape, generator=generator))
        return view.requires_grad_()

    heads = Heads(4, 2, 16)
    x, weight = made(300, 129, dtype=torch.float32), made(129, dtype=torch.float32)
    delta, both, qkv = made(300, 129), made(300, 258), made(345, width_of(heads))
    inputs = [x, weight, delta, both, qkv]
    outputs = [
        *add_norm(x, delta, weight, EPS, dtype),
        swiglu(both),
        attention(qkv, offsets_of(LENGTHS), rotary_of(200, 16), heads),
    ]
    return [*outputs, *gradients(outputs, inputs)]


@NEEDS_C
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_a_bit(dtype):
    with threads(1):
        one = everything(0, dtype)
    with threads(2):
        two = everything(0, dtype)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


@NEEDS_C
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_the_inputs_lie_does_not_change_a_bit(dtype):
    wanted = everything(0, dtype)
    for shift in (0, 1, 3, 8, 17):
        for a, b in zip(everything(0, dtype, shift), wanted, strict=True):
            assert torch.equal(a, b)


# --- layouts --------------------------------------------------------------------------------------


def test_inputs_may_be_views(backend):
    def outputs(x, delta, both, qkv):
        normed = add_norm(x, delta, torch.ones(33), EPS, torch.float32)
        attended = attention(qkv, torch.tensor([0, 6]), None, Heads(1, 1, 8))
        return [*normed, swiglu(both), attended]

    stored = [torch.randn(width, 6) for width in (33, 33, 66, 24)]
    views, copies = [each.t() for each in stored], [each.t().contiguous() for each in stored]
    for found, wanted in zip(outputs(*views), outputs(*copies), strict=True):
        assert torch.equal(found, wanted)


@NEEDS_C
def test_c_is_not_given_what_it_would_misread():
    sparse = torch.randn(4, 6)[:, ::2]
    with pytest.raises(ValueError, match="add_norm: tensors must be contiguous"):
        layers.kernel("add_norm", sparse)


@NEEDS_C
def test_c_is_for_float32_and_bfloat16_on_the_cpu():
    assert layers.kernel("swiglu", torch.zeros(2, 2)) is not None
    assert layers.kernel("swiglu", torch.zeros(2, 2, dtype=torch.bfloat16)) is not None
    assert layers.kernel("swiglu", torch.zeros(2, 2, dtype=torch.float16)) is None
    assert layers.kernel("swiglu", torch.zeros(2, 2, dtype=torch.float64)) is None
    assert layers.kernel("swiglu", torch.zeros(2, 2, device="meta")) is None
