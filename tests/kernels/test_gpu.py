"""The Triton kernels give what torch gives. Skipped without a GPU; see tests/test_gpu.py.

With Triton installed they also run on a CPU, in its interpreter:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_gpu.py
"""

import os

import pytest
import torch
from tests.kernels.backends import HALF_STEP, rotary_of

from tether.kernels import gpu, gpu_cache, gpu_head, gpu_layers, head, layers
from tether.kernels.cache import Cache
from tether.kernels.layers import Heads

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
SERVED = (DEVICE.type == "cpu" or torch.cuda.is_available()) and gpu._can_compile()
pytestmark = pytest.mark.skipif(not SERVED, reason="no GPU here")

KINDS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(DEVICE, dtype)


def assert_near(found, wanted, dtype=torch.float32):
    """Equal but for the order of sums, and for two roundings to bfloat16."""
    for one, other in zip(found, wanted, strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == other.dtype
        one, other = one.float(), other.float()
        step = 1e-5 if dtype == torch.float32 else 2 * HALF_STEP
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=step, atol=step * scale)


@KINDS
@pytest.mark.parametrize("delta", [False, True])
def test_add_norm(dtype, delta):
    x, weight = normal(7, 48), normal(48)
    other = normal(7, 48, dtype=dtype) if delta else None
    arguments = x, other, weight, 1e-5, dtype
    assert_near(gpu_layers.add_norm(*arguments), layers._add_norm(*arguments), dtype)


@KINDS
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("rows", [5, gpu_layers.PARTS + 3])
def test_gradient_of_add_norm(dtype, more, rows):
    total, weight, rstd = normal(rows, 48), normal(48), normal(rows).exp()
    up = normal(rows, 48, dtype=dtype), normal(rows, 48) if more else None
    for kind in (None, dtype):
        arguments = total, weight, rstd, *up, kind
        wanted = layers._add_norm_backward(*arguments)
        assert_near(gpu_layers.add_norm_backward(*arguments), wanted, dtype)


@KINDS
@pytest.mark.parametrize("width", [48, 1025])
def test_swiglu(dtype, width):
    both, up = normal(3, 2 * width, dtype=dtype), normal(3, width, dtype=dtype)
    assert_near([gpu_layers.swiglu(both)], [layers._swiglu(both)], dtype)
    wanted = layers._swiglu_backward(both.float(), up.float()).to(dtype)
    assert_near([gpu_layers.swiglu_backward(both, up)], [wanted], dtype)


@KINDS
def test_rotation_and_back(dtype):
    heads, position = Heads(3, 1, 12), torch.tensor([4, 0, 2, 5, 1], device=DEVICE)
    cos, sin = (each.to(DEVICE) for each in rotary_of(6, 12))
    qkv = normal(5, 5 * 12, dtype=dtype)
    q, k, v = qkv.unflatten(-1, (5, 12)).split([3, 1, 1], 1)
    at = cos[position][:, None], sin[position][:, None]
    wanted = torch.cat([layers.rotate(q, *at), layers.rotate(k, *at), v], 1).flatten(1)
    found = gpu_layers.rotated(qkv, position, cos, sin, heads)
    assert_near([found], [wanted], dtype)
    assert_near([gpu_layers.rotated(found, position, cos, sin, heads, back=True)], [qkv], dtype)


@KINDS
@pytest.mark.parametrize("size", gpu.HEAD_SIZES)
@pytest.mark.parametrize("counts", [(2, 2), (6, 2), (40, 2)])
@pytest.mark.parametrize(("rotate", "few"), [(False, 0), (True, 0), (True, 3)])
def test_the_cache(monkeypatch, dtype, size, counts, rotate, few):
    heads, room = Heads(*counts, size), 192
    tables = rotary_of(room, size)
    rotary = layers.Rotary(*(each.to(DEVICE) for each in tables)) if rotate else None
    slot = torch.tensor([0, 2, 3], device=DEVICE)
    position = torch.tensor([0, 63, 130], device=DEVICE)
    monkeypatch.setattr(gpu_cache, "FEW", few)
    monkeypatch.setattr(layers, "library", lambda: None)
    if DEVICE.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter has no bfloat16 products")
    start = normal(4, heads.key, size, room, dtype=dtype), normal(4, heads.key, room, size)
    qkv = normal(3, (heads.query + 2 * heads.key) * size, dtype=dtype)

    def step():
        cache = Cache(start[0].clone(), start[1].to(dtype, copy=True))
        cache.write(qkv, slot, position, rotary, heads)
        return *cache, cache.attention(qkv, slot, position, rotary, heads, seen=131)

    found = step()
    monkeypatch.setattr(gpu, "serves", lambda *tensors: False)
    wanted = step()
    assert_near(found[:2], wanted[:2], dtype)
    assert_near(found[2:], wanted[2:], dtype)


@KINDS
@pytest.mark.parametrize("vocabulary", [40, gpu_head.WIDE + 5])
@pytest.mark.parametrize("entropy", [False, True])
def test_log_probs_and_the_gradient_of_logits(dtype, vocabulary, entropy):
    logits, tokens = normal(5, vocabulary), torch.tensor([0, 3, 39, 7, 7], device=DEVICE)
    logits[1, 2] = logits[2, 5:9] = -torch.inf
    wanted = head._measure(logits, tokens, 0.7, entropy)
    assert_near(gpu_head.measure(logits, tokens, 0.7, entropy), wanted)
    _, lse, entropies = wanted
    up = normal(5), normal(5) if entropy else None
    found, other = (torch.empty(5, vocabulary, dtype=dtype, device=DEVICE) for _ in range(2))
    gpu_head.gradient(logits, tokens, 0.7, lse, entropies, *up, found)
    head._gradient(logits, tokens, 0.7, lse, entropies, *up, other)
    assert_near([found], [other], dtype)


@pytest.mark.parametrize("vocabulary", [40, 2 * gpu_head.WIDE + 5])
def test_sampling(monkeypatch, vocabulary):
    logits, uniform = normal(64, vocabulary), torch.linspace(0, 1 - 2**-24, 64).to(DEVICE)
    logits[:, -3:] = -torch.inf
    logits[:, :2] = -torch.inf
    tokens, logprobs = gpu_head.sample(logits, uniform, 0.7)
    every = (logits.double() / 0.7).log_softmax(-1)
    assert_near([logprobs.double()], [every.gather(1, tokens[:, None])[:, 0]])
    assert torch.isfinite(logprobs).all()
    below = every.exp().cumsum(-1)
    reached = below.gather(1, tokens[:, None])[:, 0]
    share = every.exp().gather(1, tokens[:, None])[:, 0]
    assert (reached >= uniform - 1e-6).all()
    assert (reached - share <= uniform + 1e-6).all()
