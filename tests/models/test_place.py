"""Where models compute: what autocast keeps."""

import weakref

import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from tether.models.place import Device


class Copies(TorchDispatchMode):
    """Remembers the bfloat16 tensors of one shape that come into being."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.found = shape, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if result.dtype == torch.bfloat16 and tuple(result.shape) == self.shape:
            self.found.append(weakref.ref(result.untyped_storage()))
        return result


def test_no_copy_of_a_weight_outlives_its_product():
    """In a pass over a sharded model they would add up to the whole of it in every process."""
    place = Device(torch.device("cpu"), torch.bfloat16, None)
    weight = torch.nn.Parameter(torch.ones(7, 5))
    with Copies((7, 5)) as copies, place.autocast():
        product = linear(torch.ones(2, 5, requires_grad=True), weight)
        assert product.dtype == torch.bfloat16
        assert any(copy() for copy in copies.found)  # the backward pass will multiply by it
        del product
        assert copies.found
        assert not any(copy() for copy in copies.found)
