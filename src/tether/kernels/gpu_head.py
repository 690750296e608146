"""The head in Triton: log-probs, the gradient of logits, and a sampled token."""

# pyright: basic, reportIndexIssue=false
from typing import no_type_check

import torch
from torch import Tensor

from tether.kernels.gpu import block, tl, triton

WIDE = 4096  # columns of logits at a time


def measure(
    logits: Tensor, token_ids: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of each row's token, log Σ exp of the row, and its entropy or 0."""
    rows, vocabulary = logits.shape
    logprobs, lse, entropies = (logits.new_zeros(rows) for _ in range(3))
    if rows:
        _measure[(rows,)](
            *(logits, token_ids, logprobs, lse, entropies, vocabulary, 1 / temperature),
            WITH_ENTROPY=with_entropy,
            BLOCK=min(WIDE, block(vocabulary)),
            num_warps=8,
        )
    return logprobs, lse, entropies


@triton.jit
@no_type_check
def _measure(
    logits,
    token_ids,
    logprobs,
    lse,
    entropies,
    vocabulary,
    cold,
    WITH_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    columns = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        z = tl.load(logits + first + columns, mask=inside, other=float("-inf"))
        top = tl.maximum(top, z * cold)
    most = tl.max(top, 0)
    mass = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    for first in range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        z = tl.load(logits + first + columns, mask=inside, other=float("-inf")) * cold - most
        share = tl.exp(z)
        mass += share
        if WITH_ENTROPY:
            moment += tl.where(share == 0, 0.0, share * z)
    total = tl.sum(mass, 0)
    spread = tl.log(total)
    chosen = tl.load(logits + tl.load(token_ids + row)) * cold
    tl.store(lse + row, most + spread)
    tl.store(logprobs + row, chosen - most - spread)
    if WITH_ENTROPY:
        tl.store(entropies + row, spread - tl.sum(moment, 0) / total)


def gradient(
    logits: Tensor,
    token_ids: Tensor,
    temperature: float,
    lse: Tensor,
    entropies: Tensor,
    up: Tensor,
    up_entropy: Tensor | None,
    out: Tensor,
) -> None:
    """Write the gradient of the logits from those of log-probs and entropies."""
    rows, vocabulary = logits.shape
    if rows:
        wide = min(WIDE, block(vocabulary))
        _gradient[(rows, triton.cdiv(vocabulary, wide))](
            *(logits, token_ids, lse, entropies, up, up if up_entropy is None else up_entropy),
            *(out, vocabulary, 1 / temperature),
            OF_ENTROPY=up_entropy is not None,
            BLOCK=wide,
            num_warps=8,
        )


@triton.jit
@no_type_check
def _gradient(
    logits,
    token_ids,
    lse,
    entropies,
    up,
    up_entropy,
    out,
    vocabulary,
    cold,
    OF_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    z = tl.load(logits + row * vocabulary + columns, mask=inside, other=float("-inf")) * cold
    logprob = z - tl.load(lse + row)
    share = tl.exp(logprob)
    chosen = tl.where(columns == tl.load(token_ids + row), 1.0, 0.0)
    grad = tl.load(up + row) * (chosen - share)
    if OF_ENTROPY:
        surprise = tl.where(share == 0, 0.0, -logprob)
        grad += tl.load(up_entropy + row) * share * (surprise - tl.load(entropies + row))
    grad = (grad * cold).to(out.dtype.element_ty)
    tl.store(out + row * vocabulary + columns, grad, mask=inside)


def sample(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw a token a row by inverting the cumulative distribution, with its log-prob (nats)."""
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.long, device=logits.device)
    logprobs = logits.new_empty(rows)
    _sample[(rows,)](
        *(logits, uniform, tokens, logprobs, vocabulary, 1 / temperature),
        BLOCK=min(WIDE, block(vocabulary)),
        num_warps=8,
    )
    return tokens, logprobs


@triton.jit
@no_type_check
def _sample(logits, uniform, tokens, logprobs, vocabulary, cold, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    columns = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        z = tl.load(logits + first + columns, mask=inside, other=float("-inf"))
        top = tl.maximum(top, z * cold)
    most = tl.max(top, 0)
    mass = 0.0
    for first in range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        z = tl.load(logits + first + columns, mask=inside, other=float("-inf")) * cold
        mass += tl.sum(tl.exp(z - most), 0)
    wanted = tl.load(uniform + row) * mass
    # The token is the number of words whose cumulative mass is not above what is wanted; never
    # beyond the last that has any, where sums were rounded otherwise.
    below, last, done = 0, 0, 0.0
    for first in range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        z = tl.load(logits + first + columns, mask=inside, other=float("-inf")) * cold
        share = tl.exp(z - most)
        cumulative = done + tl.cumsum(share, 0)
        below += tl.sum(((cumulative <= wanted) & inside).to(tl.int32), 0)
        last = tl.maximum(last, tl.max(tl.where(share > 0, first + columns, 0), 0))
        done += tl.sum(share, 0)
    token = tl.minimum(below, last)
    tl.store(tokens + row, token)
    tl.store(logprobs + row, tl.load(logits + token) * cold - most - tl.log(mass))
