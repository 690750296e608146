"""Element by element operations as one kernel each on a GPU, where torch would launch a dozen.

`torch.compile` makes them from the functions that are the operations elsewhere, on first use. As
with the C kernels nothing is lost without it but speed: where Triton or a C compiler is missing,
or TETHER_KERNELS=0 is set, the functions run as they are written.
"""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled for calls whose first argument lies on a GPU."""
    compiled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        if torch.compiler.is_compiling():  # inside of another one
            return function(*args, **kwargs)
        if not (isinstance(first, Tensor) and first.is_cuda and can_compile()):
            return function(*args, **kwargs)
        if not compiled:
            compiled.append(torch.compile(function, dynamic=True))
        return compiled[0](*args, **kwargs)

    return call


@functools.cache
def can_compile() -> bool:
    """Whether `torch.compile` finds here what it needs for a GPU, and is not switched off."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    wanted = os.environ.get("TETHER_KERNELS", "1") != "0"
    return wanted and compiler is not None and importlib.util.find_spec("triton") is not None
