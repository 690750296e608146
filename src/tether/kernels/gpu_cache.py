"""The key-value cache of decoding in Triton: written, and read as far as each position."""

# pyright: basic, reportIndexIssue=false
from typing import Any, no_type_check

import torch
from torch import Tensor

from tether.kernels.gpu import block, tl, triton

POSITIONS = 64  # of a cache read at a time
WARPS, STAGES = 2, 3  # of the programs that read it
FEW, TOGETHER = 2048, 16  # more tokens are written so many at a time


def cache_write(
    qkv: Tensor,
    slot: Tensor,
    position: Tensor,
    rotary: Any,
    heads: Any,
    keys: Tensor,
    values: Tensor,
) -> None:
    """Store keys, rotated, and values of N tokens, each at its position of its slot."""
    cos, sin = rotary or (qkv, qkv)
    if len(qkv):
        tokens = 1 if len(qkv) <= FEW else TOGETHER
        _cache_write[(triton.cdiv(len(qkv), tokens), heads.key)](
            *(qkv, slot, position, cos, sin, keys, values),
            *(len(qkv), heads.query, heads.key, keys.shape[-1]),
            ROTATE=rotary is not None,
            HALF=heads.size // 2,
            TOKENS=tokens,
        )


@triton.jit
@no_type_check
def _cache_write(
    qkv,
    slot,
    position,
    cos,
    sin,
    keys,
    values,
    count,
    query_heads,
    key_heads,
    room,
    ROTATE: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
):
    head = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[None, :]
    columns, real = tl.arange(0, HALF)[:, None], row < count
    at = tl.load(position + row, mask=real, other=0)
    start = (row * (query_heads + 2 * key_heads) + query_heads + head) * 2 * HALF + columns
    a = tl.load(qkv + start, mask=real, other=0.0).to(tl.float32)
    b = tl.load(qkv + start + HALF, mask=real, other=0.0).to(tl.float32)
    if ROTATE:
        c = tl.load(cos + at * HALF + columns, mask=real, other=0.0)
        s = tl.load(sin + at * HALF + columns, mask=real, other=0.0)
        a, b = a * c - b * s, b * c + a * s
    owner = tl.load(slot + row, mask=real, other=0) * key_heads + head
    column = keys + (owner * 2 * HALF + columns) * room + at
    tl.store(column, a.to(keys.dtype.element_ty), mask=real)
    tl.store(column + HALF * room, b.to(keys.dtype.element_ty), mask=real)
    start += key_heads * 2 * HALF
    target = values + (owner * room + at) * 2 * HALF + columns
    tl.store(target, tl.load(qkv + start, mask=real), mask=real)
    tl.store(target + HALF, tl.load(qkv + start + HALF, mask=real), mask=real)


def decode_attention(
    qkv: Tensor,
    slot: Tensor,
    position: Tensor,
    rotary: Any,
    heads: Any,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Attention of one new token a slot over what its slot holds, and no further."""
    cos, sin = rotary or (qkv, qkv)
    out = qkv.new_empty(len(qkv), heads.query * heads.size)
    group = heads.query // heads.key
    _decode_attention[(len(qkv), heads.key)](
        *(qkv, slot, position, cos, sin, keys, values, out),
        *(heads.key, keys.shape[-1], heads.size**-0.5),
        ROTATE=rotary is not None,
        GROUP=group,
        ROWS=max(16, block(group)),  # a product on the matrix units has 16 rows at least
        HALF=heads.size // 2,
        BLOCK=POSITIONS,
        PRECISE=qkv.dtype == torch.float32,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out


@triton.jit
@no_type_check
def _decode_attention(
    qkv,
    slot,
    position,
    cos,
    sin,
    keys,
    values,
    out,
    key_heads,
    room,
    scale,
    ROTATE: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISE: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    precision: tl.constexpr = "ieee" if PRECISE else "tf32"
    kind = keys.dtype.element_ty
    group, columns = tl.arange(0, ROWS), tl.arange(0, HALF)
    at = tl.load(position + row)
    real = (group < GROUP)[:, None]
    start = (row * (GROUP + 2) * key_heads + head * GROUP + group[:, None]) * 2 * HALF
    start += columns[None, :]
    a = tl.load(qkv + start, mask=real, other=0.0).to(tl.float32)
    b = tl.load(qkv + start + HALF, mask=real, other=0.0).to(tl.float32)
    if ROTATE:
        c = tl.load(cos + at * HALF + columns)[None, :]
        s = tl.load(sin + at * HALF + columns)[None, :]
        a, b = a * c - b * s, b * c + a * s
    a, b = a.to(kind), b.to(kind)
    owner = tl.load(slot + row) * key_heads + head
    positions, whole = tl.arange(0, BLOCK), tl.arange(0, 2 * HALF)
    key = keys + (owner * 2 * HALF + columns[:, None]) * room + positions[None, :]
    value = values + (owner * room + positions[:, None]) * 2 * HALF + whole[None, :]
    top = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, 2 * HALF], tl.float32)
    for first in range(0, at + 1, BLOCK):
        past = first + positions <= at
        k = tl.load(key + first, mask=past[None, :], other=0.0)
        scores = tl.dot(a, k, input_precision=precision)
        k = tl.load(key + HALF * room + first, mask=past[None, :], other=0.0)
        scores += tl.dot(b, k, input_precision=precision)
        scores = tl.where(past[None, :], scores * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        share = tl.exp(scores - higher[:, None])
        fade = tl.exp(top - higher)
        v = tl.load(value + first * 2 * HALF, mask=past[:, None], other=0.0)
        total = total * fade[:, None] + tl.dot(share.to(kind), v, input_precision=precision)
        mass = mass * fade + tl.sum(share, 1)
        top = higher
    result = (total / mass[:, None]).to(kind)
    place = ((row * key_heads + head) * GROUP + group[:, None]) * 2 * HALF + whole[None, :]
    tl.store(out + place, result, mask=real)
