"""What runs the model inside the decode loop: prompts into a cache, then a token at a time.

A decoder owns `slots` places, each with room for one sequence. `prefill` fills some of them,
`step` moves some of them one token on. `LlamaDecoder` serves models that the lean forward knows,
those in `transformers_decoders` any other.
"""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tether.data.batches import Row, pad
from tether.engine.graphs import REACH, GraphedStep
from tether.engine.transformers_decoders import (
    SlotDecoder,
    StepDecoder,
    WholeDecoder,
    slots_serve,
)
from tether.kernels import gpu
from tether.kernels.cache import Cache
from tether.models import layouts, llama
from tether.models.language_model import LanguageModel
from tether.models.vocabulary import num_rows
from tether.progress import notice

PREFILL_TOKENS = 8192  # prompt tokens a forward pass, so that activations stay small


@runtime_checkable
class Decoder(Protocol):
    """A model with room for some sequences."""

    refills: bool
    """Whether freed slots can be filled while others still run"""

    def prefill(self, prompts: list[list[int]], slots: list[list[int]]) -> Float[Tensor, "P D"]:
        """Read P prompts, each into one slot or several; returns their last hidden states."""
        ...

    def step(
        self, token: Int[Tensor, " B"], slot: Int[Tensor, " B"], position: Int[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """Read one more token a slot, at its position; returns the last hidden states.

        Slots come in rising order.
        """
        ...


def decoder_for(language_model: LanguageModel, slots: int, room: int) -> Decoder:
    """The fastest decoder that serves a model, with `slots` places of `room` tokens."""
    lean = llama.lean(language_model.model, language_model.adapter)
    if lean and room <= lean.window:
        return LlamaDecoder(language_model, lean, slots, room)
    if slots_serve(language_model.model, room) and is_right(language_model, _few_slots):
        return SlotDecoder(language_model, slots, room)
    if is_right(language_model, StepDecoder):
        return StepDecoder(language_model)
    notice(
        f"{type(language_model.model).__name__} does not give its own numbers with a cache; every "
        "token is sampled from a pass over the whole row, which is slow"
    )
    return WholeDecoder(language_model)


class LlamaDecoder:
    """The lean forward over a cache that is allocated once."""

    refills = True

    def __init__(
        self, language_model: LanguageModel, lean: llama.Llama, slots: int, room: int
    ) -> None:
        device, dtype = language_model.place.device, language_model.place.dtype
        self.llama, self.device = lean, device
        self.layers = llama.decode_layers(lean, dtype, language_model.adapter)
        self.rotary = lean.rotary_to(room)
        self.caches = [Cache.empty(slots, room, lean.heads, dtype, device) for _ in self.layers]
        self.graphed = None
        if device.type == "cuda":
            reach = room if gpu.reads_cache(self.caches[0].keys) else REACH
            self.graphed = GraphedStep(self._step, slots, room, device, reach)

    def prefill(self, prompts: list[list[int]], slots: list[list[int]]) -> Float[Tensor, "P D"]:
        """Read the prompts side by side, without padding."""
        results: list[Tensor] = []
        start = 0
        while start < len(prompts):
            stop, tokens = start + 1, len(prompts[start])
            while stop < len(prompts) and tokens + len(prompts[stop]) <= PREFILL_TOKENS:
                tokens += len(prompts[stop])
                stop += 1
            results.append(self._prefill(prompts[start:stop], [s[0] for s in slots[start:stop]]))
            start = stop
        for prompt, (first, *others) in zip(prompts, slots, strict=True):
            if others:
                for cache in self.caches:
                    cache.copy(first, others, len(prompt))
        return torch.cat(results)

    def _prefill(self, prompts: list[list[int]], slots: list[int]) -> Tensor:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ids = torch.tensor([i for prompt in prompts for i in prompt], device=self.device)
        ends = lengths.cumsum(0)
        slot = torch.tensor(slots, device=self.device).repeat_interleave(lengths)
        position = torch.arange(len(ids), device=self.device)
        position -= (ends - lengths).repeat_interleave(lengths)

        def keep(number: int, layer: llama.Layer, qkv: Tensor) -> None:
            rotary = self.rotary if layer.rotated else None
            self.caches[number].write(qkv, slot, position, rotary, self.llama.heads)

        offsets = torch.nn.functional.pad(ends, (1, 0))
        sequences = llama.Sequences(ids, offsets, ends - 1)
        return llama.hidden_states(self.llama, sequences, self.layers.__getitem__, keep)

    def step(self, token: Tensor, slot: Tensor, position: Tensor) -> Tensor:
        """One token a slot through all layers."""
        if self.graphed:
            return self.graphed(token, slot, position)
        return self._step(token, slot, position, int(position.max()) + 1)

    def _step(self, token: Tensor, slot: Tensor, position: Tensor, seen: int) -> Tensor:
        x, delta = self.llama.base.embed_tokens(token), None
        for layer, cache in zip(self.layers, self.caches, strict=True):
            x, qkv = llama.before_attention(layer, x, delta, self.llama)
            rotary = self.rotary if layer.rotated else None
            cache.write(qkv, slot, position, rotary, self.llama.heads)
            attended = cache.attention(qkv, slot, position, rotary, self.llama.heads, seen=seen)
            x, delta = llama.after_attention(layer, x, attended, self.llama)
        assert delta is not None
        return llama.last_norm(x, delta, self.llama)


_found: "weakref.WeakKeyDictionary[PreTrainedModel, dict[str, bool]]" = weakref.WeakKeyDictionary()


def _few_slots(language_model: LanguageModel) -> SlotDecoder:
    return SlotDecoder(language_model, 3, 8)


def is_right(language_model: LanguageModel, make: Callable[[LanguageModel], Decoder]) -> bool:
    """Whether a decoder gives the hidden states of whole rows; tried once a model, in float32.

    What `make` makes of a model has room for 3 slots of 8 tokens.
    """
    model, place = language_model.model, language_model.place
    wide = replace(language_model, place=place._replace(dtype=torch.float32))
    known = _found.setdefault(model, {})
    name = make.__name__
    if name not in known:
        try:
            known[name] = _tried(wide, make(wide))
        except Exception:  # whatever it stumbles over, another decoder remains
            known[name] = False
    return known[name]


@torch.no_grad()
def _tried(language_model: LanguageModel, decoder: Decoder) -> bool:
    """Two rows of unlike lengths and a copy, then one token more of each, then of some."""
    model, device = language_model.model, language_model.place.device
    tokens = [i % num_rows(model) for i in range(13)]
    rows = {0: tokens[:5], 1: tokens[5:7], 2: tokens[5:7]}
    found = [decoder.prefill([rows[0], rows[1]], [[0], [1, 2]])]
    wanted = [rows[0], rows[1]]
    for slots, new in (((0, 1, 2), tokens[7:10]), ((0, 2), tokens[10:12]), ((2,), tokens[12:13])):
        for slot, token in zip(slots, new, strict=True):
            rows[slot] = [*rows[slot], token]
        places = [len(rows[slot]) - 1 for slot in slots]
        found.append(decoder.step(*(torch.tensor(x, device=device) for x in (new, slots, places))))
        wanted += [rows[slot] for slot in slots]
    batch = pad([Row(ids, len(ids)) for ids in wanted])
    right = language_model.hidden_states(batch, batch.last_mask)
    return layouts.same(model, torch.cat(found).float(), right.float())
