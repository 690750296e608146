"""The key-value cache of a decode loop: slots of fixed room, written and read in place."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.kernels import gpu, gpu_cache
from tether.kernels.layers import Heads, Rotary, at, kernel, long, rotate

SWEEP = 64  # positions that the C kernel reads at a time; the room is a multiple of it


class Cache(NamedTuple):
    """Keys (slots, key heads, d, room), rotated, and values (slots, key heads, room, d).

    Positions of a key lie side by side, so that the scores of many positions are one sweep.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(
        cls, slots: int, room: int, heads: Heads, dtype: torch.dtype, device: torch.device
    ) -> "Cache":
        """A cache of `slots` sequences of up to `room` tokens."""
        room += -room % SWEEP
        keys = torch.zeros(slots, heads.key, heads.size, room, dtype=dtype, device=device)
        return cls(keys, torch.zeros_like(keys).view(slots, heads.key, room, heads.size))

    def copy(self, slot: int, others: list[int], length: int) -> None:
        """Give other slots the first `length` positions of a slot."""
        self.keys[others, :, :, :length] = self.keys[slot, :, :, :length]
        self.values[others, :, :length] = self.values[slot, :, :length]

    def write(
        self,
        qkv: Float[Tensor, "N W"],
        slot: Int[Tensor, " N"],
        position: Int[Tensor, " N"],
        rotary: Rotary | None,
        heads: Heads,
    ) -> None:
        """Store keys and values of N tokens, each at its position of its slot."""
        if call := kernel("cache_write", qkv, slot, position):
            call(*self._arguments(qkv, slot, position, rotary, heads), *map(at, self))
            return
        if gpu.reads_cache(self.keys):
            gpu_cache.cache_write(qkv.contiguous(), slot, position, rotary, heads, *self)
            return
        _, k, v = qkv.unflatten(-1, (-1, heads.size)).split([heads.query, heads.key, heads.key], 1)
        if rotary:
            k = rotate(k, rotary.cos[position][:, None], rotary.sin[position][:, None])
        self.keys[slot, :, :, position] = k
        self.values[slot, :, position] = v

    def attention(
        self,
        qkv: Float[Tensor, "B W"],
        slot: Int[Tensor, " B"],
        position: Int[Tensor, " B"],
        rotary: Rotary | None,
        heads: Heads,
        *,
        seen: int,
    ) -> Float[Tensor, "B O"]:
        """Attention of one new token a slot over what the slot holds, the token itself included.

        Args:
            qkv: Queries, keys and values of the new tokens; keys and values are stored already.
            slot: Their slots.
            position: Their positions.
            rotary: Tables of the positions; None = not rotated.
            heads: Numbers of heads.
            seen: At least the largest position + 1; less is read where it is small.
        """
        if call := kernel("decode_attention", qkv, slot, position):
            out = qkv.new_empty(len(qkv), heads.query * heads.size)
            call(*self._arguments(qkv, slot, position, rotary, heads), *map(at, self), at(out))
            return out
        if gpu.reads_cache(self.keys):
            return gpu_cache.decode_attention(
                qkv.contiguous(), slot, position, rotary, heads, *self
            )
        q = qkv.unflatten(-1, (-1, heads.size))[:, : heads.query]
        if rotary:
            q = rotate(q, rotary.cos[position][:, None], rotary.sin[position][:, None])
        every = len(slot) == len(self.keys)  # then they are in order
        keys = self.keys[..., :seen] if every else self.keys[slot][..., :seen]
        values = self.values[:, :, :seen] if every else self.values[slot][:, :, :seen]
        q = q.unflatten(1, (heads.key, -1)) * heads.size**-0.5  # (B, key heads, group, d)
        scores = (q @ keys).float()
        future = torch.arange(seen, device=qkv.device) > position[:, None]
        scores = scores.masked_fill(future[:, None, None], float("-inf"))
        return (scores.softmax(-1).to(values.dtype) @ values).flatten(1)

    def _arguments(
        self, qkv: Tensor, slot: Tensor, position: Tensor, rotary: Rotary | None, heads: Heads
    ) -> list[Any]:
        cos, sin = rotary or (None, None)
        sizes = (heads.query, heads.key, heads.size, self.keys.shape[-1])
        return [
            long(len(qkv)),
            at(slot),
            at(position),
            *map(long, sizes),
            at(qkv),
            at(cos),
            at(sin),
        ]
