"""The decode loop: prompts in, sampled completions with their log-probs out."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tether.data.shelf import TOKENS_IN_MEMORY, shelved
from tether.engine.decoders import Decoder, decoder_for
from tether.engine.sampling import sample, uniforms
from tether.errors import ConfigError
from tether.kernels import head
from tether.models.adapters import using
from tether.models.language_model import LanguageModel
from tether.models.place import at_work
from tether.models.templates import tell_of_plain
from tether.models.truncation import fit_prompt, tell_of_truncated
from tether.records import Text
from tether.sections import SamplingConfig

REFILL_SHARE = 0.1  # waiting prompts are read once this share of the slots is free


class Sampled(NamedTuple):
    """One sampled completion.

    `token_ids` include the end token where the completion is `finished`; `logprobs` (nats) are at
    the sampling temperature, one a token.
    """

    token_ids: list[int]
    logprobs: list[float]
    finished: bool


def completion_text(
    language_model: LanguageModel, prompt: list[int], token_ids: list[int], *, finished: bool
) -> str:
    """The text that a completion adds to its prompt, without its end token and special ones.

    Both are decoded together: alone, a completion loses its leading blank in many tokenizers.
    """
    ids = token_ids[:-1] if finished else token_ids
    start, whole = (
        language_model.tokenizer.decode(
            part, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for part in (prompt, prompt + ids)
    )
    assert isinstance(start, str)
    assert isinstance(whole, str)
    return whole[len(start) :]


def encode_prompts(
    language_model: LanguageModel, prompts: Sequence[Text], max_new_tokens: int
) -> Sequence[list[int]]:
    """Token ids of prompts that leave room for a completion of `max_new_tokens`.

    Chats that are too long lose their oldest turns, which is told.

    Raises:
        ConfigError: A prompt is empty or too long.
    """
    tokenizer, positions = language_model.tokenizer, language_model.max_positions
    tell_of_plain(tokenizer, prompts)
    limit = positions - max_new_tokens
    truncated = 0

    def fitted() -> Iterator[list[int]]:
        nonlocal truncated
        for prompt in prompts:
            each, cut = fit_prompt(tokenizer, prompt, limit)
            truncated += cut
            yield each

    ids = shelved(fitted(), list, list, TOKENS_IN_MEMORY)
    tell_of_truncated(truncated, len(prompts), "prompts", limit)
    check_lengths(ids, positions, max_new_tokens)
    return ids


def check_lengths(prompts: Sequence[list[int]], positions: int, max_new_tokens: int) -> None:
    """Refuse prompts that are empty or leave no room for a completion.

    Raises:
        ConfigError: Names the first such prompt.
    """
    for i, ids in enumerate(prompts):
        if not ids:
            raise ConfigError(f"prompt {i + 1} has no token to start from; give it some text")
        if len(ids) + max_new_tokens > positions:
            raise ConfigError(
                f"prompt {i + 1} has {len(ids)} tokens; with sampling.max_new_tokens="
                f"{max_new_tokens} it exceeds the model's {positions} positions; "
                "shorten it or lower sampling.max_new_tokens"
            )


@torch.no_grad()
def generate_tokens(
    language_model: LanguageModel,
    prompts: list[list[int]],
    sampling: SamplingConfig,
    *,
    seed: int,
    step: int = 0,
    rows: list[int] | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[Sampled]:
    """Sample one completion for each prompt (token ids), in the order given.

    Row i is a function of (model, prompt i, seed, step, rows[i]), where None are 0, 1, …: so a
    part of a batch can be sampled elsewhere. Up to `sampling.batch_size` rows are decoded together;
    where one has ended, a waiting one takes its place. `on_rows` is told how many have ended.

    Raises:
        ConfigError: A prompt leaves no room for a completion.
    """
    check_lengths(prompts, language_model.max_positions, sampling.max_new_tokens)
    if not prompts:
        return []
    # Long prompts first: those that wait till the end, alone, are then the cheap ones. Equal
    # prompts side by side, to be read once.
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i], i))
    slots = min(len(prompts), sampling.batch_size)
    room = len(prompts[order[0]]) + sampling.max_new_tokens
    model, place = language_model.model, language_model.place
    with at_work(model, place), using(model, language_model.adapter):
        decoder = decoder_for(language_model, slots, room)
        loop = _Loop(language_model, decoder, sampling, seed, step, rows)
        waiting, free = deque(order), deque(range(slots))
        while waiting or len(loop.row):
            enough = len(free) >= max(REFILL_SHARE * slots, 1) and loop.decoder.refills
            if waiting and (enough or not len(loop.row)):
                count = min(len(free), len(waiting))
                new = [waiting.popleft() for _ in range(count)]
                ended = loop.admit(new, [free.popleft() for _ in new], prompts)
            else:
                ended = loop.advance()
            free.extend(ended)
            if ended:
                on_rows(len(ended))
    return [loop.results[i] for i in range(len(prompts))]


class Token(NamedTuple):
    """One sampled token and its log-prob (nats) at the sampling temperature."""

    id: int
    logprob: float


@torch.no_grad()
def stream(
    language_model: LanguageModel,
    prompt: list[int],
    sampling: SamplingConfig,
    *,
    seed: int,
    step: int = 0,
) -> Iterator[Token]:
    """The tokens of one completion as they are sampled; whoever stops asking stops the sampling.

    They are those of `generate_tokens(language_model, [prompt], sampling, seed=seed, step=step)`,
    the end token included. Between two tokens nothing is held but the cache, so that other models
    on the same backbone may compute meanwhile.

    Raises:
        ConfigError: The prompt is empty or leaves no room for a completion; when first asked.
    """
    check_lengths([prompt], language_model.max_positions, sampling.max_new_tokens)
    model, place = language_model.model, language_model.place
    with at_work(model, place), using(model, language_model.adapter):
        decoder = decoder_for(language_model, 1, len(prompt) + sampling.max_new_tokens)
        loop = _Loop(language_model, decoder, sampling, seed, step)
        loop.admit([0], [0], [prompt])
    for count in range(sampling.max_new_tokens):
        if 0 in loop.results:
            ids, logprobs, _ = loop.results[0]
            yield Token(ids[count], logprobs[count])
            return
        yield Token(int(loop.tokens[0, count]), float(loop.logprobs[0, count]))
        with at_work(model, place), using(model, language_model.adapter):
            loop.advance()


class _Loop:
    """The rows under way; one entry a row in each tensor."""

    def __init__(
        self,
        language_model: LanguageModel,
        decoder: Decoder,
        sampling: SamplingConfig,
        seed: int,
        step: int,
        numbers: list[int] | None = None,
    ) -> None:
        self.decoder, self.sampling, self.key = decoder, sampling, (seed, step)
        self.numbers = numbers  # of the rows in the batch that they are a part of
        self.place = language_model.place
        self.logits = head_for(language_model)
        stops = sorted(language_model.stop_ids | set(sampling.stop_token_ids))
        self.stops = torch.tensor(stops, device=self.place.device)
        none = torch.empty(0, dtype=torch.long, device=self.place.device)
        self.row, self.slot, self.position, self.token, self.count = none, none, none, none, none
        width = sampling.max_new_tokens
        self.draws = torch.empty(0, width, device=self.place.device)
        self.tokens = torch.empty(0, width, dtype=torch.long, device=self.place.device)
        self.logprobs = torch.empty(0, width, device=self.place.device)
        self.results: dict[int, Sampled] = {}

    def admit(self, rows: list[int], slots: list[int], prompts: list[list[int]]) -> list[int]:
        """Read the prompts of new rows and sample their first token; returns slots freed."""
        groups: list[tuple[list[int], list[int]]] = []
        for row, slot in zip(rows, slots, strict=True):
            if groups and groups[-1][0] == prompts[row]:
                groups[-1][1].append(slot)
            else:
                groups.append((prompts[row], [slot]))
        hidden = self.decoder.prefill([prompt for prompt, _ in groups], [own for _, own in groups])
        sizes = torch.tensor([len(own) for _, own in groups], device=hidden.device)
        device, width = self.place.device, self.sampling.max_new_tokens
        new = len(rows)

        def joined(old: Tensor, more: list[int]) -> Tensor:
            return torch.cat([old, torch.tensor(more, device=device)])

        def longer(old: Tensor) -> Tensor:
            return torch.cat([old, old.new_zeros(new, width)])

        self.row, self.slot = joined(self.row, rows), joined(self.slot, slots)
        self.position = joined(self.position, [len(prompts[row]) - 1 for row in rows])
        self.token, self.count = joined(self.token, [0] * new), joined(self.count, [0] * new)
        numbers = [self.numbers[row] for row in rows] if self.numbers else rows
        draws = uniforms(*self.key, numbers, width).to(device)
        self.draws = torch.cat([self.draws, draws])
        self.tokens, self.logprobs = longer(self.tokens), longer(self.logprobs)
        freed = self._sample(hidden.repeat_interleave(sizes, 0), len(self.row) - new)
        self._keep(self.slot.argsort())  # decoders may count on the order of slots
        return freed

    def advance(self) -> list[int]:
        """Read the newest token of every row and sample the next; returns slots freed."""
        return self._sample(self.decoder.step(self.token, self.slot, self.position), 0)

    def _sample(self, hidden: Float[Tensor, "B D"], first: int) -> list[int]:
        """Sample a token for the rows from `first` on; those that have ended leave."""
        here = torch.arange(first, len(self.row), device=self.row.device)
        count = self.count[first:]
        token, logprob = sample(
            self.logits(hidden), self.draws[here, count], temperature=self.sampling.temperature
        )
        self.tokens[here, count], self.logprobs[here, count] = token, logprob
        self.token[first:] = token
        self.count[first:] += 1
        self.position[first:] += 1
        stopped = torch.isin(token, self.stops)
        ended = stopped | (self.count[first:] == self.sampling.max_new_tokens)
        if not ended.any():
            return []
        places = ended.nonzero().flatten()
        finished, places = stopped[places].tolist(), places + first
        facts = (each[places].tolist() for each in (self.row, self.count, self.slot))
        tokens, logprobs = self.tokens[places].cpu(), self.logprobs[places].cpu()
        freed: list[int] = []
        for i, (row, length, slot) in enumerate(zip(*facts, strict=True)):
            told = tokens[i, :length].tolist(), logprobs[i, :length].tolist()
            self.results[row] = Sampled(*told, finished[i])
            freed.append(slot)
        running = torch.ones_like(self.row, dtype=torch.bool)
        running[first:] = ~ended
        self._keep(running)
        return freed

    def _keep(self, which: Tensor) -> None:
        """Select rows, by a mask or by their indices."""
        for name in ("row", "slot", "position", "token", "count", "draws", "tokens", "logprobs"):
            setattr(self, name, getattr(self, name)[which])


def head_for(language_model: LanguageModel) -> Callable[[Tensor], Tensor]:
    """The head, made ready for many products."""
    weight = language_model.head_weight
    if weight is None or not head.available(weight):
        return language_model.head
    return head.Head(weight, language_model.place.dtype).logits
