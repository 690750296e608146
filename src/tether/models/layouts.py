"""What transformers' own forward makes of a batch, found out by trying it on a few tokens.

Most architectures tell the rows of a pack apart by positions that start anew; some do not, and
raise nothing: OPT, Falcon, Bloom, GPT-OSS, and whatever carries a state from token to token.
Their packs are parted into padded rows, which is slower and gives the same numbers. A model whose
tokens see what comes after them is no language model to sample from.
"""

import weakref

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tether.data.batches import Batch, Row, pack, pad
from tether.models.vocabulary import num_rows
from tether.progress import notice

TOLERANCE = 1e-3  # on hidden states of size 1, in float32
QUANTIZED = 0.1  # the same where products of 4-bit weights are rounded to 8 bits of mantissa
LENGTHS = (5, 3, 4)  # of the rows tried: two in one pack, one in another

_found: "weakref.WeakKeyDictionary[PreTrainedModel, bool]" = weakref.WeakKeyDictionary()


def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether no row of a pack sees another; tried once for each model."""
    if model not in _found:
        _found[model] = _try_pack(model)
    return _found[model]


def as_it_can_read(
    model: PreTrainedModel, batch: Batch, where: Bool[Tensor, "B S"]
) -> tuple[Batch, Tensor]:
    """The batch and `where`, a pack parted into padded rows where the model needs that."""
    packed = batch.position_ids is not None and batch.attention_mask is None
    if not packed or keeps_apart(model):
        return batch, where
    notice(
        f"{type(model).__name__} lets rows that share a row of the batch see each other; "
        "they are padded instead, which is slower and changes no number"
    )
    return parted(batch, where)


def parted(batch: Batch, where: Bool[Tensor, "B S"]) -> tuple[Batch, Bool[Tensor, "N W"]]:
    """The rows of a pack each as a row of its own, padded on the right, in the same order.

    Hidden states where `where` is True come in the same order from both.
    """
    real = batch.last_mask.flip(1).cumsum(1).flip(1) > 0
    ends = F.pad(batch.last_mask[real].nonzero().flatten() + 1, (1, 0))
    lengths = ends.diff().tolist()

    def rows(of: Tensor) -> Tensor:
        return pad_sequence(list(of[real].split(lengths)), batch_first=True)

    ids, completion, last = map(rows, (batch.input_ids, batch.completion_mask, batch.last_mask))
    return Batch(ids, completion, last), rows(where)


def sees_ahead(model: PreTrainedModel) -> bool:
    """Whether a token's hidden state depends on the tokens after it, as an encoder's does."""
    (row,) = _rows(model, LENGTHS[:1])
    whole = _hidden(model, pad([row]))[0]
    start = _hidden(model, pad([Row(row.ids[:-2], 1)]))[0]
    return not same(model, start, whole[: len(start)])


def same(model: PreTrainedModel, found: Tensor, wanted: Tensor) -> bool:
    """Whether hidden states of two ways to compute them are the same but for rounding."""
    tolerance = QUANTIZED if getattr(model, "is_quantized", False) else TOLERANCE
    return bool((found - wanted).abs().max() <= tolerance * max(1.0, float(wanted.abs().max())))


@torch.no_grad()
def _try_pack(model: PreTrainedModel) -> bool:
    first, second, third = rows = _rows(model, LENGTHS)
    other = Row([*first.ids[1::-1], *first.ids[2:]], 1)  # begins otherwise, ends like the first
    alone = [
        hidden[: len(row.ids)]
        for hidden, row in zip(_hidden(model, pad([*rows, other])), [*rows, other], strict=True)
    ]
    if same(model, alone[0][-1], alone.pop()[-1]):
        return False  # nothing looks back, as where attention starts at 0: nothing would show
    batch = pack([first, second], [third])
    real = batch.last_mask.flip(1).cumsum(1).flip(1) > 0
    try:
        together = _hidden(model, batch)[real.to(model.device)]
    except Exception:  # whatever it stumbles over, padded rows remain
        return False
    return same(model, together, torch.cat(alone))


def _rows(model: PreTrainedModel, lengths: tuple[int, ...]) -> list[Row]:
    """Rows of tokens that all differ, as far as the vocabulary goes."""
    size = num_rows(model)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [
        Row([(start + i) % size for i in range(n)], 1)
        for start, n in zip(starts, lengths, strict=True)
    ]


@torch.no_grad()
def _hidden(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "B S D"]:
    batch = batch.to(model.device)
    return model.base_model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state.float()
