"""From token rows to the tensors of one forward pass, and back.

A row is prompt and completion, one after the other. Rows are padded on the right: with causal
attention no real token ever sees a pad, so no attention mask is needed and padding cannot matter.
Where lengths differ much, short rows share a row of the batch instead.
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

SHARING_PAYS = 0.85  # rows are packed where that leaves at most this share of them


class Row(NamedTuple):
    """Token ids of a prompt and its completion.

    `gaps` are spans [start, stop) behind the first completion token that are read but belong to no
    completion: what others say between the assistant's turns.
    """

    ids: list[int]
    num_prompt: int
    gaps: tuple[tuple[int, int], ...] = ()

    @property
    def num_completion(self) -> int:
        """Completion tokens that have something before them to be predicted from."""
        return len(self.ids) - self.first - sum(stop - start for start, stop in self.gaps)

    @property
    def first(self) -> int:
        """Index of the first completion token; a row's very first token predicts, only."""
        return max(self.num_prompt, 1)

    def after(self, prompt: list[int]) -> "Row":
        """The same completion behind another prompt."""
        moved = len(prompt) - self.num_prompt
        gaps = tuple((start + moved, stop + moved) for start, stop in self.gaps)
        return Row(prompt + self.ids[self.num_prompt :], len(prompt), gaps)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True on the completion tokens."""
        found = np.arange(len(self.ids)) >= self.first
        for start, stop in self.gaps:
            found[start:stop] = False
        return found


class Batch(NamedTuple):
    """The input of one forward pass.

    `completion_mask` is True on completion tokens. `position_ids` restart at 0 with every row of
    a pack; None where every row starts in the first column. `attention_mask` is True on real
    tokens; None unless rows are padded on the left.
    """

    input_ids: Int[Tensor, "B S"]
    completion_mask: Bool[Tensor, "B S"]
    last_mask: Bool[Tensor, "B S"]
    position_ids: Int[Tensor, "B S"] | None = None
    attention_mask: Bool[Tensor, "B S"] | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved = {k: v.to(device) for k, v in self._asdict().items() if v is not None}
        return Batch(**moved)


def pad(rows: Sequence[Row], *, side: str = "right") -> Batch:
    """Rows as a rectangle, padded with token 0 (any token would do: nothing looks at pads).

    Args:
        rows: At least one row.
        side: "right", or "left" as generation needs it.
    """
    width = max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    real = np.zeros((len(rows), width), dtype=bool)
    completion, last = np.zeros_like(real), np.zeros_like(real)
    for i, row in enumerate(rows):
        start = 0 if side == "right" else width - len(row.ids)
        end = start + len(row.ids)
        ids[i, start:end] = row.ids
        real[i, start:end] = True
        completion[i, start:end] = row.mask
        last[i, end - 1] = True
    batch = Batch(*map(torch.from_numpy, (ids, completion, last)))
    if side == "right":
        return batch
    positions = np.maximum(real.cumsum(1) - 1, 0)
    return batch._replace(
        position_ids=torch.from_numpy(positions), attention_mask=torch.from_numpy(real)
    )


def pack(*packs: Sequence[Row]) -> Batch:
    """Each argument as one row of the batch: its rows one after the other, positions restarting.

    No row sees another, nor the padding behind the last one.
    """
    width = max(sum(len(row.ids) for row in rows) for rows in packs)
    ids = np.zeros((len(packs), width), dtype=np.int64)
    positions = np.zeros_like(ids)
    completion, last = np.zeros(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool)
    for i, rows in enumerate(packs):
        start = 0
        for row in rows:
            end = start + len(row.ids)
            ids[i, start:end] = row.ids
            positions[i, start:end] = range(len(row.ids))
            completion[i, start:end] = row.mask
            last[i, end - 1] = True
            start = end
    return Batch(*map(torch.from_numpy, (ids, completion, last, positions)))


def buckets(lengths: Sequence[int], rows_per_batch: int) -> list[list[int]]:
    """Indices of rows grouped by similar length, longest first; 0 rows a batch = all in one."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    size = rows_per_batch or max(len(order), 1)
    return [order[i : i + size] for i in range(0, len(order), size)]


