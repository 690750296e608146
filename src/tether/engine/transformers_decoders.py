"""Decoders for any causal language model of transformers, with its own forward."""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from tether.data.batches import Row, pad
from tether.models.adapters import using
from tether.models.language_model import LanguageModel

# Windows that the cache is not told of: the model itself counts columns back from the last one.
OWN_WINDOWS = {"gpt_neo": "window_size"}


def slots_serve(model: PreTrainedModel, room: int) -> bool:
    """Whether every layer looks back at all `room` tokens through keys and values."""
    own = OWN_WINDOWS.get(model.config.model_type)
    if own and getattr(model.config, own) < room:
        return False
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicSlidingWindowLayer and room <= layer.sliding_window:
            continue
        if type(layer) is not DynamicLayer:
            return False
    return True


class Place:
    """Which tokens the forward under way reads; what all layers of a slot cache share.

    `seen` is 0 while prompts are read (they see themselves only), else how many positions the
    new tokens may look at.
    """

    def __init__(self, slots: int, room: int) -> None:
        self.slots, self.room, self.seen = slots, room, 0
        self.slot = self.position = torch.empty(0, dtype=torch.long)


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (slots, heads, room, d), allocated once and written in place.

    A token's column is its position, in every slot, so a sequence may join at any time.
    """

    is_sliding = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate; called with the first keys and values, whose type and heads it takes."""
        place = self.place
        new = [
            t.new_zeros(place.slots, t.shape[1], place.room, t.shape[3])
            for t in (key_states, value_states)
        ]
        self.keys, self.values = new
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what is new; returns what it may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        place = self.place
        if (
            not place.seen
        ):  # what a shorter prompt's padding writes is overwritten before it is seen
            self.keys[place.slot, :, : key_states.shape[2]] = key_states
            self.values[place.slot, :, : value_states.shape[2]] = value_states
            return key_states, value_states
        self.keys[place.slot, :, place.position] = key_states[:, :, 0]
        self.values[place.slot, :, place.position] = value_states[:, :, 0]
        if len(place.slot) == place.slots:  # all, in order
            return self.keys[:, :, : place.seen], self.values[:, :, : place.seen]
        return self.keys[place.slot, :, : place.seen], self.values[place.slot, :, : place.seen]

    def copy(self, slot: int, others: list[int], length: int) -> None:
        """Give other slots the first `length` positions of a slot."""
        for part in (self.keys, self.values):
            assert part is not None
            part[others, :, :length] = part[slot, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many positions a mask is to cover, from which."""
        return self.place.seen or query_length, 0

    def get_seq_length(self) -> int:
        """Positions before the new tokens."""
        return max(self.place.seen - 1, 0)

    def get_max_length(self) -> int:
        """Positions in all."""
        return self.place.room


class SlotDecoder:
    """transformers' forward over a cache of slots."""

    refills = True

    def __init__(self, language_model: LanguageModel, slots: int, room: int) -> None:
        self.language_model, self.place = language_model, Place(slots, room)
        layers = language_model.model.config.get_text_config().num_hidden_layers
        self.layers = [SlotLayer(self.place) for _ in range(layers)]
        self.cache = Cache(layers=[*self.layers])

    def prefill(self, prompts: list[list[int]], slots: list[list[int]]) -> Float[Tensor, "P D"]:
        """Read the prompts as one batch, padded on the right."""
        batch = pad([Row(ids, len(ids)) for ids in prompts])
        self.place.seen = 0
        self.place.slot = torch.tensor([slot for slot, *_ in slots])
        columns = torch.arange(batch.input_ids.shape[1])[None]
        hidden = self._forward(batch.input_ids, columns.expand_as(batch.input_ids), None)
        for prompt, (first, *others) in zip(prompts, slots, strict=True):
            for layer in self.layers if others else []:
                layer.copy(first, others, len(prompt))
        return hidden[batch.last_mask.to(hidden.device)]

    def step(self, token: Tensor, slot: Tensor, position: Tensor) -> Float[Tensor, "B D"]:
        """One token a slot."""
        self.place.slot, self.place.position = slot, position
        self.place.seen = int(position.max()) + 1
        mask = torch.arange(self.place.seen, device=position.device) <= position[:, None]
        return self._forward(token[:, None], position[:, None], mask)[:, -1]

    def _forward(self, ids: Tensor, positions: Tensor, mask: Bool[Tensor, "B S"] | None) -> Tensor:
        return run(self.language_model, self.cache, ids, positions, mask)


class StepDecoder:
    """transformers' forward and its own cache: for models with windows or states of other kinds.

    Prompts are padded on the left, and all sequences of a batch start together.
    """

    refills = False

    def __init__(self, language_model: LanguageModel) -> None:
        self.language_model = language_model

    def prefill(self, prompts: list[list[int]], slots: list[list[int]]) -> Float[Tensor, "P D"]:
        """Read the prompts as one batch; a prompt for several slots is read once for each."""
        rows = [(slot, prompt) for prompt, own in zip(prompts, slots, strict=True) for slot in own]
        self.slots = torch.tensor([slot for slot, _ in rows])
        batch = pad([Row(prompt, len(prompt)) for _, prompt in rows], side="left")
        mask, positions = batch.attention_mask, batch.position_ids
        assert mask is not None
        assert positions is not None
        self.mask = mask
        self.cache = DynamicCache(config=self.language_model.model.config)
        hidden = run(self.language_model, self.cache, batch.input_ids, positions, self.mask)[:, -1]
        firsts = torch.tensor([0, *(len(own) for own in slots[:-1])]).cumsum(0)
        return hidden[firsts]

    def step(self, token: Tensor, slot: Tensor, position: Tensor) -> Float[Tensor, "B D"]:
        """One token a slot; slots that are no longer named leave the cache."""
        if len(slot) < len(self.slots):
            kept = torch.isin(self.slots, slot.cpu())
            self.slots, self.mask = self.slots[kept], self.mask[kept]
            places = kept.nonzero().flatten().to(token.device)
            self.cache.reorder_cache(cast(torch.LongTensor, places))  # states have nothing else
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
        order = torch.argsort(slot)[torch.argsort(torch.argsort(self.slots)).to(slot.device)]
        hidden = run(
            self.language_model, self.cache, token[order, None], position[order, None], self.mask
        )
        return hidden[:, -1][torch.argsort(order)]


def run(
    language_model: LanguageModel,
    cache: Cache,
    ids: Tensor,
    positions: Tensor,
    mask: Tensor | None,
) -> Float[Tensor, "B S D"]:
    """Last hidden states of new tokens, with what came before in the cache."""
    model, device = language_model.model, language_model.place.device
    if language_model.place.checkpointing:
        model.eval()  # where it trains, transformers' checkpoints drop the cache
    with language_model.place.autocast(), using(model, language_model.adapter):
        return model.base_model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=None if mask is None else mask.to(device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state


class WholeDecoder:
    """The whole row through the model for every token: for models whose cache cannot be trusted."""

    refills = True

    def __init__(self, language_model: LanguageModel) -> None:
        self.language_model = language_model
        self.rows: dict[int, list[int]] = {}

    def prefill(self, prompts: list[list[int]], slots: list[list[int]]) -> Float[Tensor, "P D"]:
        """Read the prompts as one batch."""
        self.rows.update(
            (slot, prompt) for prompt, own in zip(prompts, slots, strict=True) for slot in own
        )
        return self._last(prompts)

    def step(self, token: Tensor, slot: Tensor, position: Tensor) -> Float[Tensor, "B D"]:
        """One token a slot."""
        numbers = slot.tolist()
        for number, new, place in zip(numbers, token.tolist(), position.tolist(), strict=True):
            self.rows[number] = [*self.rows[number][:place], new]
        return self._last([self.rows[number] for number in numbers])

    def _last(self, rows: list[list[int]]) -> Float[Tensor, "B D"]:
        batch = pad([Row(ids, len(ids)) for ids in rows])
        return self.language_model.hidden_states(batch, batch.last_mask)
