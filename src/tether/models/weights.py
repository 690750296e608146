"""The weights of a model for somebody else: whole tensors, one after the other.

Where a model is sharded, every process must go through them all, since each gathers its part.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tether import parallel
from tether.models import adapters
from tether.models.language_model import LanguageModel


def trained(policy: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """What is trained of a policy, by the names of its model's parameters; a tied one comes once.

    With an adapter it is that adapter's, whatever else is on the same backbone.
    """
    parallel.reshard(policy.model)
    own = {id(parameter) for parameter in policy.own_parameters}
    for name, parameter in policy.model.named_parameters():
        if id(parameter) in own:
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
def copy_trained(source: LanguageModel, into: LanguageModel) -> None:
    """Bring what is trained of a policy into another that is built alike."""
    targets = dict(into.model.named_parameters())
    for name, tensor in trained(source):
        targets[name].copy_(tensor)