def device_batches(rows: Sequence[Row], rows_per_batch: int) -> Iterator[tuple[list[int], Batch]]:
    """Forward passes that cover all rows: (which rows, in which order; their batch).

    Rows of similar length go together, up to `rows_per_batch` (0 = all at once). Short rows share
    a row of the batch where that saves enough padding. A batch is never wider than its longest
    row, so sharing costs no attention; but it needs a mask, so it must save to be worth it.
    """
    lengths = [len(row.ids) for row in rows]
    for chunk in buckets(lengths, rows_per_batch):
        packs = shared_rows(chunk, lengths)
        if len(packs) <= SHARING_PAYS * len(chunk):
            order = [i for members in packs for i in members]
            yield order, pack(*([rows[i] for i in members] for members in packs))
        else:
            yield chunk, pad([rows[i] for i in chunk])


def shared_rows(chunk: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """Fill rows as wide as the longest, each next one into the first that has room.

    `chunk` is in order of falling length (first-fit decreasing: at most 11/9 of the fewest rows).
    """
    width = lengths[chunk[0]]
    packs: list[list[int]] = []
    room: list[int] = []
    for i in chunk:
        place = next((p for p, left in enumerate(room) if left >= lengths[i]), len(packs))
        if place == len(packs):
            packs.append([])
            room.append(width)
        packs[place].append(i)
        room[place] -= lengths[i]
    return packs


def to_grid(flat: Float[Tensor, " N"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Per-token values, row after row, as a grid; 0 where `mask` is False."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def lengths_mask(lengths: Sequence[int]) -> Bool[Tensor, "B T"]:
    """True on the first `lengths[b]` columns of row b."""
    columns = torch.arange(max(lengths))
    return columns[None, :] < torch.tensor(lengths)[:, None]


@lru_cache(maxsize=2)
def epoch_order(num: int, seed: int, epoch: int) -> "array[int]":
    """A permutation that depends on (seed, epoch) alone, so a resumed run sees the same order."""
    order = np.random.default_rng([seed, epoch, 0xDA7A]).permutation(num)
    return array("q", order.astype(np.int64, copy=False).tobytes())


def step_indices(num: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which examples optimizer step `step` (0, 1, …) uses.

    Epoch after epoch in its own order; the last batch of an epoch is filled from the next one.
    """
    start = step * batch_size
    wanted = range(start, start + batch_size)
    orders = {epoch: epoch_order(num, seed, epoch) for epoch in {i // num for i in wanted}}
    return [orders[i // num][i % num] for i in wanted]


def split_by_prompt(
    keys: "Sequence[str] | array[int]", share: float, seed: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Indices to train on and indices held out; rows with the same key stay on one side.

    At least one key is held out where `share` > 0 and there are two or more; at least one is not.

    Args:
        keys: Texts, or where they are too many their hashes.
        share: Of the different keys, how many are held out.
        seed: Decides which.
    """
    if isinstance(keys, array):
        return _split_by_hash(cast("array[int]", keys), share, seed)
    unique = sorted(set(keys))
    held = {unique[i] for i in _held_out(len(unique), share, seed)}
    train = [i for i, key in enumerate(keys) if key not in held]
    return train, [i for i, key in enumerate(keys) if key in held]


def _split_by_hash(
    keys: "array[int]", share: float, seed: int
) -> tuple[Sequence[int], Sequence[int]]:
    unique, place = np.unique(np.frombuffer(keys, np.uint64), return_inverse=True)
    is_held = np.zeros(len(unique), dtype=bool)
    is_held[_held_out(len(unique), share, seed)] = True
    sides = [np.flatnonzero(side).astype(np.int64) for side in (~is_held[place], is_held[place])]
    train, held = (array("q", side.tobytes()) for side in sides)
    return train, held


def _held_out(num: int, share: float, seed: int) -> NDArray[np.int64]:
    """Which of `num` sorted keys are held out."""
    wanted = max(round(share * num), int(share > 0))
    count = max(min(wanted, num - 1), 0)
    return np.random.default_rng([seed, 0x5B117]).permutation(num)[:count]
