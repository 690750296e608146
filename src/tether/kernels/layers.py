"""The operations inside a Llama layer, forward and backward, over tokens without padding.

Tokens of all sequences lie one after the other, in rows; `offsets` says where each sequence
starts, and ends with the number of rows. The residual stream is float32; other activations are
float32 or bfloat16. Each operation is one autograd function: in C where `build.library` has it and
the tensors are on the CPU, else in torch, or in Triton (`gpu_layers.py`).
"""

import ctypes
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tether.kernels import gpu, gpu_layers
from tether.kernels.build import library

BLOCKS = 16  # partial sums of a norm's weight gradient; fixed, so that threads do not matter


class Rotary(NamedTuple):
    """Cosines and sines of the rotary positions, each (positions, head size / 2), float32."""

    cos: Tensor
    sin: Tensor


class Heads(NamedTuple):
    """Numbers of query heads, of key and value heads, and of numbers in a head."""

    query: int
    key: int
    size: int


def kernel(name: str, *tensors: Tensor) -> Any:
    """The C function of that name for the type of the first tensor; None where torch is to do it.

    Raises:
        ValueError: A tensor is not contiguous, which C would misread.
    """
    lib = library() if tensors[0].device.type == "cpu" else None
    suffix = {torch.float32: "_float", torch.bfloat16: "_bf16"}.get(tensors[0].dtype)
    if lib is None or suffix is None:
        return None
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError(f"{name}: tensors must be contiguous")
    return getattr(lib, name + suffix)


def long(number: int) -> ctypes.c_long:
    """An integer argument."""
    return ctypes.c_long(number)


def at(tensor: Tensor | None) -> ctypes.c_void_p:
    """A tensor argument; None is C's NULL."""
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        x = x.contiguous()
        delta = None if delta is None else delta.contiguous()
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        rows, width = x.shape
        if call := kernel("add_norm", out, x, weight):
            total = x if delta is None else torch.empty_like(x)
            rstd = torch.empty(rows)
            call(
                *(long(rows), long(width), at(x), at(delta), at(weight), ctypes.c_float(eps)),
                *(at(total), at(out), at(rstd)),
            )
        else:
            add_norm = gpu_layers.add_norm if gpu.serves(x, out) else _add_norm
            total, out, rstd = add_norm(x, delta, weight, eps, dtype)
        ctx.save_for_backward(total, weight, rstd)
        ctx.delta_dtype = None if delta is None else delta.dtype
        return (x.view_as(x) if delta is None else total), out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_total, grad_out = grads
        total, weight, rstd = ctx.saved_tensors
        if grad_out is None:
            delta = None if ctx.delta_dtype is None or grad_total is None else grad_total
            return (
                grad_total,
                None if delta is None else delta.to(ctx.delta_dtype),
                None,
                None,
                None,
            )
        grad_out = grad_out.contiguous()
        grad_total = None if grad_total is None else grad_total.contiguous()
        grad_delta = None
        rows, width = total.shape
        if call := kernel("add_norm_backward", grad_out, total, weight):
            grad_x, partial = torch.empty_like(total), torch.zeros(BLOCKS, width)
            if ctx.delta_dtype is not None:
                grad_delta = torch.empty_like(grad_out)
            call(
                *(long(rows), long(width), long(BLOCKS), at(total), at(weight), at(rstd)),
                *(at(grad_out), at(grad_total), at(grad_x), at(grad_delta), at(partial)),
            )
            grad_weight = partial.sum(0)
        else:
            backward = (
                gpu_layers.add_norm_backward if gpu.serves(total, grad_out) else _add_norm_backward
            )
            grad_x, grad_delta, grad_weight = backward(
                total, weight, rstd, grad_out, grad_total, ctx.delta_dtype
            )
        return grad_x, grad_delta, grad_weight, None, None


def _add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    total = x if delta is None else x + delta
    rstd = torch.rsqrt(total.square().mean(-1) + eps)
    return total, (total * rstd[:, None] * weight).to(dtype), rstd


