"""Models with one number per token: reward models (read at the end) and value models.

Both are a backbone and a linear head. A reward model is Hugging Face's own
`...ForSequenceClassification`, so plain transformers loads and scores it: with one label, or as an
ensemble with one for each head. Its backbone is a decoder, read at the last token, or an encoder
with the pooling of its own (`models/encoder.py`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tether import parallel
from tether.data.batches import Batch, Row, device_batches
from tether.errors import ConfigError, ModelError
from tether.models import adapters, encoder
from tether.models.language_model import (
    FULL,
    LanguageModel,
    from_pretrained,
    hidden_states,
    load_config,
    max_positions,
    predicting,
)
from tether.models.place import Device, at_work, pick_device, rest
from tether.models.templates import template_facts
from tether.models.truncation import Fitted, fit_completions
from tether.models.vocabulary import (
    give_every_token_a_row,
    lengthen,
    load_tokenizer,
    num_ids,
    num_rows,
)
from tether.records import Text
from tether.sections import ComputeConfig, LoraConfig

HEADS = ("score.", "classifier", "pooler", "head.")  # in the names of what a backbone lacks
SPREAD = 0.1  # std of what the new heads of an ensemble say of a hidden state of unit variance


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
    adapter: str = field(default="", kw_only=True)
    """The adapter that computes on the backbone, which others may share; "" = none"""

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """The head's parameters, and its adapter's or, where it has none, its backbone's."""
        body = self.model if self.adapter else self.model.base_model
        return [*adapters.parameters(body, self.adapter), *self.head.parameters()]

    def shares_pass(self, policy: LanguageModel) -> bool:
        """Whether the policy's hidden states are also those that the head reads."""
        return self.model is policy.model and self.adapter == policy.adapter

    def apart_from(self, policy: LanguageModel) -> list[nn.Parameter]:
        """Its parameters without those that are the policy's, too."""
        return list(self.head.parameters()) if self.shares_pass(policy) else self.own_parameters

    def hidden_states(self, batch: Batch, where: Bool[Tensor, "B S"]) -> Float[Tensor, "N D"]:
        """Last hidden states of the tokens of a batch where `where` is True, row after row."""
        return hidden_states(self.model, self.place, batch, where, self.adapter)

    def scores(self, batch: Batch) -> Float[Tensor, " B"]:
        """One number for each row, read at its last token (raw reward units)."""
        with at_work(self.model, self.place):
            return self.numbers(self.hidden_states(batch, batch.last_mask))

    def values(self, batch: Batch) -> Float[Tensor, " N"]:
        """One number for each completion token, read where it is predicted: V(s_t) before a_t."""
        with at_work(self.model, self.place):
            return self.numbers(self.hidden_states(batch, predicting(batch)))

    def numbers(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """The head on hidden states, in float32."""
        with torch.autocast(self.place.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1)


@dataclass
class RewardModel(ScalarModel):
    """A sequence classifier with its own tokenizer and the centring found when it was trained.

    Attributes:
        centering: Of a model with one head; None where none was stored.
        heads: Of an ensemble on one backbone: the centring of each head, () if it is none.
        encoder: True where the model reads both ways and goes through its own forward.
    """

    tokenizer: PreTrainedTokenizerBase
    centering: Centering | None
    heads: tuple[Centering, ...] = ()
    encoder: bool = False

    @property
    def longest(self) -> int:
        """Longest row, in tokens."""
        return encoder.longest(self.model) if self.encoder else max_positions(self.model.config)

    def rows(self, prompt: Text, completions: Sequence[Text], limit: int) -> Fitted:
        """A prompt with each of its completions as the model reads them.

        A decoder's row ends with the end token; where it exceeds `limit` tokens a chat loses its
        oldest turns, while a string stays too long. An encoder's row loses the beginning of the
        prompt, since its completion is read as a whole anyway.
        """
        if not self.encoder:
            return fit_completions(self.tokenizer, prompt, completions, limit)
        rows = [encoder.encode(self.tokenizer, prompt, c, limit) for c in completions]
        return Fitted(rows, False)

    def row(self, prompt: Text, completion: Text, limit: int) -> Row:
        """The row of one completion."""
        return self.rows(prompt, [completion], limit).rows[0]

    def logits(self, rows: Sequence[Row]) -> Float[Tensor, "N H"]:
        """What every head says of each row (raw reward units), in one forward pass."""
        with at_work(self.model, self.place):
            if self.encoder:
                pad_id = cast(int, self.tokenizer.pad_token_id)
                return encoder.logits(self.model, self.place, pad_id, rows)
            ((order, batch),) = device_batches(rows, 0)
            hidden = self.hidden_states(batch, batch.last_mask)
            places = torch.tensor(order).argsort().to(hidden.device)
            with torch.autocast(self.place.device.type, enabled=False):
                return self.head(hidden.float())[places]


def new_reward_model(
    path: str,
    compute: ComputeConfig,
    *,
    lora: LoraConfig = FULL,
    heads: int = 1,
    seed: int = 0,
) -> RewardModel:
    """A reward model on the backbone of a causal language model, or on an encoder.

    One head starts at 0. Several start small and different, or they would stay the same; they and
    what an encoder lacks between its backbone and its head are drawn from `seed`.

    A pad token that differs from the end token is added where there is none: transformers finds
    the end of a row by looking for pads. With `lora.rank` the head and an adapter named "reward"
    are trained, and no token is added that would need a new row of the frozen base's embeddings;
    plain transformers then scores one row at a time.

    Raises:
        ConfigError: `lora` does not fit the model, or that is an encoder.
    """
    place, base = pick_device(compute), adapters.base_of(path)
    auto = AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = parallel.before_sharding(place, compute.parallel)
        model = from_pretrained(auto, base, first, lora=lora, new_head=HEADS, num_labels=heads)
    head, reads_both_ways = head_of(model)
    if reads_both_ways and lora.rank:
        name = type(model).__name__
        raise ConfigError(f"lora.rank={lora.rank} but {name} is an encoder; set lora.rank = 0")
    tokenizer = load_tokenizer(path)
    give_every_token_a_row(model, tokenizer, adapted=base != path or lora.rank > 0)
    room = not lora.rank or num_ids(tokenizer) < num_rows(model)
    if room and tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    if num_ids(tokenizer) > num_rows(model) and not lora.rank:  # plain transformers reads pads
        lengthen(model, num_ids(tokenizer))
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    adapter = adapters.prepare(model, path, "reward", trainable=True, lora=lora, seed=seed)
    start_head(head.requires_grad_(True), seed)
    parallel.shard(model, compute.parallel, place.device)
    encoder = reads_both_ways
    return RewardModel(model, head, place, tokenizer, None, encoder=encoder, adapter=adapter)


@torch.no_grad()
def start_head(head: nn.Linear, seed: int) -> None:
    """Set a head of one output to 0, and several to small draws from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(head.weight.shape, generator=generator) * SPREAD / head.in_features**0.5
    head.weight.copy_(drawn if head.out_features > 1 else torch.zeros_like(drawn))
    if head.bias is not None:
        head.bias.zero_()


def load_reward_model(path: str, compute: ComputeConfig, *, trainable: bool = False) -> RewardModel:
    """Load a reward model: one label, or an ensemble that `tether reward` made.

    Raises:
        ModelError: Not there, or it has several labels, so which one is the reward is unknown.
    """
    if adapters.is_adapter(path):
        return _load_reward_adapter(path, compute, trainable=trainable)
    config, heads = classifier_config(path), read_heads(path)
    if config.num_labels not in (1, len(heads)):
        names = list((config.id2label or {}).values())
        raise ModelError(
            f"reward={path!r} has {config.num_labels} labels {names} and none was named; name the "
            f"one that is wanted, as in label = {names[-1]!r}, or train a reward model with "
            "`tether reward`"
        )
    model = load_classifier(path, compute, trainable=trainable)
    model.centering, model.heads = read_centering(path), heads
    return model


def load_classifier(path: str, compute: ComputeConfig, *, trainable: bool = False) -> RewardModel:
    """Load a sequence classifier, whatever labels it has, without any centring.

    Raises:
        ModelError: Not there, or no sequence classifier.
    """
    classifier_config(path)
    place = pick_device(compute)
    first = parallel.before_sharding(place, compute.parallel)
    model = from_pretrained(AutoModelForSequenceClassification, path, first)
    model.requires_grad_(trainable)
    parallel.shard(model, compute.parallel, place.device)
    rest(model, place)
    head, reads_both_ways = head_of(model)
    tokenizer = load_tokenizer(path)
    give_every_token_a_row(model, tokenizer, adapted=False)
    if reads_both_ways and tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {path!r} has no pad token; an encoder needs one")
    return RewardModel(model, head, place, tokenizer, None, encoder=reads_both_ways)


def _load_reward_adapter(path: str, compute: ComputeConfig, *, trainable: bool) -> RewardModel:
    """A reward model from its adapter, on a base of its own."""
    place, base, weight = pick_device(compute), adapters.base_of(path), _stored_head(path)
    auto = AutoModelForSequenceClassification
    first = parallel.before_sharding(place, compute.parallel)
    model = from_pretrained(auto, base, first, new_head=("score.",), num_labels=len(weight))
    adapter = adapters.prepare(model, path, "reward", trainable=trainable, lora=FULL)
    head, _ = head_of(model)
    with torch.no_grad():
        head.weight.copy_(weight)
    parallel.shard(model, compute.parallel, place.device)
    rest(model, place)
    tokenizer, centering, heads = load_tokenizer(path), read_centering(path), read_heads(path)
    return RewardModel(model, head, place, tokenizer, centering, heads, adapter=adapter)


def reward_on(
    model: PreTrainedModel, place: Device, path: str, name: str, *, trainable: bool = False
) -> RewardModel:
    """A reward model from its adapter, on a frozen backbone that others use too.

    Args:
        model: The backbone, in a model of any head.
        place: Where it computes.
        path: Directory of the adapter; its base is the backbone.
        name: What to call the adapter on it.
        trainable: False freezes the adapter.
    """
    weight = _stored_head(path).to(place.device)
    head = nn.Linear(weight.shape[1], len(weight), bias=False, device=place.device)
    head.weight = nn.Parameter(weight, requires_grad=trainable)
    adapters.attach_from(model, name, path, trainable=trainable)
    tokenizer, centering, heads = load_tokenizer(path), read_centering(path), read_heads(path)
    return RewardModel(model, head, place, tokenizer, centering, heads, adapter=name)


def _stored_head(path: str) -> Tensor:
    weight = adapters.read_weights(path).get(adapters.HEAD)
    if weight is None or len(weight) not in (1, len(read_heads(path))):
        raise ModelError(
            f"reward={path!r} is an adapter without a score head of one label; "
            "train one with `tether reward`, or give path/to/file.py:function"
        )
    return weight


def classifier_config(path: str) -> PretrainedConfig:
    """The configuration of a sequence classifier.

    Raises:
        ModelError: Not there, or something else.
    """
    config = load_config(path)
    if not any("SequenceClassification" in name for name in config.architectures or []):
        raise ModelError(
            f"reward={path!r} is no reward model (architectures {config.architectures}); "
            "train one with `tether reward`, or give path/to/file.py:function"
        )
    return config


def head_of(model: PreTrainedModel) -> tuple[nn.Linear, bool]:
    """The last layer of a sequence classifier, and True where its backbone is an encoder.

    Decoders are read at the last token by one linear layer called `score`; whatever ends in
    something else has a pooling of its own.
    """
    head = getattr(model, "score", None)
    return (head, False) if isinstance(head, nn.Linear) else (encoder.last_layer(model), True)


def read_centering(path: str) -> Centering | None:
    """Mean and std that `tether reward` stored with a reward model, if it did."""
    stored = _facts(path).get("centering")
    return Centering(float(stored["shift"]), float(stored["scale"])) if stored else None


def read_heads(path: str) -> tuple[Centering, ...]:
    """Mean and std of each head of an ensemble; () where the directory holds none."""
    stored = _facts(path).get("heads") or []
    return tuple(Centering(float(each["shift"]), float(each["scale"])) for each in stored)


def _facts(path: str) -> dict[str, Any]:
    file = Path(path) / "tether.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def value_model_from_reward(reward: RewardModel) -> ScalarModel:
    """A value model that starts as the centred reward model: V = (score − shift) / scale.

    It takes over the reward model's backbone and adapter.

    Of an ensemble it is the mean of that over the heads.

    Raises:
        ModelError: The reward model is an encoder, which has no number before the last token.
    """
    if reward.encoder:
        raise ModelError(
            f"{type(reward.model).__name__} is an encoder: it reads whole texts, and a value model "
            "needs a number at every token; start it from a decoder"
        )
    head = nn.Linear(reward.head.in_features, 1, device=reward.head.weight.device)
    centrings = torch.tensor(reward.heads or [reward.centering or Centering(0.0, 1.0)])
    shift, scale = centrings.to(head.weight).T
    with torch.no_grad():
        bias = torch.zeros_like(shift) if reward.head.bias is None else reward.head.bias
        head.weight.copy_((reward.head.weight / scale[:, None]).mean(0, keepdim=True))
        head.bias.copy_(((bias - shift) / scale).mean())
    return ScalarModel(reward.model, head, reward.place, adapter=reward.adapter)


def value_model_from_backbone(
    model: PreTrainedModel, place: Device, adapter: str = ""
) -> ScalarModel:
    """A value model on the backbone of `model` with that adapter, and a head that starts at 0."""
    width = cast(nn.Embedding, model.get_input_embeddings()).embedding_dim  # of OPT-350m: 512
    head = nn.Linear(width, 1, device=place.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return ScalarModel(model, head, place, adapter=adapter)


def save_reward_model(reward: RewardModel, folder: Path, facts: dict[str, Any]) -> None:
    """Write a Hugging Face directory; the centring, or that of each head, goes into `tether.json`.

    Plain transformers loads an ensemble as a classifier with a label for each head. Of a model
    with an adapter the adapter and the head are written, in peft's format. Of several processes
    all must call it, and the first one writes.
    """
    model = reward.model
    whole = parallel.whole_state(model) if parallel.is_sharded(model) else None
    if not parallel.leads():
        return
    if reward.adapter:
        adapters.save(model, reward.adapter, folder, score=reward.head)
    else:
        model.save_pretrained(folder, state_dict=whole)
    reward.tokenizer.save_pretrained(folder)
    facts = {**facts, "centering": reward.centering._asdict() if reward.centering else None}
    facts |= template_facts(reward.tokenizer)
    if reward.heads:
        facts["heads"] = [centering._asdict() for centering in reward.heads]
    text = json.dumps(facts, indent=2, allow_nan=False)
    (folder / "tether.json").write_text(text + "\n", encoding="utf-8")
