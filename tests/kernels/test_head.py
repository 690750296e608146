import ctypes
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.backends import BACKENDS, HALF_STEP, NEEDS_C, backend_of, threads

from tether.engine.sampling import sample
from tether.kernels import head
from tether.kernels.build import library
from tether.kernels.layers import at, long
from tether.kernels.packed import Packed, can_pack

BF16 = torch.bfloat16
BIGGEST = 1 - 2**-24  # the largest uniform number below 1 in float32


@pytest.fixture(params=BACKENDS)
def backend(request):
    with backend_of(request.param):
        yield request.param


def measure(
    hidden,
    weight,
    token_ids,
    temperature=1.0,
    chunk=1024,
    with_entropy=True,
    entropy_grad=False,
    dtype=torch.float32,
):
    """What the trainer calls."""
    settings = {
        "temperature": temperature,
        "chunk": chunk,
        "with_entropy": with_entropy,
        "entropy_grad": entropy_grad,
    }
    return head.logprobs_and_entropies(hidden, weight, token_ids, dtype=dtype, **settings)


def plain(hidden, weight, token_ids, temperature):
    """Log-probs and entropies by the definition, in the precision of the inputs."""
    every = torch.log_softmax(hidden @ weight.t() / temperature, -1)
    chosen = every.gather(1, token_ids[:, None])[:, 0]
    return chosen, -(every.exp() * every).sum(-1)


def case(rows, width, vocabulary, dtype=torch.float32):
    """Hidden states, weight, tokens and upward gradients, the first two with gradients."""
    hidden, weight = torch.randn(rows, width), torch.randn(vocabulary, width) / width**0.5
    tokens = torch.randint(vocabulary, (rows,))
    leaves = [(2 * each).to(dtype).float().requires_grad_() for each in (hidden, weight)]
    return *leaves, tokens, torch.randn(rows), torch.randn(rows)


def doubled(hidden, weight):
    return hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()


def assert_near(found, wanted, share):
    """Within `share` of the largest number."""
    limit = share * wanted.detach().abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(found.double(), wanted.double(), atol=limit, rtol=0)


# --- log-probs and entropies ----------------------------------------------------------------------