def _add_norm_backward(
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    grad_out: Tensor,
    grad_total: Tensor | None,
    delta_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    unit, grad = total * rstd[:, None], grad_out.float()
    grad_weight, grad = (grad * unit).sum(0), grad * weight
    grad_x = (grad - unit * (grad * unit).mean(-1, keepdim=True)) * rstd[:, None]
    grad_x = grad_x if grad_total is None else grad_x + grad_total
    return grad_x, None if delta_dtype is None else grad_x.to(delta_dtype), grad_weight


def add_norm(
    x: Float[Tensor, "N D"],
    delta: Float[Tensor, "N D"] | None,
    weight: Float[Tensor, " D"],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """X + delta, and its root-mean-square norm in `dtype`, which `delta` has too.

        y = w · s / √(mean(s²) + ε),   s = x + delta

    Source: Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    total, normed = _AddNorm.apply(x, delta, weight, eps, dtype)  # pyright: ignore
    return total, normed


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        both = both.contiguous()
        ctx.save_for_backward(both)
        rows, width = both.shape[0], both.shape[1] // 2
        if call := kernel("swiglu", both):
            out = both.new_empty(rows, width)
            call(long(rows), long(width), at(both), at(out))
            return out
        return gpu_layers.swiglu(both) if gpu.serves(both) else _swiglu(both)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad_out = grads[0].contiguous()
        (both,) = ctx.saved_tensors
        rows, width = grad_out.shape
        if call := kernel("swiglu_backward", both, grad_out):
            grad = torch.empty_like(both)
            call(long(rows), long(width), at(both), at(grad_out), at(grad))
            return grad
        backward = gpu_layers.swiglu_backward if gpu.serves(both, grad_out) else _swiglu_backward
        return backward(both, grad_out)


def _swiglu(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, -1)
    return F.silu(gate) * up


def _swiglu_backward(both: Tensor, grad_out: Tensor) -> Tensor:
    gate, up = both.chunk(2, -1)
    share = torch.sigmoid(gate)
    grad_gate = grad_out * up * (share * (1 + gate * (1 - share)))
    return torch.cat([grad_gate, grad_out * (gate * share)], -1)


def swiglu(both: Float[Tensor, "N W"]) -> Float[Tensor, "N W//2"]:
    """silu(gate) · up, of rows that hold gate and up side by side.

    Source: Shazeer 2020, https://arxiv.org/abs/2002.05202.
    """
    return _SwiGLU.apply(both)  # pyright: ignore


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, offsets: Tensor, rotary: Rotary | None, heads: Heads
    ) -> Tensor:
        out = qkv.new_empty(len(qkv), heads.query * heads.size)
        lse = torch.empty(len(qkv), heads.query)
        call = kernel("attention", qkv, offsets)
        call(*_attention_arguments(qkv, offsets, rotary, heads), at(out), at(lse))
        ctx.save_for_backward(qkv, offsets, out, lse)
        ctx.rotary, ctx.heads = rotary, heads
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, offsets, out, lse = ctx.saved_tensors
        grad_out, grad = grads[0].contiguous(), torch.empty_like(qkv)
        call = kernel("attention_backward", qkv)
        arguments = _attention_arguments(qkv, offsets, ctx.rotary, ctx.heads)
        call(*arguments, at(out), at(lse), at(grad_out), at(grad))
        return grad, None, None, None


def _attention_arguments(
    qkv: Tensor, offsets: Tensor, rotary: Rotary | None, heads: Heads
) -> list[Any]:
    cos, sin = rotary or (None, None)
    shape = (long(heads.query), long(heads.key), long(heads.size))
    return [long(len(offsets) - 1), at(offsets), *shape, at(qkv), at(cos), at(sin)]


def attention(
    qkv: Float[Tensor, "N W"], offsets: Int[Tensor, " S"], rotary: Rotary | None, heads: Heads
) -> Float[Tensor, "N O"]:
    """Causal self-attention within each sequence, positions from 0 in each.

        out = softmax(R(q)·R(k)ᵀ / √d) · v

    with R the rotation by position (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    Args:
        qkv: Queries, keys and values side by side, W = (query + 2·key heads) · d.
        offsets: Row where each sequence starts, and the number of rows; int64.
        rotary: Tables that reach to the longest sequence; None = positions are not rotated in.
        heads: Their numbers and size.
    """
    qkv = qkv.contiguous()
    if kernel("attention", qkv):
        return _Attention.apply(qkv, offsets, rotary, heads)  # pyright: ignore
    if qkv.is_cuda and qkv.dtype == torch.bfloat16 and heads.size % 8 == 0 and gpu.serves(qkv):
        return _flash_attention(qkv, offsets, rotary, heads)
    return _attention(qkv, offsets, rotary, heads)


def _flash_attention(qkv: Tensor, offsets: Tensor, rotary: Rotary | None, heads: Heads) -> Tensor:
    """The same by FlashAttention, which takes rows without padding."""
    turned = _Rotated.apply(qkv, offsets, rotary, heads) if rotary else qkv  # pyright: ignore
    q, k, v = turned.unflatten(-1, (-1, heads.size)).split([heads.query, heads.key, heads.key], 1)
    starts, longest = offsets.int(), int(offsets.diff().max())
    flash = torch.ops.aten._flash_attention_forward
    out = flash(q, k, v, starts, starts, longest, longest, 0.0, True, False)[0]
    return out.flatten(1)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, offsets: Tensor, rotary: Rotary, heads: Heads) -> Tensor:
        position = torch.arange(len(qkv), device=qkv.device)
        position -= offsets[:-1].repeat_interleave(offsets.diff(), output_size=len(qkv))
        ctx.save_for_backward(position)
        ctx.rotary, ctx.heads = rotary, heads
        return gpu_layers.rotated(qkv, position, rotary.cos, rotary.sin, heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (position,) = ctx.saved_tensors
        arguments = position, ctx.rotary.cos, ctx.rotary.sin, ctx.heads
        return gpu_layers.rotated(grads[0].contiguous(), *arguments, back=True), None, None, None


def _attention(qkv: Tensor, offsets: Tensor, rotary: Rotary | None, heads: Heads) -> Tensor:
    """The same in torch, on the rectangle of padded sequences."""
    lengths = offsets.diff()
    inside = torch.arange(int(lengths.max()), device=qkv.device) < lengths[:, None]
    grid = qkv.new_zeros(*inside.shape, qkv.shape[1])
    grid[inside] = qkv
    q, k, v = split_heads(grid, heads)
    if rotary:
        cos, sin = (table[: inside.shape[1]] for table in rotary)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape != k.shape)
    return out.transpose(1, 2).flatten(2)[inside]


def split_heads(qkv: Float[Tensor, "B S W"], heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (B, heads, S, d)."""
    parts = qkv.unflatten(-1, (-1, heads.size)).transpose(1, 2)
    q, k, v = parts.split([heads.query, heads.key, heads.key], 1)
    return q, k, v


def rotate(x: Float[Tensor, "*B S d"], cos: Tensor, sin: Tensor) -> Float[Tensor, "*B S d"]:
    """Heads rotated by position, the pairs being half a head apart as in transformers."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
