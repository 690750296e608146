"""A model that can be asked: its answers as streams, and where it differs from its reference."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from tether.data.batches import Row, pad
from tether.engine.decode import Token, stream
from tether.engine.pieces import Piece, pieces
from tether.engine.sampling import CHAT
from tether.errors import ConfigError, TetherError
from tether.models import adapters
from tether.models.chat import encode_prompt
from tether.models.language_model import LanguageModel, completion_logprobs, load
from tether.records import Text
from tether.sections import ComputeConfig, SamplingConfig

SHADES = (0.1, 0.5, 1.5)  # nats from which a token's difference is slight, clear, strong
STAND_IN = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\ufffd")


class Voice:
    """A policy and, if wanted, the reference it came from.

    Attributes:
        name: Of the model, as it is written beside its completions.
        chats: Whether it has a chat template; without one it continues texts.
        takes_system: Whether the template has a place for a system message.
        compares: Whether there is a reference.
    """

    def __init__(
        self, name: str, policy: LanguageModel, reference: LanguageModel | None = None
    ) -> None:
        self.name, self._policy, self._reference = name, policy, reference
        self.chats = policy.tokenizer.chat_template is not None
        self.takes_system = self.chats and _takes_system(policy)
        self.compares = reference is not None

    def answer(
        self, prompt: Text, *, temperature: float, max_new_tokens: int, seed: int
    ) -> Iterator[Piece]:
        """What the model says after a prompt, piece by piece; at most as much as fits.

        Raises:
            ConfigError: The prompt is empty or fills the model's positions.
            ModelError: The prompt is messages and there is no chat template.
        """
        ids = self._encode(prompt)
        room = self._policy.max_positions - len(ids)
        if room < 1:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens and the model {self._policy.max_positions} "
                "positions; start anew or shorten it"
            )
        sampling = SamplingConfig(
            temperature=temperature, max_new_tokens=min(room, max_new_tokens), batch_size=1
        )
        tokens = stream(self._policy, ids, sampling, seed=seed, step=CHAT)
        return pieces(self._policy.tokenizer, ids, tokens, self._policy.stop_ids)

    @torch.no_grad()
    def differences(self, prompt: Text, answer: Sequence[Piece]) -> list[float]:
        """Log π(piece) - log π_ref(piece) in nats, summed over the tokens of each piece.

        At temperature 1, whatever the answer was sampled at. Above 0 the policy has learned to say
        it more readily than the reference. [] without a reference.
        """
        if self._reference is None or not answer:
            return []
        ids = self._encode(prompt)
        batch = pad([Row(ids + [token.id for token in _tokens(answer)], len(ids))])
        ours, theirs = (
            completion_logprobs(model, batch)[0].cpu() for model in (self._policy, self._reference)
        )
        parts = (ours - theirs).split([len(piece.tokens) for piece in answer])
        return [float(part.sum()) for part in parts]

    def shaded(self, prompt: Text, answer: Sequence[Piece]) -> list[tuple[float, int]]:
        """The differences, each with how strongly it is shown (`shade`)."""
        return [(round(d, 4), shade(d)) for d in self.differences(prompt, answer)]

    def _encode(self, prompt: Text) -> list[int]:
        return encode_prompt(self._policy.tokenizer, prompt)


def load_voice(name: str, path: str, reference: str = "", device: str = "auto") -> Voice:
    """Load a model and, unless it is "", its reference.

    An adapter and the base it stands on share one backbone.

    Raises:
        ModelError: A directory cannot be loaded.
        ConfigError: The two have different vocabularies.
    """
    compute = ComputeConfig(device=device)
    policy = load(path, compute)
    if not reference:
        return Voice(name, policy)
    if policy.adapter and adapters.base_of(path) == reference:
        return Voice(name, policy, replace(policy, adapter=""))
    base = load(reference, compute)
    if base.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(
            f"reference={reference!r} has another vocabulary than {path!r}, so their tokens "
            "cannot be compared; give the model that it was trained from"
        )
    return Voice(name, policy, base)


def shade(difference: float) -> int:
    """How strongly a difference is shown: 0 hardly any, 1 to 3; below 0 where it is negative."""
    strength = sum(abs(difference) >= limit for limit in SHADES)
    return strength if difference > 0 else -strength


def harmless(text: str) -> str:
    """The text without the control characters by which it could steer a terminal."""
    return text.translate(STAND_IN)


def _tokens(answer: Iterable[Piece]) -> Iterator[Token]:
    return (token for piece in answer for token in piece.tokens)


def _takes_system(policy: LanguageModel) -> bool:
    """Whether the template writes a system message down (some refuse it, some drop it)."""
    mark = "a system message"
    prompt: Text = [{"role": "system", "content": mark}, {"role": "user", "content": "Hi"}]
    try:
        ids = encode_prompt(policy.tokenizer, prompt)
    except TetherError:
        return False
    plain = encode_prompt(policy.tokenizer, prompt[1:])
    return len(ids) > len(plain)