def test_log_probs_by_hand(backend):
    # logits [0, 2 ln 3, 2 ln 2], halved by the temperature: p = [1, 3, 2] / 6
    ln2, ln3 = math.log(2), math.log(3)
    hidden = torch.tensor([[2.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[0.0, 0.0], [ln3, 0.0], [0.0, 2 * ln2]], requires_grad=True)
    logprob, entropy = measure(hidden, weight, torch.tensor([1]), 2.0, entropy_grad=True)
    assert logprob.item() == pytest.approx(-ln2, abs=1e-6)
    assert entropy.item() == pytest.approx(math.log(6) - ln3 / 2 - ln2 / 3, abs=1e-6)
    # d log p₁ / d z = (1[v = 1] - p) / T = [-1/12, 1/4, -1/6]
    by_hidden, by_weight = torch.autograd.grad(logprob, [hidden, weight], retain_graph=True)
    assert by_hidden[0].tolist() == pytest.approx([ln3 / 4, -ln2 / 3], abs=1e-6)
    wanted = [-1 / 6, -1 / 12, 1 / 2, 1 / 4, -1 / 3, -1 / 6]
    assert by_weight.flatten().tolist() == pytest.approx(wanted, abs=1e-6)
    # d H / d z = -p (log p + H) / T; for p₀ = 1/6: log p₀ + H = -ln 3 / 2 - ln 2 / 3
    [by_weight] = torch.autograd.grad(entropy, weight)
    assert by_weight[0].tolist() == pytest.approx(
        [(ln3 / 2 + ln2 / 3) / 6, (ln3 / 2 + ln2 / 3) / 12], abs=1e-6
    )


@pytest.mark.parametrize("chunk", [1024, 40, 1])
@pytest.mark.parametrize(("rows", "width", "vocabulary"), [(1, 33, 2), (100, 33, 300), (70, 8, 65)])
def test_log_probs_entropies_and_their_gradients(backend, rows, width, vocabulary, chunk):
    hidden, weight, tokens, up, up_entropy = case(rows, width, vocabulary)
    doubles = doubled(hidden, weight)
    found = measure(hidden, weight, tokens, 0.7, chunk, entropy_grad=True)
    wanted = plain(*doubles, tokens, 0.7)
    for each, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(each.double(), want, atol=1e-5, rtol=0)
    grads = torch.autograd.grad(found, [hidden, weight], [up, up_entropy])
    wants = torch.autograd.grad(wanted, doubles, [up.double(), up_entropy.double()])
    for each, want in zip(grads, wants, strict=True):
        assert_near(each, want, 1e-5)


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("chunk", [1024, 33])
def test_without_a_gradient_through_the_entropies(backend, chunk, with_entropy):
    hidden, weight, tokens, up, _ = case(70, 16, 130)
    doubles = doubled(hidden, weight)
    found, entropies = measure(hidden, weight, tokens, 1.3, chunk, with_entropy=with_entropy)
    wanted, want_entropies = plain(*doubles, tokens, 1.3)
    assert not entropies.requires_grad
    if not with_entropy:
        want_entropies = torch.zeros(70).double()
    torch.testing.assert_close(entropies.double(), want_entropies, atol=1e-5, rtol=0)
    grads = torch.autograd.grad(found, [hidden, weight], up)
    wants = torch.autograd.grad(wanted, doubles, up.double())
    for each, want in zip(grads, wants, strict=True):
        assert_near(each, want, 1e-5)


@pytest.mark.parametrize("used", [0, 1])
def test_where_only_one_result_is_used(backend, used):
    hidden, weight, tokens, up, _ = case(9, 16, 40)
    doubles = doubled(hidden, weight)
    found = measure(hidden, weight, tokens, 0.7, entropy_grad=True)[used]
    grads = torch.autograd.grad(found, [hidden, weight], up)
    wants = torch.autograd.grad(plain(*doubles, tokens, 0.7)[used], doubles, up.double())
    for each, want in zip(grads, wants, strict=True):
        assert_near(each, want, 1e-5)


def test_gradients_flow_only_where_they_are_asked_for(backend):
    hidden, weight, tokens, up, _ = case(9, 16, 40)
    both = torch.autograd.grad(measure(hidden, weight, tokens)[0], [hidden, weight], up)
    for own, leaf in enumerate((hidden, weight)):
        other = weight if own == 0 else hidden
        other.requires_grad_(False)
        [grad] = torch.autograd.grad(measure(hidden, weight, tokens)[0], leaf, up)
        other.requires_grad_()
        torch.testing.assert_close(grad, both[own])
    with torch.no_grad():
        assert not measure(hidden, weight, tokens)[0].requires_grad


@pytest.mark.parametrize("chunk", [1024, 4])
def test_a_graph_can_be_used_twice(backend, chunk):
    hidden, weight, tokens, up, _ = case(9, 16, 40)
    found = measure(hidden, weight, tokens, 0.7, chunk)[0]
    once = torch.autograd.grad(found, [hidden, weight], up, retain_graph=True)
    again = torch.autograd.grad(found, [hidden, weight], up)
    for a, b in zip(once, again, strict=True):
        torch.testing.assert_close(a, b)


def test_without_a_token(backend):
    hidden, weight, tokens, up, _ = case(0, 16, 40)
    found, entropies = measure(hidden, weight, tokens, 0.7)
    assert found.shape == entropies.shape == (0,)
    [grad] = torch.autograd.grad(found, hidden, up)
    assert grad.shape == (0, 16)
    measure(hidden, weight, tokens)[0].sum().backward()  # a batch without completions is learned
    assert weight.grad is None or not weight.grad.any()


@NEEDS_C
@pytest.mark.parametrize("piece", [1, 300, 1000, 1 << 22])
def test_logits_come_in_pieces(monkeypatch, piece):
    hidden, weight, tokens, up, up_entropy = case(20, 16, 100)
    doubles = doubled(hidden, weight)
    wanted = plain(*doubles, tokens, 0.7)
    wants = torch.autograd.grad(wanted, doubles, [up.double(), up_entropy.double()])
    monkeypatch.setattr(head, "PIECE", piece)  # numbers; here up to 10 rows
    for chunk in (7, 20):
        found = measure(hidden, weight, tokens, 0.7, chunk, entropy_grad=True)
        torch.testing.assert_close(found[0].double(), wanted[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(found[1].double(), wanted[1], atol=1e-5, rtol=0)
        grads = torch.autograd.grad(found, [hidden, weight], [up, up_entropy])
        for each, want in zip(grads, wants, strict=True):
            assert_near(each, want, 1e-5)


@NEEDS_C
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 20),
    vocabulary=st.integers(2, 200),
    chunk=st.integers(1, 25),
    temperature=st.floats(0.3, 3),
)
def test_c_and_torch_agree(rows, vocabulary, chunk, temperature):
    torch.manual_seed(rows)
    hidden, weight, tokens, up, up_entropy = case(rows, 5, vocabulary)

    def both():
        found = measure(hidden, weight, tokens, temperature, chunk, entropy_grad=True)
        return [*found, *torch.autograd.grad(found, [hidden, weight], [up, up_entropy])]

    ours = both()
    with backend_of("torch"):
        theirs = both()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-5)


