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

from tether.kernels import gpu, gpu_head
from tether.kernels.build import library
from tether.kernels.layers import at, long
from tether.kernels.packed import Packed, can_pack

ROWS = 64  # bfloat16 products are of a multiple of so many rows
PIECE = 1 << 22  # logits computed at a time; 16 MiB


def available(weight: Tensor) -> bool:
    """Whether this head is an ordinary float32 weight, which the code here is for."""
    plain = type(weight) in (Tensor, torch.nn.Parameter) and weight.dtype == torch.float32
    return plain and weight.device.type in ("cpu", "cuda")


def in_c(tensor: Tensor) -> bool:
    """Whether the C kernels can serve a float32 tensor."""
    return available(tensor) and tensor.device.type == "cpu" and library() is not None


class Head:
    """The weight (V, D) of a head, made ready for products in `dtype`.

    In bfloat16 the weight is packed or cast once and serves many products; where a processor has
    no bfloat16 products, they are computed in float32.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight.detach()
        self.packed = Packed(self.weight) if can_pack(self.weight, dtype) else None
        self.narrow = self.weight.to(dtype) if _has_wide_products(weight, dtype) else None

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits in float32."""
        if self.packed is not None:
            return self.packed.product(hidden, torch.float32)
        if self.narrow is not None:
            return torch.mm(hidden.to(self.narrow.dtype), self.narrow.t(), out_dtype=torch.float32)
        return hidden.float() @ self.weight.t()


def _has_wide_products(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch has products in `dtype` whose results are float32: on GPUs only."""
    return weight.device.type == "cuda" and dtype != torch.float32


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
    """The same as `core.logprobs.from_hidden` for a head without bias, with its own gradient.

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
        logprobs, lse, entropies = (hidden.new_zeros(count, dtype=torch.float32) for _ in range(3))
        kept: list[Tensor] = []
        for part in _pieces(0, count, weight, chunk):
            logits = head.logits(hidden[part])
            if in_c(weight):
                _library().logprobs(
                    *(long(len(logits)), long(len(weight)), at(logits), at(token_ids[part])),
                    *(ctypes.c_float(temperature), at(logprobs[part])),
                    *(at(entropies[part] if with_entropy else None), at(lse[part])),
                )
            else:
                measure = gpu_head.measure if gpu.serves(logits) else _measure
                found = measure(logits, token_ids[part], temperature, with_entropy)
                for whole, piece in zip((logprobs, lse, entropies), found, strict=True):
                    whole[part] = piece
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
    temperature, chunk, _ = ctx.settings
    grad = torch.empty(count + -count % ROWS, len(weight), dtype=dtype, device=weight.device)
    grad[count:] = 0
    none = torch.zeros_like(lse)
    for number, rows in enumerate(_pieces(part.start, part.stop, weight, chunk)):
        logits = ctx.kept[number] if ctx.kept else ctx.head.logits(hidden[rows])
        here = slice(rows.start - part.start, rows.stop - part.start)
        if not in_c(weight):
            found = token_ids[rows], temperature, lse[rows], entropies[rows]
            first = (none if up[0] is None else up[0])[rows]
            second = None if up[1] is None else up[1][rows]
            gradient = gpu_head.gradient if gpu.serves(logits) else _gradient
            gradient(logits, *found, first, second, grad[here])
            continue
        getattr(_library(), name)(
            *(long(len(logits)), long(len(weight)), at(logits), at(token_ids[rows])),
            *(ctypes.c_float(temperature), at(lse[rows]), at(entropies[rows])),
            *(at((none if up[0] is None else up[0])[rows]),),
            *(at(None if up[1] is None else up[1][rows]), at(grad[here])),
        )
    return grad


def _measure(
    logits: Tensor, token_ids: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of each row's token, log Σ exp of the row, and its entropy or 0."""
    logits = logits / temperature
    lse = logits.logsumexp(-1)
    chosen = logits.gather(1, token_ids[:, None])[:, 0] - lse
    if not with_entropy:
        return chosen, lse, torch.zeros_like(lse)
    share, surprise = _share(logits - lse[:, None])
    return chosen, lse, (share * surprise).sum(-1)


def _gradient(
    logits: Tensor,
    token_ids: Tensor,
    temperature: float,
    lse: Tensor,
    entropies: Tensor,
    up: Tensor,
    up_entropy: Tensor | None,
    out: Tensor,
) -> None:
    """∂/∂zᵥ: of the log-prob of a (1[v = a] − πᵥ) / τ, of the entropy −πᵥ (log πᵥ + H) / τ."""
    logprobs = logits / temperature - lse[:, None]
    here = torch.arange(logits.shape[1], device=logits.device) == token_ids[:, None]
    share, surprise = _share(logprobs)
    grad = up[:, None] * (here.float() - share)
    if up_entropy is not None:
        grad = grad + up_entropy[:, None] * share * (surprise - entropies[:, None])
    out.copy_(grad / temperature)


def _share(logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities π and −log π, 0 where π is."""
    share = logprobs.exp()
    return share, torch.where(share > 0, -logprobs, 0.0)


def _pieces(start: int, stop: int, weight: Tensor, chunk: int) -> list[slice]:
    """Rows that go through the head together: on a CPU their logits should stay in its cache."""
    size = max(PIECE // len(weight), 1) if weight.device.type == "cpu" else chunk
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def _library() -> ctypes.CDLL:
    lib = library()
    assert lib is not None  # see `available`
    return lib
