"""A lean forward pass for models of the Llama family: Llama, Mistral, Qwen2, Qwen3, SmolLM3.

It computes what transformers computes, with its weights, but on tokens without padding, with the
fused operations of `kernels`, and in the last layer only where a result is asked for. Whether it
does compute the same is checked on each model before it is used; any other model takes
transformers' own forward.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tether.data.batches import Batch
from tether.kernels.layers import Heads, Rotary, add_norm, attention, swiglu
from tether.kernels.packed import Packed, can_pack
from tether.models.adapters import using

FAMILY = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # tables that do not depend on the length
ROWS = 64  # bfloat16 products are of a multiple of so many rows
TOLERANCE = 1e-4  # on hidden states of size 1, in float32


@dataclass
class Llama:
    """Where the weights of a model are, and its shape."""

    base: Any
    heads: Heads
    eps: float
    window: int
    rotary: Rotary

    def rotary_to(self, length: int) -> Rotary:
        """Rotary tables for at least `length` positions."""
        if len(self.rotary.cos) < length:
            self.rotary = _tables(self.base, max(length, 2 * len(self.rotary.cos)))
        return self.rotary


class Sequences(NamedTuple):
    """The real tokens of a batch, one sequence after the other.

    `offsets` are the rows where sequences start, and the number of rows; `wanted` the rows whose
    hidden states are asked for.
    """

    ids: Int[Tensor, " N"]
    offsets: Int[Tensor, " S"]
    wanted: Int[Tensor, " M"]

    @classmethod
    def of(cls, batch: Batch, where: Bool[Tensor, "B S"]) -> "Sequences":
        """From a batch padded on the right or packed."""
        ends = batch.last_mask
        real = ends.flip(1).cumsum(1).flip(1) > 0
        offsets = F.pad(ends[real].nonzero().flatten() + 1, (1, 0))
        return cls(batch.input_ids[real], offsets, where[real].nonzero().flatten())

    def filled(self, multiple: int) -> "Sequences":
        """With tokens that nothing looks at, up to a multiple of rows, and of wanted ones.

        oneDNN compiles a kernel for each new shape, at some milliseconds, and keeps it.
        """
        rows, wanted = -len(self.ids) % multiple, -len(self.wanted) % multiple
        ids, offsets = F.pad(self.ids, (0, rows)), self.offsets
        if rows:
            offsets = torch.cat([offsets, offsets.new_tensor([len(ids)])])
        return Sequences(ids, offsets, F.pad(self.wanted, (0, wanted)))


_agreeing: "weakref.WeakKeyDictionary[PreTrainedModel, dict[str, Llama | None]]" = (
    weakref.WeakKeyDictionary()
)


def lean(model: PreTrainedModel, adapter: str = "") -> Llama | None:
    """The model as the lean forward sees it; None where transformers' own must be used.

    The numbers are compared once for each adapter; how the model is built is looked at every time,
    since hooks or layers of other kinds may have come after.
    """
    if model.config.model_type not in FAMILY or not _plain(model.base_model):
        return None
    known = _agreeing.setdefault(model, {})
    if adapter not in known:
        found = _read(model)
        known[adapter] = found if found and _agrees(model, found, adapter) else None
    return known[adapter]


class Affine(NamedTuple):
    """A linear layer's weight and bias, in the precision of the product."""

    weight: Tensor
    bias: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the product."""
        return self.weight.dtype

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N W"]:
        """The layer's output."""
        return F.linear(x, self.weight, self.bias)

    def packed(self, dtype: torch.dtype) -> "Affine | Packed":
        """The same for many small products in `dtype`, without gradients."""
        if can_pack(self.weight, dtype):
            return Packed(self.weight, None if self.bias is None else self.bias.to(dtype))
        return Affine(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


class LowRank(NamedTuple):
    """What an adapter adds to a linear layer: s·(x·Aᵀ)·Bᵀ."""

    a: Tensor
    b: Tensor
    scale: float


class Adapted(NamedTuple):
    """Linear layers of one input side by side, each with what an adapter adds to it, if anything.

    In two factors, so that gradients flow to these and no weight is copied.
    """

    parts: list[tuple[Affine, LowRank | None]]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the products."""
        return self.parts[0][0].dtype

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N W"]:
        """The layers' outputs."""
        results = [
            affine(x) + low.scale * F.linear(F.linear(x, low.a), low.b) if low else affine(x)
            for affine, low in self.parts
        ]
        return results[0] if len(results) == 1 else torch.cat(results, -1)

    @torch.no_grad()
    def packed(self, dtype: torch.dtype) -> Affine | Packed:
        """W + s·B·A for many small products in `dtype`, without gradients."""
        merged = [
            affine._replace(weight=affine.weight + low.scale * low.b @ low.a) if low else affine
            for affine, low in self.parts
        ]
        return _side_by_side(merged).packed(dtype)


class Layer(NamedTuple):
    """The weights of one layer: norms in float32, products in the precision asked for."""

    input_norm: Tensor
    qkv: Affine | Adapted | Packed
    query_norm: Tensor | None
    key_norm: Tensor | None
    rotated: bool
    out: Affine | Adapted | Packed
    mlp_norm: Tensor
    gate_up: Affine | Adapted | Packed
    down: Affine | Adapted | Packed


def layers(llama: Llama, dtype: torch.dtype, adapter: str = "") -> Callable[[int], Layer]:
    """The layers by number, made when asked for, so that copies of weights live no longer.

    Gradients flow through to the model's own weights, or to the adapter's.
    """

    def layer(number: int) -> Layer:
        layer = llama.base.layers[number]
        part, mlp = layer.self_attn, layer.mlp
        normed = hasattr(part, "q_norm")  # Qwen3 and others norm each query and key head
        return Layer(
            layer.input_layernorm.weight,
            _linear(dtype, adapter, part.q_proj, part.k_proj, part.v_proj),
            part.q_norm.weight if normed else None,
            part.k_norm.weight if normed else None,
            bool(getattr(part, "use_rope", True)),
            _linear(dtype, adapter, part.o_proj),
            layer.post_attention_layernorm.weight,
            _linear(dtype, adapter, mlp.gate_proj, mlp.up_proj),
            _linear(dtype, adapter, mlp.down_proj),
        )

    return layer


def decode_layers(llama: Llama, dtype: torch.dtype, adapter: str = "") -> list[Layer]:
    """The layers made ready for many steps of decoding, without gradients."""
    ready: list[Layer] = []
    for layer in map(layers(llama, torch.float32, adapter), range(len(llama.base.layers))):
        parts = {name: getattr(layer, name) for name in ("qkv", "out", "gate_up", "down")}
        ready.append(layer._replace(**{k: part.packed(dtype) for k, part in parts.items()}))
    return ready


def hidden_states(
    llama: Llama,
    sequences: Sequences,
    layers: Callable[[int], Layer],
    keep: Callable[[int, Layer, Tensor], None] | None = None,
    *,
    checkpointing: bool = False,
) -> Float[Tensor, "M D"]:
    """Last hidden states of the wanted tokens, float32.

    Args:
        llama: The model.
        sequences: Its input.
        layers: `layers(llama, dtype, adapter)`; `dtype` is the precision of the products.
        keep: Told each layer's number and its queries, keys and values, for a cache.
        checkpointing: True keeps only what goes from layer to layer for the backward pass.
    """
    offsets, last = sequences.offsets, len(llama.base.layers) - 1
    rotary = llama.rotary_to(int(offsets.diff().max()))

    def through(number: int, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        layer = layers(number)
        x, qkv = before_attention(layer, x, delta, llama)
        if keep:
            keep(number, layer, qkv)
        attended = attention(qkv, offsets, rotary if layer.rotated else None, llama.heads)
        if number == last:
            x, attended = x[sequences.wanted], attended[sequences.wanted]
        return after_attention(layer, x, attended, llama)

    x, delta = llama.base.embed_tokens(sequences.ids), None
    for number in range(last + 1):
        if checkpointing:
            x, delta = cast(Any, checkpoint(through, number, x, delta, use_reentrant=False))
        else:
            x, delta = through(number, x, delta)
    assert delta is not None
    return last_norm(x, delta, llama)


def before_attention(
    layer: Layer, x: Float[Tensor, "N D"], delta: Float[Tensor, "N D"] | None, llama: Llama
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N W"]]:
    """Residual stream, and queries, keys and values side by side."""
    x, normed = add_norm(x, delta, layer.input_norm, llama.eps, layer.qkv.dtype)
    qkv = layer.qkv(normed)
    if layer.query_norm is None or layer.key_norm is None:
        return x, qkv
    heads = llama.heads
    q, k, v = qkv.unflatten(-1, (-1, heads.size)).split([heads.query, heads.key, heads.key], 1)
    q, k = (
        add_norm(each.flatten(0, 1).float(), None, norm, llama.eps, qkv.dtype)[1].view(each.shape)
        for each, norm in ((q, layer.query_norm), (k, layer.key_norm))
    )
    return x, torch.cat([q, k, v], 1).flatten(1)


def after_attention(
    layer: Layer, x: Float[Tensor, "N D"], attended: Float[Tensor, "N O"], llama: Llama
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """Residual stream without the layer's last addition, and that addition."""
    dtype = layer.qkv.dtype
    x, normed = add_norm(x, layer.out(attended), layer.mlp_norm, llama.eps, dtype)
    return x, layer.down(swiglu(layer.gate_up(normed)))


def last_norm(
    x: Float[Tensor, "N D"], delta: Float[Tensor, "N D"], llama: Llama
) -> Float[Tensor, "N D"]:
    """Last hidden states in float32."""
    return add_norm(x, delta.float(), llama.base.norm.weight, llama.eps, torch.float32)[1]


def _linear(dtype: torch.dtype, adapter: str, *parts: Any) -> Affine | Adapted:
    """Several linear layers of one input as one, or with what the adapter adds to them.

    Those that hold adapters are multiplied apart even where none adds to them, so that a model
    differs from its base by what its adapter adds and not by rounding.
    """
    own = [getattr(part, "base_layer", part) for part in parts]
    affines = [
        Affine(each.weight.to(dtype), None if each.bias is None else each.bias.to(dtype))
        for each in own
    ]
    added = [_low_rank(dtype, adapter, part) for part in parts]
    if any(hasattr(part, "base_layer") for part in parts):
        return Adapted(list(zip(affines, added, strict=True)))
    return _side_by_side(affines)


def _low_rank(dtype: torch.dtype, adapter: str, part: Any) -> LowRank | None:
    if adapter not in getattr(part, "lora_A", ()):
        return None
    a, b = (getattr(part, matrix)[adapter].weight.to(dtype) for matrix in ("lora_A", "lora_B"))
    return LowRank(a, b, part.scaling[adapter])


def _side_by_side(parts: list[Affine]) -> Affine:
    """Several linear layers of one input as one."""
    if len(parts) == 1:
        return parts[0]
    weight = torch.cat([part.weight for part in parts])
    if all(part.bias is None for part in parts):
        return Affine(weight, None)
    filled = [
        part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias
        for part in parts
    ]
    return Affine(weight, torch.cat(filled))


def _plain(base: Any) -> bool:
    """Whether a base model is made of plain and LoRA layers, in float32, without hooks."""
    if any(_hooked(module) for module in base.modules()):  # sharding, say
        return False
    if any(parameter.dtype != torch.float32 for parameter in base.parameters()):
        return False
    for layer in base.layers:
        attention, mlp = layer.self_attn, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        parts += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        if not all(type(part) is nn.Linear or _lora(part) for part in parts):
            return False
    return True


def _lora(part: Any) -> bool:
    """Whether a layer is peft's LoRA on a linear layer, with nothing beyond A, B and a scale."""
    return (
        type(getattr(part, "base_layer", None)) is nn.Linear
        and hasattr(part, "lora_A")
        and not (part.lora_variant or part.merged or any(part.lora_bias.values()))
        and all(type(each) is nn.Identity for each in part.lora_dropout.values())
    )


def _hooked(module: nn.Module) -> bool:
    """Whether something hangs on a module's forward, other than transformers' own recorders."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks)


def _read(model: PreTrainedModel) -> Llama | None:
    """Shape of a model that is built like a Llama; None where it has something more."""
    config, base = model.config, cast(Any, model.base_model)
    rope = getattr(config, "rope_parameters", None) or {}
    if config.hidden_act != "silu" or rope.get("rope_type", "default") not in STATIC_ROPE:
        return None
    first = base.layers[0].self_attn
    size = first.head_dim
    heads = Heads(first.q_proj.out_features // size, first.k_proj.out_features // size, size)
    eps = base.norm.variance_epsilon
    return Llama(base, heads, eps, _window(config), _tables(base, 512))


def _window(config: Any) -> int:
    """Tokens that a layer looks back at; rows that are longer take the other forward."""
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    return (slides and getattr(config, "sliding_window", None)) or 1 << 30


def _tables(base: Any, length: int) -> Rotary:
    """Cosines and sines of the first `length` positions, as transformers computes them."""
    device = base.embed_tokens.weight.device
    with torch.no_grad():
        cos, sin = base.rotary_emb(
            torch.zeros(1, device=device), torch.arange(length)[None].to(device)
        )
    half = cos.shape[-1] // 2
    return Rotary(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())


@torch.no_grad()
def _agrees(model: PreTrainedModel, llama: Llama, adapter: str) -> bool:
    """Whether both forwards give the same hidden states for a few tokens."""
    device = llama.base.embed_tokens.weight.device
    ids = torch.arange(7, device=device) % llama.base.embed_tokens.num_embeddings
    if 2 * llama.rotary.cos.shape[-1] != llama.heads.size:
        return False
    offsets = torch.tensor([0, len(ids)], device=device)
    sequences = Sequences(ids, offsets, torch.arange(7, device=device))
    ours = hidden_states(llama, sequences, layers(llama, torch.float32, adapter))
    with using(model, adapter):
        theirs = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0].float()
    return bool((ours - theirs).abs().max() <= TOLERANCE * max(1.0, float(theirs.abs().max())))
