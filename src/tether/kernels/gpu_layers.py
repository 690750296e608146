"""The operations inside a Llama layer in Triton, forward and backward: norm, SwiGLU, rotation."""

# pyright: basic, reportIndexIssue=false
from typing import Any, no_type_check

import torch
from torch import Tensor

from tether.kernels.gpu import block, tl, triton

PARTS = 512  # partial sums of a norm's weight gradient


def add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, its norm in `dtype`, and 1/√(mean square + ε) of each row."""
    rows, width = x.shape
    total = x if delta is None else torch.empty_like(x)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    rstd = torch.empty(rows, device=x.device)
    if rows:
        _add_norm[(rows,)](
            *(x, x if delta is None else delta, weight, total, out, rstd, width, eps),
            HAS_DELTA=delta is not None,
            BLOCK=block(width),
        )
    return total, out, rstd


@triton.jit
@no_type_check
def _add_norm(
    x,
    delta,
    weight,
    total,
    out,
    rstd,
    width,
    eps,
    HAS_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    here = row * width + columns
    s = tl.load(x + here, mask=inside, other=0.0)
    if HAS_DELTA:
        s += tl.load(delta + here, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + here, s, mask=inside)
    scale = 1 / tl.sqrt(tl.sum(s * s, 0) / width + eps)
    tl.store(rstd + row, scale)
    w = tl.load(weight + columns, mask=inside, other=0.0)
    tl.store(out + here, (s * scale * w).to(out.dtype.element_ty), mask=inside)


def add_norm_backward(
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    grad_out: Tensor,
    grad_total: Tensor | None,
    delta_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of x, of delta (None without one) and of the weight."""
    rows, width = total.shape
    parts = min(rows, PARTS)
    grad_x, partial = torch.empty_like(total), total.new_zeros(parts, width)
    kind = total.dtype if delta_dtype is None else delta_dtype
    grad_delta = grad_x if kind == total.dtype else torch.empty_like(total, dtype=kind)
    if rows:
        _add_norm_backward[(parts,)](
            *(total, weight, rstd, grad_out, grad_out if grad_total is None else grad_total),
            *(grad_x, grad_delta, partial, rows, width, parts),
            HAS_TOTAL=grad_total is not None,
            OTHER_DELTA=kind != total.dtype,
            BLOCK=block(width),
        )
    return grad_x, None if delta_dtype is None else grad_delta, partial.sum(0)


@triton.jit
@no_type_check
def _add_norm_backward(
    total,
    weight,
    rstd,
    grad_out,
    grad_total,
    grad_x,
    grad_delta,
    partial,
    rows,
    width,
    parts,
    HAS_TOTAL: tl.constexpr,
    OTHER_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(weight + columns, mask=inside, other=0.0)
    of_weight = tl.zeros([BLOCK], tl.float32)
    for row in range(part, rows, parts):
        here = row * width + columns
        scale = tl.load(rstd + row)
        unit = tl.load(total + here, mask=inside, other=0.0) * scale
        grad = tl.load(grad_out + here, mask=inside, other=0.0).to(tl.float32)
        of_weight += grad * unit
        grad = grad * w
        grad = (grad - unit * (tl.sum(grad * unit, 0) / width)) * scale
        if HAS_TOTAL:
            grad += tl.load(grad_total + here, mask=inside, other=0.0)
        tl.store(grad_x + here, grad, mask=inside)
        if OTHER_DELTA:
            tl.store(grad_delta + here, grad.to(grad_delta.dtype.element_ty), mask=inside)
    tl.store(partial + part * width + columns, of_weight, mask=inside)


# --- SwiGLU ---------------------------------------------------------------------------------------


def swiglu(both: Tensor) -> Tensor:
    """silu(gate) · up."""
    rows, width = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, width)
    if rows:
        _swiglu[(rows, triton.cdiv(width, 1024))](both, out, width, BLOCK=1024)
    return out


@triton.jit
@no_type_check
def _swiglu(both, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(both + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + (row * 2 + 1) * width + columns, mask=inside, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * width + columns, result.to(out.dtype.element_ty), mask=inside)


def swiglu_backward(both: Tensor, grad_out: Tensor) -> Tensor:
    """Gradient of gate and up side by side."""
    rows, width = grad_out.shape
    grad = torch.empty_like(both)
    if rows:
        grid = (rows, triton.cdiv(width, 1024))
        _swiglu_backward[grid](both, grad_out, grad, width, BLOCK=1024)
    return grad


@triton.jit
@no_type_check
def _swiglu_backward(both, grad_out, grad, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    left, right = row * 2 * width + columns, (row * 2 + 1) * width + columns
    gate = tl.load(both + left, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + right, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad_out + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    of_gate = g * up * share * (1 + gate * (1 - share))
    tl.store(grad + left, of_gate.to(grad.dtype.element_ty), mask=inside)
    tl.store(grad + right, (g * gate * share).to(grad.dtype.element_ty), mask=inside)


# --- rotary positions -----------------------------------------------------------------------------


def rotated(
    qkv: Tensor, position: Tensor, cos: Tensor, sin: Tensor, heads: Any, *, back: bool = False
) -> Tensor:
    """Queries, keys and values side by side, queries and keys rotated (or back)."""
    out = torch.empty_like(qkv)
    every = heads.query + 2 * heads.key
    if len(qkv):
        _rotated[(len(qkv),)](
            *(qkv, position, cos, sin, out, heads.size // 2),
            *(heads.query + heads.key, every, -1.0 if back else 1.0),
            HEADS=block(every),
            BLOCK=block(heads.size // 2),
        )
    return out


@triton.jit
@no_type_check
def _rotated(
    qkv,
    position,
    cos,
    sin,
    out,
    half,
    turned,
    every,
    sign,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head, columns = tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (head < every) & (columns < half)
    start = (row * every + head) * 2 * half + columns
    a = tl.load(qkv + start, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(qkv + start + half, mask=inside, other=0.0).to(tl.float32)
    at = tl.load(position + row) * half + columns
    c = tl.load(cos + at, mask=columns < half, other=0.0)
    s = tl.load(sin + at, mask=columns < half, other=0.0) * sign
    left = tl.where(head < turned, a * c - b * s, a)
    right = tl.where(head < turned, b * c + a * s, b)
    tl.store(out + start, left.to(out.dtype.element_ty), mask=inside)
    tl.store(out + start + half, right.to(out.dtype.element_ty), mask=inside)
