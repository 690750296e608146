"""Where the Triton kernels for GPUs can be had: one launch for what is a dozen in torch.

Like the C kernels they are compiled on first use (about a second each) and never needed: without
Triton, which comes with torch where there are GPUs, or a C compiler, or with TETHER_KERNELS=0,
torch does their work. Each is the same function as its namesake in C and in torch, with sums in
float32.
"""

# pyright: basic
import functools
import importlib.util
import os
import shutil
from typing import Any

import torch
from torch import Tensor

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:  # a torch for CPUs

    class _Nothing:
        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, function: Any) -> Any:
            return function

    triton: Any = _Nothing()
    tl: Any = triton

OLDEST = 8, 0  # compute capability with bfloat16 on its matrix units: Ampere
HEAD_SIZES = (32, 64, 128)  # of the heads that `decode_attention` reads


def serves(*tensors: Tensor) -> bool:
    """Whether these tensors are for the kernels here."""
    plain = all(each.dtype in (torch.float32, torch.bfloat16) for each in tensors)
    return plain and all(each.device.type == _device() for each in tensors) and _can_compile()


def reads_cache(keys: Tensor) -> bool:
    """Whether `cache_write` and `decode_attention` serve a cache with these keys."""
    return keys.shape[2] in HEAD_SIZES and serves(keys)


def _device() -> str:
    return "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@functools.cache
def _can_compile() -> bool:
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < OLDEST:
        return False
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    wanted = os.environ.get("TETHER_KERNELS", "1") != "0"
    return wanted and compiler is not None and importlib.util.find_spec("triton") is not None


def block(width: int) -> int:
    """The least power of two that holds so many columns."""
    return 1 << (width - 1).bit_length()
