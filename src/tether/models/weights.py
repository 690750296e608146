"""The weights of a model for somebody else: whole tensors, one after the other.

Where a model is sharded, every process must go through them all, since each gathers its part.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tether import parallel
from tether.models import adapters
from tether.models.language_model import LanguageModel


def trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What is trained of a model, by the names of its parameters; a tied one comes once."""
    parallel.reshard(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parallel.whole_tensor(parameter)


@torch.no_grad()
def plain(policy: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """The weights of a plain Hugging Face model that computes what the policy does.

    Its adapter is folded in, W + s·B·A; a tied weight comes once, under its first name.
    """
    model = policy.model
    parallel.reshard(model)
    layers: dict[str, Any] = dict(adapters.lora_layers(model))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        tensor = parallel.whole_tensor(parameter)
        layer, _, kind = name.rpartition(".base_layer.")
        if layer in layers:
            name = f"{layer}.{kind}"
            if kind == "weight" and policy.adapter in layers[layer].lora_A:
                tensor = tensor + layers[layer].get_delta_weight(policy.adapter)
        yield name, tensor
    for name, buffer in model.named_buffers():
        if name in model.state_dict():  # what is saved; a rotary table, say, is computed
            yield name, buffer


@torch.no_grad()
def copy_trained(source: nn.Module, into: nn.Module) -> None:
    """Bring the trained parameters of a model into another that is built alike."""
    targets = dict(into.named_parameters())
    for name, tensor in trained(source):
        targets[name].copy_(tensor)
