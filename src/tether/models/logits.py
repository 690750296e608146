"""What some architectures do to their logits behind the head."""

import torch
from torch import Tensor
from transformers import PretrainedConfig


def transform(config: PretrainedConfig, logits: Tensor) -> Tensor:
    """What some architectures do to the logits after the head."""
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    return logits


def changes(config: PretrainedConfig) -> bool:
    """Whether that is anything at all."""
    names = ("logit_scale", "logits_scaling", "final_logit_softcapping")
    return any(getattr(config, name, None) for name in names)
