"""A dry run: the real code on tensors that are never filled, and the bytes it would hold.

Inside `DryRun` no large floating-point tensor is computed: a result gets its shape, and memory
that nobody touches and that so costs nothing. Token ids, masks and other integers are computed,
because shapes depend on them. So a model of any size runs in about a second, and what is counted
is what the code at hand holds, not what a formula says of it.
"""

import ctypes
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tether.errors import ConfigError
from tether.kernels import build

COMPUTED = 256  # numbers: operations on so few are computed
FILLED = 1 << 16  # numbers: results of so few are 0, so that no check stumbles over them


class DryRun(TorchDispatchMode):
    """Counts the bytes of live tensors by part, and remembers the moment with the most.

    Parts are "weights" and "gradients" (see `adopt`), "logits" (the last dimension is the
    vocabulary) and "activations": whatever else the passes hold, copies of weights included.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.held: Counter[str] = Counter()
        self._vocabulary = vocabulary
        self._peak: Counter[str] = Counter()
        self._storages: dict[int, tuple[weakref.ref[Any], str, int]] = {}

    def adopt(self, *models: nn.Module) -> None:
        """Count the tensors of models as weights, and the gradients they will get as gradients."""
        for model in models:
            for tensor in (*model.parameters(), *model.buffers()):
                self._count(tensor, "weights")
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._count_gradient)

    @contextmanager
    def phase(self) -> Iterator[Counter[str]]:
        """Measure what runs inside: afterwards the counter has the bytes at its peak."""
        parts: Counter[str] = Counter()
        self._peak = self.held.copy()
        yield parts
        parts.update(self._peak)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation, without its numbers, and count what it returns."""
        result = self.result(func, args, kwargs or {})
        for tensor in _tensors(result):
            wide = tensor.is_floating_point() and tensor.shape[-1:] == (self._vocabulary,)
            self._count(tensor, "logits" if wide else "activations")
        return result

    def result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation returns; computed only where it is small or of integers."""
        inputs = _tensors((args, kwargs))
        integers = bool(inputs) and not any(tensor.is_floating_point() for tensor in inputs)
        if func.is_view or integers or func._opname == "_local_scalar_dense":
            return func(*args, **kwargs)
        small = all(tensor.numel() <= COMPUTED for tensor in inputs)
        if func._schema.is_mutable:
            return func(*args, **kwargs) if small else _written(func, args, kwargs)
        try:
            shapes = _on_meta(func, args, kwargs)
        except RuntimeError:  # its shape is in its numbers, or torch has no rule for it
            return func(*args, **kwargs)
        large = any(t.is_floating_point() and t.numel() > COMPUTED for t in _tensors(shapes))
        if small and not large and func._opname not in ("empty", "empty_like", "new_empty"):
            return func(*args, **kwargs)
        return tree_map(_unfilled, shapes)

    def _count(self, tensor: Tensor, part: str) -> None:
        """Count a tensor's memory; what is counted already can become a weight or gradient."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            if part not in ("weights", "gradients"):
                return
            self._forget(key)
        self._storages[key] = weakref.ref(storage, lambda _: self._forget(key)), part, size
        self.held[part] += size
        if self.held.total() > self._peak.total():
            self._peak = self.held.copy()

    def _count_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._count(parameter.grad, "gradients")

    def _forget(self, key: int) -> None:
        _, part, size = self._storages.pop(key)
        self.held[part] -= size


# --- operations without numbers -------------------------------------------------------------------


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation in place returns: the argument that it would have written to."""
    arguments = func._schema.arguments
    values = {**dict(zip((a.name for a in arguments), args, strict=False)), **kwargs}
    written = [a.name for a in arguments if a.alias_info and a.alias_info.is_write]
    return values[written[0]] if func._schema.returns else None


def _on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The results of an operation as tensors that have a shape and no memory."""
    if func._opname == "index":  # how much a mask picks stands in the mask
        args = (args[0], [place for index in args[1] for place in _places(index)])
    args, kwargs = tree_map(_without_memory, (args, kwargs))
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs["device"] = torch.device("meta")
    return func(*args, **kwargs)


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    if index is None or index.dtype != torch.bool:
        return (index,)
    return index.nonzero(as_tuple=True)


def _without_memory(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")


def _unfilled(leaf: Any) -> Any:
    """A tensor of the same shape on the CPU; a large one is left as the system gives it."""
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.numel() <= FILLED:
        return torch.zeros(leaf.shape, dtype=leaf.dtype)
    try:
        return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype)
    except RuntimeError:  # the system does not promise more in one piece than it has
        size = leaf.numel() * leaf.element_size() >> 30
        raise ConfigError(
            f"device_batch_size: one tensor of shape {tuple(leaf.shape)} would take {size} GiB, "
            "more than there is here; lower device_batch_size, max_length or sampling.batch_size"
        ) from None


# --- the C kernels --------------------------------------------------------------------------------


class _Idle(ctypes.CDLL):
    """The compiled kernels, leaving their results unfilled; questions are answered as ever."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name) if name.startswith("has_") else _nothing


def _nothing(*_: Any) -> None:
    pass


@contextmanager
def idle_kernels(*, absent: bool) -> Iterator[None]:
    """Let the C kernels do nothing; `absent` = as where there are none.

    Torch does not see them run, so a dry run could not keep them from computing.
    """
    real = build.library
    compiled = None if absent else real()
    library = _Idle(compiled) if compiled else None
    users: list[Any] = [
        module
        for name, module in sys.modules.items()
        if name.startswith("tether.") and getattr(module, "library", None) is real
    ]
    try:
        for module in users:
            module.library = lambda: library
        yield
    finally:
        for module in users:
            module.library = real
