"""Both ways to compute, and rotary tables that owe nothing to the code under test."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest
import torch

from tether.kernels.build import library
from tether.kernels.layers import Rotary

NEEDS_C = pytest.mark.skipif(library() is None, reason="no C kernels here")
BACKENDS = [pytest.param("C", marks=NEEDS_C), "torch"]
HALF_STEP = 2**-8  # bfloat16 rounds by at most this share of a number


@contextmanager
def backend_of(name: str) -> Iterator[None]:
    """Compute in C, or as where there is no compiler."""
    with ExitStack() as stack:
        for module in [m for n, m in sys.modules.items() if n.startswith("tether.kernels.")]:
            if name == "torch" and hasattr(module, "library"):
                stack.enter_context(mock.patch.object(module, "library", return_value=None))
        yield


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tables(length: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines in float64 of position · 10000^(-2i/d)."""
    speeds = 10000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * speeds
    return angles.cos(), angles.sin()


def rotary_of(length: int, size: int) -> Rotary:
    """The same as the code takes them."""
    cos, sin = tables(length, size)
    return Rotary(cos.float(), sin.float())
