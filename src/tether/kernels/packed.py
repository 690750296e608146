"""A weight packed once for many bfloat16 products with float32 sums, as decoding needs them."""

import torch
from jaxtyping import Float
from torch import Tensor

from tether.kernels.build import library
from tether.kernels.layers import at, long

PANEL = 64  # rows of the weight that are packed together


def can_pack(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether products in `dtype` with this weight (n, k) can be had from a packed one."""
    lib = library() if dtype == torch.bfloat16 and weight.device.type == "cpu" else None
    plain = type(weight) in (Tensor, torch.nn.Parameter)
    return lib is not None and plain and weight.shape[1] % 2 == 0 and bool(lib.has_bf16_products())


class Packed:
    """x ↦ x · weightᵀ + bias, in bfloat16."""

    dtype = torch.bfloat16

    def __init__(self, weight: Float[Tensor, "n k"], bias: Float[Tensor, " n"] | None = None):
        lib, weight = library(), weight.contiguous()
        assert lib is not None  # see `can_pack`
        self.library, self.bias, (self.rows, self.width) = lib, bias, weight.shape
        panels = -(-self.rows // PANEL)
        self.weight = torch.empty(panels * PANEL * self.width, dtype=torch.bfloat16)
        lib.pack_weight(long(self.rows), long(self.width), at(weight), at(self.weight))

    def product(self, x: Float[Tensor, "N k"], dtype: torch.dtype) -> Float[Tensor, "N n"]:
        """The product without the bias, as float32 or bfloat16."""
        x = x.to(torch.bfloat16).contiguous()
        out = torch.empty(len(x), self.rows, dtype=dtype)
        shape = (long(len(x)), long(self.rows), long(self.width))
        narrow = long(dtype == torch.bfloat16)
        self.library.packed_linear(*shape, at(x), at(self.weight), at(out), narrow)
        return out

    def __call__(self, x: Float[Tensor, "N k"]) -> Float[Tensor, "N n"]:
        """The product with the bias, in bfloat16."""
        out = self.product(x, torch.bfloat16)
        return out if self.bias is None else out + self.bias