# --- bfloat16 -------------------------------------------------------------------------------------


@NEEDS_C
@pytest.mark.parametrize("chunk", [1024, 50])
@pytest.mark.parametrize("vocabulary", [33, 64, 65, 300])
@pytest.mark.parametrize("rows", [1, 96, 103])
def test_bfloat16_is_for_the_factors_only(rows, vocabulary, chunk):
    # Of numbers that bfloat16 has exactly, log-probs are as good as those in float32.
    hidden, weight, tokens, up, up_entropy = case(rows, 34, vocabulary, BF16)
    doubles = doubled(hidden, weight)
    wanted = plain(*doubles, tokens, 0.7)
    found = measure(hidden, weight, tokens, 0.7, chunk, entropy_grad=True, dtype=BF16)
    for each, want in zip(found, wanted, strict=True):
        assert each.dtype == torch.float32
        torch.testing.assert_close(each.double(), want, atol=1e-5, rtol=0)
    grads = torch.autograd.grad(found, [hidden, weight], [up, up_entropy])
    wants = torch.autograd.grad(wanted, doubles, [up.double(), up_entropy.double()])
    for each, want in zip(grads, wants, strict=True):
        assert each.dtype == torch.float32
        assert_near(each, want, 0.01)


@NEEDS_C
@pytest.mark.parametrize("width", [33, 34])
def test_bfloat16_rounds_the_factors(width):
    hidden, weight, tokens, *_ = case(50, width, 70)
    wanted = plain(*doubled(hidden, weight), tokens, 1.0)[0]
    found = measure(hidden, weight, tokens, dtype=BF16)[0]
    gap = (found - wanted).abs()
    assert 1e-3 * (width % 2 == 0) < gap.max() < 0.1  # an odd width is left in float32
    assert gap.mean() < 0.02


