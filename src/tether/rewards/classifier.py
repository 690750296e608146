"""A text classifier as reward: what it says of one of its labels, chosen by name.

A classifier of toxicity, sentiment and the like judges a text by itself, so it reads the completion
alone (`reads = "both"`: the prompt with it), tokenized as its own tokenizer does, without an end
token of ours. Nothing is known of how its scores spread on the policy's completions, so they are
not centred; `clip` and `weight` apply to them as they are.
"""

from tether.config import RewardConfig
from tether.data.batches import Row
from tether.errors import ConfigError
from tether.models import encoder
from tether.models.scalar_head import RewardModel, load_classifier
from tether.records import Text
from tether.rewards.reward_model import logits_of_rows
from tether.sections import ComputeConfig


def load_label(config: RewardConfig, compute: ComputeConfig) -> tuple[RewardModel, int]:
    """The classifier, and the place of the label that is wanted.

    Raises:
        ModelError: No sequence classifier there.
        ConfigError: It has no label of that name.
    """
    model = load_classifier(config.path, compute)
    names = {int(i): str(name) for i, name in (model.model.config.id2label or {}).items()}
    found = [i for i, name in names.items() if name == config.label]
    if len(found) != 1:
        raise ConfigError(
            f"reward.label={config.label!r} is not a label of {config.path!r}; "
            f"it has {[names[i] for i in sorted(names)]}"
        )
    return model, found[0]


def score_label(
    model: RewardModel, label: int, config: RewardConfig, prompts: list[Text], texts: list[str]
) -> list[float]:
    """The label's logit, or its probability: softmax over the labels, or σ where they are no
    alternatives (problem_type "multi_label_classification", or a single label).

    A score depends neither on padding nor on which texts are scored together.
    """
    firsts = prompts if config.reads == "both" else [""] * len(texts)
    rows = [classifier_row(model, *pair) for pair in zip(firsts, texts, strict=True)]
    logits = logits_of_rows(model, rows)
    if config.output == "probability":
        several = model.model.config.problem_type == "multi_label_classification"
        one_each = several or logits.shape[1] == 1
        logits = logits.sigmoid() if one_each else logits.softmax(dim=1)
    return logits[:, label].tolist()


def classifier_row(model: RewardModel, prompt: Text, completion: Text) -> Row:
    """A text as the classifier's tokenizer writes it; an empty one still needs a token."""
    row = encoder.encode(model.tokenizer, prompt, completion, model.longest)
    if row.ids:
        return row
    special = (model.tokenizer.eos_token_id, model.tokenizer.pad_token_id)
    return Row([next((i for i in special if isinstance(i, int)), 0)], 1)
