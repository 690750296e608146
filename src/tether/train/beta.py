"""β, the KL coefficient of an online run: fixed, steered towards a KL, or raised by an alarm."""

from dataclasses import dataclass

from tether.config import OnlineConfig, OnlineDPOConfig, PolicyGradientConfig
from tether.core import kl

FIRST_BETA = 0.05  # what a β of 0 is raised to


@dataclass
class Beta:
    """The KL coefficient: fixed, or steered towards kl.target."""

    value: float
    controller: kl.AdaptiveBeta | None

    def update(self, observed_kl: float, num_sequences: int) -> None:
        """Let the controller move β after an update that was rolled out with the old one."""
        if self.controller:
            self.value = self.controller.update(observed_kl, num_sequences)

    def double(self) -> None:
        """Raise β after an alarm: to twice what it was, from 0 to 0.05."""
        self.value = 2 * self.value or FIRST_BETA
        if self.controller:
            self.controller.beta = self.value


def beta_of(config: OnlineConfig) -> Beta:
    """β as a run starts with it; 0 for a method without a tether."""
    if isinstance(config, OnlineDPOConfig):
        return Beta(config.beta, None)
    if not isinstance(config, PolicyGradientConfig):
        return Beta(0.0, None)
    settings = config.kl
    if not settings.target:
        return Beta(settings.beta, None)
    return Beta(settings.beta, kl.AdaptiveBeta(settings.beta, settings.target, settings.horizon))
