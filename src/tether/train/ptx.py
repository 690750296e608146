"""Texts mixed into the updates of an online method (PPO-ptx).

Their gradient holds up what pretraining or SFT taught and the reward does not ask for: the
alignment tax. Source: Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tether import parallel
from tether.config import PolicyGradientConfig
from tether.data.batches import Row, step_indices
from tether.data.formats import read_demonstrations
from tether.data.shelf import Made
from tether.models.language_model import LanguageModel
from tether.progress import console
from tether.train import sft


@dataclass(frozen=True)
class Ptx:
    """The texts as token rows with their weights."""

    examples: Sequence[tuple[Row, float]]

    def accumulate(
        self,
        policy: LanguageModel,
        config: PolicyGradientConfig,
        num_completions: int,
        step: int,
        number: int,
    ) -> Tensor:
        """Accumulate the gradient of γ times the mean negative log-prob of some texts.

        Args:
            policy: What is trained.
            config: Its settings; γ is `policy_loss.ptx.coefficient`.
            num_completions: Completions of the minibatch: as many texts unless `ptx.batch_size`.
            step: The rollout batch, from 0.
            number: The optimizer step within it, from 0. Both decide which texts are taken.

        Returns:
            The mean negative log-prob (nats per token), before γ.
        """
        size = config.policy_loss.ptx.batch_size or num_completions
        update = step * config.epochs * config.minibatches + number
        chosen = step_indices(len(self.examples), size, config.seed, update)
        loss = torch.zeros(())
        batch = [self.examples[i] for i in chosen]
        for part in sft.losses(policy, batch, config.device_batch_size):
            (config.policy_loss.ptx.coefficient * part).backward()
            loss += part.detach().cpu()
        return parallel.summed(loss)


def load_ptx(policy: LanguageModel, config: PolicyGradientConfig) -> Ptx | None:
    """Read and tokenize `ptx.data`; None where it is "".

    Raises:
        DataError: No text can be used.
    """
    path = config.policy_loss.ptx.data
    if not path:
        return None
    demonstrations = read_demonstrations(path)
    if not isinstance(demonstrations, list):
        settings = 0, "all", path, range(len(demonstrations))
        row = partial(sft.row_on_access, policy, demonstrations, *settings)
        return Ptx(Made(len(demonstrations), row))
    rows, skipped = sft.tokenize(policy, demonstrations, 0, path)
    if skipped:
        console.print(
            f"{skipped} of {len(rows)} texts of ptx.data skipped: too long or of weight 0"
        )
    pairs = zip(rows, demonstrations, strict=True)
    return Ptx([(row, demonstration.weight) for row, demonstration in pairs if row])
