"""Models with one number per token: reward models (read at the end) and value models.

Both are a backbone and a linear head. A reward model is Hugging Face's own
`...ForSequenceClassification` with one label, so plain transformers loads and scores it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tether.data.batches import Batch
from tether.errors import ModelError
from tether.models.language_model import (
    Device,
    from_pretrained,
    hidden_states,
    load_config,
    load_tokenizer,
    pick_device,
    predicting,
)
from tether.sections import ComputeConfig


class Centering(NamedTuple):
    """Mean and std of raw scores on samples of the reference, in raw reward units."""

    shift: float
    scale: float


@dataclass
class ScalarModel:
    """A backbone with a linear head to one number."""

    model: PreTrainedModel
    head: nn.Linear
    place: Device

    def scores(self, batch: Batch) -> Float[Tensor, " B"]:
        """One number for each row, read at its last token (raw reward units)."""
        return self.numbers(hidden_states(self.model, self.place, batch, batch.last_mask))

    def values(self, batch: Batch) -> Float[Tensor, " N"]:
        """One number for each completion token, read where it is predicted: V(s_t) before a_t."""
        return self.numbers(hidden_states(self.model, self.place, batch, predicting(batch)))

    def numbers(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """The head on hidden states, in float32."""
        with torch.autocast(self.place.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1)


@dataclass
class RewardModel(ScalarModel):
    """A scalar model with its own tokenizer and the centring found when it was trained."""

    tokenizer: PreTrainedTokenizerBase
    centering: Centering | None


def new_reward_model(path: str, compute: ComputeConfig) -> RewardModel:
    """A reward model on the backbone of a causal language model; its head starts at 0.

    A pad token that differs from the end token is added where there is none: transformers finds
    the end of a row by looking for pads.
    """
    place = pick_device(compute)
    auto = AutoModelForSequenceClassification
    model = from_pretrained(auto, path, place, new_head="score.weight", num_labels=1)
    tokenizer = load_tokenizer(path)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        if len(tokenizer) > cast(nn.Embedding, model.get_input_embeddings()).num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    head = scalar_head(model)
    nn.init.zeros_(head.weight)
    return RewardModel(model, head, place, tokenizer, None)


def load_reward_model(path: str, compute: ComputeConfig, *, trainable: bool = False) -> RewardModel:
    """Load a reward model (one label).

    Raises:
        ModelError: Not there, or it has several labels, so which one is the reward is unknown.
    """
    labels = load_config(path).num_labels
    architectures = load_config(path).architectures or []
    if not any("SequenceClassification" in name for name in architectures):
        raise ModelError(
            f"reward={path!r} is no reward model (architectures {architectures}); "
            "train one with `tether reward`, or give path/to/file.py:function"
        )
    if labels != 1:
        names = list((load_config(path).id2label or {}).values())
        raise ModelError(
            f"reward={path!r} has {labels} labels {names} and none was named; "
            "a reward model has one: train it with `tether reward`"
        )
    place = pick_device(compute)
    model = from_pretrained(AutoModelForSequenceClassification, path, place)
    model.requires_grad_(trainable)
    centering = read_centering(path)
    return RewardModel(model, scalar_head(model), place, load_tokenizer(path), centering)


def scalar_head(model: PreTrainedModel) -> nn.Linear:
    """The linear head of a sequence classifier with one label."""
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{type(model).__name__} has no linear `score` head; use a decoder model")
    return head


def read_centering(path: str) -> Centering | None:
    """Mean and std that `tether reward` stored with a reward model, if it did."""
    file = Path(path) / "tether.json"
    if not file.is_file():
        return None
    stored = json.loads(file.read_text(encoding="utf-8")).get("centering")
    return Centering(float(stored["shift"]), float(stored["scale"])) if stored else None


def value_model_from_reward(reward: RewardModel) -> ScalarModel:
    """A value model that starts as the centred reward model: V = (score − shift) / scale."""
    head = nn.Linear(reward.head.in_features, 1, device=reward.head.weight.device)
    shift, scale = reward.centering or Centering(0.0, 1.0)
    with torch.no_grad():
        bias = torch.zeros(1) if reward.head.bias is None else reward.head.bias
        head.weight.copy_(reward.head.weight / scale)
        head.bias.copy_((bias.to(head.bias) - shift) / scale)
    return ScalarModel(reward.model, head, reward.place)


def value_model_from_backbone(model: PreTrainedModel, place: Device) -> ScalarModel:
    """A value model on the backbone of `model`, with a head that starts at 0."""
    width = cast(int, model.config.get_text_config().hidden_size)
    head = nn.Linear(width, 1, device=place.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return ScalarModel(model, head, place)


def save_reward_model(reward: RewardModel, folder: Path, facts: dict[str, Any]) -> None:
    """Write a Hugging Face directory; the centring goes into `tether.json`."""
    reward.model.save_pretrained(folder)
    reward.tokenizer.save_pretrained(folder)
    centering = reward.centering._asdict() if reward.centering else None
    text = json.dumps({**facts, "centering": centering}, indent=2, allow_nan=False)
    (folder / "tether.json").write_text(text + "\n", encoding="utf-8")
