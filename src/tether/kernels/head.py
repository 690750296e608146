"""The language-model head: log-probs of given tokens, or a sampled token, from hidden states.

The logits are the largest tensor of a language model, so they exist a chunk at a time and are
passed over as few times as can be. In bfloat16 the products are of bfloat16 numbers and the sums
float32, so that log-probs do not inherit the coarse steps of bfloat16 logits.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tether.kernels.build import library
from tether.kernels.layers import at, long
from tether.kernels.packed import Packed, can_pack

ROWS = 64  # bfloat16 products are of a multiple of so many rows
PIECE = 1 << 22  # logits computed at a time; 16 MiB


def available(weight: Tensor) -> bool:
    """Whether the C kernels can serve this head."""
    plain = type(weight) in (Tensor, torch.nn.Parameter) and weight.dtype == torch.float32
    return plain and weight.device.type == "cpu" and library() is not None


class Head:
    """The weight (V, D) of a head, made ready for products in `dtype`.

    In bfloat16 the weight is packed once and serves many products; where the processor has no
    bfloat16 products, they are computed in float32.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight.detach()
        self.packed = Packed(self.weight) if can_pack(self.weight, dtype) else None

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits in float32."""
        if self.packed is None:
            return hidden.float() @ self.weight.t()
        return self.packed.product(hidden, torch.float32)


def sample(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], temperature: float
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Draw a token a row by inverting the cumulative distribution, with its log-prob (nats)."""
    tokens, logprobs = torch.empty(len(logits), dtype=torch.long), torch.empty(len(logits))
    _library().sample(
        *(long(logits.shape[0]), long(logits.shape[1]), at(logits), at(uniform)),
        *(ctypes.c_float(temperature), at(tokens), at(logprobs)),
    )
    return tokens, logprobs


def logprobs_and_entropies(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    token_ids: Int[Tensor, " N"],
    *,
    temperature: float,
    chunk: int,
    with_entropy: bool,
    entropy_grad: bool,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """The same as `core.logprobs.from_hidden` for a head without bias, in C.

    Gradients flow to `hidden` and `weight`, through the entropies only with `entropy_grad`.
    """
    logprobs, entropies = _Logprobs.apply(  # pyright: ignore
        *(hidden, weight, token_ids.long().contiguous(), temperature, chunk),
        *(with_entropy or entropy_grad, dtype),
    )
    return logprobs, entropies if entropy_grad else entropies.detach()


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        token_ids: Tensor,
        temperature: float,
        chunk: int,
        with_entropy: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        head, count = Head(weight, dtype), len(hidden)
        logprobs, lse, entropies = torch.empty(count), torch.empty(count), torch.zeros(count)
        kept: list[Tensor] = []
        for part in _pieces(0, count, len(weight)):
            logits = head.logits(hidden[part])
            _library().logprobs(
                *(long(len(logits)), long(len(weight)), at(logits), at(token_ids[part])),
                *(ctypes.c_float(temperature), at(logprobs[part])),
                *(at(entropies[part] if with_entropy else None), at(lse[part])),
            )
            if count <= chunk and any(ctx.needs_input_grad):
                kept.append(logits)  # of more rows, they are computed anew in the backward pass
        ctx.save_for_backward(hidden, weight, token_ids, lse, entropies)
        ctx.kept, ctx.head, ctx.settings = kept, head, (temperature, chunk, dtype)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors[:2]
        _, chunk, dtype = ctx.settings
        up = tuple(None if grad is None else grad.contiguous() for grad in grads)
        matrix, grad_weight, grad_hidden = weight.to(dtype), None, torch.empty_like(hidden)
        for start in range(0, len(hidden), chunk):
            part = slice(start, min(start + chunk, len(hidden)))
            grad = _logits_gradient(ctx, part, up, dtype)
            count = part.stop - part.start
            grad_hidden[part] = (grad @ matrix)[:count]
            if ctx.needs_input_grad[1]:
                inner = F.pad(hidden[part].to(dtype), (0, 0, 0, len(grad) - count))
                more = (grad.t() @ inner).float()
                grad_weight = more if grad_weight is None else grad_weight.add_(more)
        ctx.kept.clear()
        return grad_hidden, grad_weight, None, None, None, None, None


def _logits_gradient(
    ctx: Any, part: slice, up: tuple[Tensor | None, ...], dtype: torch.dtype
) -> Tensor:
    """Gradient of some rows of logits, from those of their log-probs and entropies.

    Rows of zeros follow up to a multiple of ROWS: oneDNN compiles a kernel for each new shape.
    """
    hidden, weight, token_ids, lse, entropies = ctx.saved_tensors
    name = "logits_gradient_bf16" if dtype == torch.bfloat16 else "logits_gradient_float"
    count = part.stop - part.start
    grad = torch.empty(count + -count % ROWS, len(weight), dtype=dtype)
    grad[count:] = 0
    none = torch.zeros_like(lse)
    for number, rows in enumerate(_pieces(part.start, part.stop, len(weight))):
        logits = ctx.kept[number] if ctx.kept else ctx.head.logits(hidden[rows])
        here = slice(rows.start - part.start, rows.stop - part.start)
        getattr(_library(), name)(
            *(long(len(logits)), long(len(weight)), at(logits), at(token_ids[rows])),
            *(ctypes.c_float(ctx.settings[0]), at(lse[rows]), at(entropies[rows])),
            *(at((none if up[0] is None else up[0])[rows]),),
            *(at(None if up[1] is None else up[1][rows]), at(grad[here])),
        )
    return grad


def _pieces(start: int, stop: int, vocabulary: int) -> list[slice]:
    """Rows that go through the head together: their logits should stay in the processor's cache."""
    size = max(PIECE // vocabulary, 1)
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def _library() -> ctypes.CDLL:
    lib = library()
    assert lib is not None  # see `available`
    return lib
