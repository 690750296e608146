"""Shapes of models of the Llama family, and what they come to in parameters and operations.

Everything here is whole numbers; no model is made and torch is not imported.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tether.errors import ConfigError

FAMILY = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The numbers that a model's size follows from, named as in docs and config.json alike."""

    layers: int
    width: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    vocabulary: int
    tied: bool
    biases: bool = False
    """Whether queries, keys and values have one (Qwen2)"""
    head_norms: bool = False
    """Whether the queries and keys of each head are normed (Qwen3)"""

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer."""
        queries, keys = self.heads * self.head_size, self.key_heads * self.head_size
        attention = [(self.width, queries), (self.width, keys), (self.width, keys)]
        attention.append((queries, self.width))
        return [*attention, *[(self.width, self.inner)] * 2, (self.inner, self.width)]

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer: its products, two norms, and what some families add.

        D (H + 2K) d + H d D + 3 D I + 2 D, for width D, H heads and K key heads of d numbers and
        inner width I; (H + 2K) d biases; 2 d norms of heads.
        """
        products = sum(inputs * outputs for inputs, outputs in self.linears)
        biases = self.biases * (self.heads + 2 * self.key_heads) * self.head_size
        return products + 2 * self.width + biases + self.head_norms * 2 * self.head_size

    @property
    def stack(self) -> int:
        """Parameters of all decoder layers."""
        return self.layers * self.layer

    @property
    def head(self) -> int:
        """Parameters of the head, V D; where it is tied, it is the embedding."""
        return self.vocabulary * self.width

    @property
    def backbone(self) -> int:
        """Parameters without the head: embedding, layers, last norm."""
        return self.vocabulary * self.width + self.stack + self.width

    @property
    def parameters(self) -> int:
        """All parameters of the language model."""
        return self.backbone + (0 if self.tied else self.head)

    @property
    def scalar(self) -> int:
        """All parameters of a reward or value model: the backbone and a head of one number."""
        return self.backbone + self.width

    @property
    def cached(self) -> int:
        """Keys and values of one token in all layers, in numbers: 2 L K d."""
        return 2 * self.layers * self.key_heads * self.head_size

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on every linear layer but the head: r (in + out) each."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linears)

    def attention(self, tokens: int) -> int:
        """Operations of causal attention over a row, forward: 2 L H d T².

        Scores and sums of values take 2 H d operations each for every pair of positions, of which
        half are looked at.
        """
        return 2 * self.layers * self.heads * self.head_size * tokens**2


_8B = Shape(
    layers=32,
    width=4096,
    heads=32,
    key_heads=8,
    head_size=128,
    inner=14336,
    vocabulary=128256,
    tied=False,
)
PRESETS = {
    "1B": replace(_8B, layers=16, width=2048, head_size=64, inner=8192, tied=True),
    "8B": _8B,
    "70B": replace(_8B, layers=80, width=8192, heads=64, inner=28672),
}
"""Llama 3.2 1B, Llama 3.1 8B and 70B, from the config.json of each."""


def load_shape(size: str) -> Shape:
    """The shape of a preset, or of the model in a directory, whose config.json is read.

    Raises:
        ConfigError: Neither, or the model is not built like a Llama.
    """
    if size in PRESETS:
        return PRESETS[size]
    known = ", ".join(PRESETS)
    try:
        config = json.loads((Path(size) / "config.json").read_text(encoding="utf-8"))
        family = config.get("model_type")
    except (OSError, ValueError, AttributeError):
        raise ConfigError(
            f"size={size!r} is no model directory with a config.json; give one, or {known}"
        ) from None
    if family not in FAMILY:
        raise ConfigError(
            f"size={size!r} is of the family {family!r}, which is not counted on paper (only "
            f"{', '.join(FAMILY)}); `tether plan RECIPE.toml` counts any architecture"
        )
    return _read(config, size)


def _read(config: dict[str, Any], size: str) -> Shape:
    try:
        width, heads = config["hidden_size"], config["num_attention_heads"]
        return Shape(
            layers=config["num_hidden_layers"],
            width=width,
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or width // heads,
            inner=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            biases=config["model_type"] == "qwen2",
            head_norms=config["model_type"] == "qwen3",
        )
    except KeyError as error:
        raise ConfigError(f"size={size!r}: its config.json does not name {error}") from None