@pytest.mark.parametrize(("rows", "width", "vocabulary"), [(1, 2, 3), (97, 34, 130), (6, 33, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_logits_of_a_head(backend, rows, width, vocabulary, dtype):
    hidden, weight, *_ = case(rows, width, vocabulary, BF16)
    with torch.no_grad():
        logits = head.Head(weight, dtype).logits(hidden.to(dtype))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(
        logits.double(), hidden.double() @ weight.double().t(), atol=1e-5, rtol=1e-6
    )


def test_a_head_of_no_rows(backend):
    for dtype in (torch.float32, BF16):
        assert head.Head(torch.randn(5, 4), dtype).logits(torch.zeros(0, 4)).shape == (0, 5)


def packed(weight, bias=None):
    if not can_pack(weight, BF16):
        pytest.skip("the processor has no bfloat16 products")
    return Packed(weight, bias)


@NEEDS_C
@pytest.mark.parametrize("rows", [0, 1, 5, 6, 7, 96, 97, 200])
@pytest.mark.parametrize(("vocabulary", "width"), [(1, 2), (33, 34), (64, 16), (65, 6), (130, 100)])
def test_packed_products(rows, vocabulary, width):
    x, weight, bias = (
        torch.randn(rows, width),
        torch.randn(vocabulary, width),
        torch.randn(vocabulary),
    )
    wanted = x.bfloat16().double() @ weight.bfloat16().double().t()
    plain, biased = packed(weight), packed(weight, bias.bfloat16())
    torch.testing.assert_close(
        plain.product(x, torch.float32).double(), wanted, atol=2e-5, rtol=1e-6
    )
    found = plain(x)
    assert found.dtype == BF16
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=1.01 * HALF_STEP)
    assert torch.equal(biased(x), found + bias.bfloat16())
    for i in (0, rows // 2, rows - 1) if rows else ():  # a row does not depend on the others
        assert torch.equal(plain(x[i : i + 1])[0], found[i])


# --- numbers far out and broken ones --------------------------------------------------------------


def by_logits(logits, token, temperature=1.0, **settings):
    """Log-prob, entropy and the gradients of the logits: they are the weight of a head of width 1.

    The first result is log-prob and entropy, the second and third the gradient of each.
    """
    weight = torch.tensor(logits)[:, None].requires_grad_()
    found = measure(
        torch.ones(1, 1), weight, torch.tensor([token]), temperature, entropy_grad=True, **settings
    )
    grads = [torch.autograd.grad(each, weight, retain_graph=True)[0][:, 0] for each in found]
    return [each.item() for each in found], *(grad.tolist() for grad in grads)


@pytest.mark.parametrize("token", [0, 1, 2])
def test_logits_far_out(backend, token):
    # Two that share all there is, a nat apart, and one that has none; float32 at 10⁴ has steps
    # of 0.001, of which a log-prob may be off by one, and by no more.
    found, grad, entropy_grad = by_logits([1e4, 1e4 - 1, -1e4], token)
    p = [1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0.0]
    logs = [math.log(p[0]), math.log(p[1]), -2e4 + math.log(p[0])]
    h = -(p[0] * logs[0] + p[1] * logs[1])
    assert found == pytest.approx([logs[token], h], abs=0.001)
    wanted = [float(v == token) - p[v] for v in range(3)]
    assert grad == pytest.approx(wanted, abs=0.001)
    wanted = [-p[v] * (logs[v] + h) for v in range(3)]
    assert entropy_grad == pytest.approx(wanted, abs=0.001)


@pytest.mark.parametrize("token", [0, 3])
def test_logits_of_minus_infinity_are_tokens_that_cannot_occur(backend, token):
    # p = [2, 0, 1, 1] / 4
    found, grad, _ = by_logits([math.log(2), -math.inf, 0.0, 0.0], token)
    logp = math.log([2, 0, 1, 1][token] / 4)
    assert found == pytest.approx([logp, 1.5 * math.log(2)], abs=1e-6)
    share = [0.5, 0.0, 0.25, 0.25]
    wanted = [float(v == token) - share[v] for v in range(4)]
    assert grad == pytest.approx(wanted, abs=1e-6)


def test_a_token_that_cannot_occur(backend):
    assert by_logits([0.0, -math.inf], 1)[0][0] == -math.inf


@pytest.mark.parametrize("logits", [[0.0, math.nan, 1.0], [math.nan] * 3, [0.0, 0.0, math.inf]])
def test_broken_logits_give_no_plausible_number(backend, logits):
    found, grad, entropy_grad = by_logits(logits, 0)
    for number in (*found, sum(grad), sum(entropy_grad)):
        assert not math.isfinite(number)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_nan_stays_in_its_row(backend, dtype):
    hidden, weight, tokens, up, _ = case(70, 16, 40, BF16)
    with torch.no_grad():
        hidden[5, 3] = math.nan
    found, entropies = measure(hidden, weight, tokens, dtype=dtype)
    assert found.isnan().nonzero().flatten().tolist() == [5]
    assert entropies.isnan().nonzero().flatten().tolist() == [5]
    by_hidden, by_weight = torch.autograd.grad(found, [hidden, weight], up)
    assert by_hidden.isnan().any(1).nonzero().flatten().tolist() == [5]
    assert by_weight.isnan().any()


# --- sampling -------------------------------------------------------------------------------------


def inverted(logits, u, temperature):
    """The definition in float64: the first token at which the cumulative distribution exceeds u."""
    scaled = logits.double().numpy() / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    return int(np.argmax(np.cumsum(p) > u)), p


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_by_hand(backend, temperature):
    # p = [1, 3, 0, 4] / 8
    logs = [0.0, math.log(3), -math.inf, math.log(4)]
    draws = [0.0, 0.12, 0.13, 0.49, 0.51, BIGGEST]
    logits = torch.tensor([logs] * len(draws)) * temperature
    tokens, found = sample(logits, torch.tensor(draws), temperature=temperature)
    assert tokens.tolist() == [0, 0, 1, 1, 3, 3]
    wanted = [math.log([1, 3, 0, 4][token] / 8) for token in tokens.tolist()]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("vocabulary", [1, 2, 255, 256, 257, 1000])
@pytest.mark.parametrize("temperature", [0.7, 1.9])
def test_samples_invert_the_cumulative_distribution(backend, vocabulary, temperature):
    logits = 2 * torch.randn(50, vocabulary)
    uniform = torch.rand(50)
    tokens, found = sample(logits, uniform, temperature=temperature)
    for row, u, token, logprob in zip(
        logits, uniform.tolist(), tokens.tolist(), found.tolist(), strict=True
    ):
        wanted, p = inverted(row, u, temperature)
        # At the border of two tokens rounding may tip the scales.
        border = abs(np.cumsum(p) - u).min() < 1e-6
        assert token == wanted or border
        assert logprob == pytest.approx(math.log(p[token]), abs=1e-5)


def test_samples_are_as_frequent_as_they_are_likely(backend):
    num = 4000
    logits = torch.randn(1, 600)
    tokens, _ = sample(logits.repeat(num, 1), (torch.arange(num) + 0.5) / num, temperature=0.8)
    shares = torch.bincount(tokens, minlength=600) / num
    # Over a grid of draws, a share is off by at most one of them.
    assert (shares - torch.softmax(logits[0] / 0.8, -1)).abs().max() <= 1.001 / num


def test_a_token_that_cannot_occur_is_never_sampled(backend):
    # Whole blocks of them, before, between and behind those that can.
    logits = torch.full((3, 1500), -math.inf)
    logits[0, 300], logits[0, 700] = 0.0, 1.0
    logits[1, 0] = 5.0
    logits[2, 1499] = -1e4
    for u in (0.0, 1e-30, 0.25, 0.5, BIGGEST):
        tokens, found = sample(logits, torch.full((3,), u), temperature=0.5)
        assert tokens[0] in (300, 700)
        assert tokens[1:].tolist() == [0, 1499]
        assert found[1:].tolist() == [0, 0]
        assert found[0].isfinite()


def test_rounding_never_steps_on_a_token_that_cannot_occur(backend):
    # Half of the first block can, with a twentieth of all there is; draws close to its end, where
    # sums that were rounded in different orders disagree.
    logits = torch.full((30, 512), -math.inf)
    logits[:, :128], logits[:, 256:] = torch.randn(30, 128) - 2.3, torch.randn(30, 256)
    border = torch.softmax(logits.double(), -1)[:, :128].sum(-1)
    draws = (border[:, None] * (1 + torch.linspace(-2e-7, 2e-7, 101).double())).float()
    tokens, found = sample(logits.repeat_interleave(101, 0), draws.flatten(), temperature=1.0)
    assert {bool(token < 128) for token in tokens} == {True, False}
    assert found.isfinite().all()


@NEEDS_C
@given(
    st.lists(st.one_of(st.floats(-60, 10), st.just(-math.inf)), min_size=1, max_size=40),
    st.floats(0, BIGGEST, width=32),
    st.floats(0.05, 3),
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_sampled_can_occur(logits, u, temperature):
    logits.append(0.0)
    rows = torch.tensor([logits])
    tokens, logprobs = sample(rows, torch.tensor([u]), temperature=temperature)
    token = int(tokens[0])
    wanted = torch.log_softmax(rows[0].double() / temperature, -1)[token].item()
    assert wanted > -100  # all that e^x has in float32
    assert logprobs.item() == pytest.approx(wanted, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_samples_of_logits_far_out(backend, size):
    logits = torch.tensor([[size, size + 1, size - 1e4]] * 2)
    tokens, found = sample(logits, torch.tensor([0.2, 0.9]), temperature=1.0)
    assert tokens.tolist() == [0, 1]
    wanted = [-math.log(1 + math.e), -math.log(1 + math.exp(-1))]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("where", [0, 300, 999])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_logit_is_seen_in_the_log_prob(backend, where, bad):
    logits = torch.randn(2, 1000)
    logits[1, where] = bad
    tokens, found = sample(logits, torch.tensor([0.5, 0.5]), temperature=1.0)
    assert found.isnan().tolist() == [False, True]
    assert 0 <= int(tokens[1]) < 1000


def test_no_row_to_sample_for(backend):
    tokens, found = sample(torch.zeros(0, 7), torch.zeros(0), temperature=1.0)
    assert tokens.shape == found.shape == (0,)


# --- the same bits --------------------------------------------------------------------------------


def everything(dtype, shift=0):
    """Results of all operations, on inputs that lie `shift` numbers into memory."""
    generator = torch.Generator().manual_seed(1)

    def made(*shape):
        memory = torch.empty(math.prod(shape) + shift)
        view = memory[shift:].view(shape)
        return view.copy_(torch.randn(*shape, generator=generator)).requires_grad_()

    hidden, weight, logits = made(130, 34), made(301, 34), made(130, 301)
    tokens = torch.arange(130)
    found = measure(hidden, weight, tokens, 0.7, entropy_grad=True, dtype=dtype)
    uniform = torch.rand(130, generator=generator)
    drawn = head.sample(logits.detach(), uniform, 0.7)
    lib = library()
    assert lib is not None
    # The gradient of the logits alone: what becomes of it is torch's product.
    grad = torch.empty(130, 301)
    lib.logits_gradient_float(
        *(long(130), long(301), at(logits), at(tokens)),
        *(ctypes.c_float(0.7), at(found[0]), at(found[1]), at(found[0])),
        *(at(found[1]), at(grad)),
    )
    packed = head.Head(weight, dtype).logits(hidden.to(dtype))
    return [*found, *drawn, grad, packed]


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


# --- which heads it serves ------------------------------------------------------------------------


@NEEDS_C
def test_it_serves_plain_float32_weights():
    class Quantized(torch.nn.Parameter):
        pass

    weight = torch.randn(4, 2)
    assert head.available(weight)
    assert head.available(torch.nn.Parameter(weight))
    assert not head.available(Quantized(weight))
    assert not head.available(weight.half())
    assert not head.available(weight.double())
    assert not head.available(weight.to("meta"))
    assert head.in_c(weight)
    assert not head.in_c(weight.half())
    with backend_of("torch"):
        assert head.available(weight)
        assert not head.in_c(weight)
