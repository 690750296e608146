"""Methods train on a feedback project as on the records it would be exported to."""

import dataclasses

import pytest

from tests.train import toys
from tether.config import DPOConfig, KTOConfig
from tether.errors import ConfigError
from tether.feedback.export import ExportConfig, export_feedback
from tether.feedback.labels import add_labels, read_label
from tether.feedback.store import Project, Store
from tether.train.kto import train_kto
from tether.train.preference import train_dpo
from tether.train.reward import train_reward

COMPLETIONS = ["it ", "a small cat ", "no "]
RANKS = {"ann": [1, 2, None], "bob": [1, 1, None], "cat": [2, 1, 3]}


@pytest.fixture
def project(tmp_path):
    store = Store.create(tmp_path / "p.db", Project(name="x"))
    rows = [
        {"prompt": f"{word} ", "completions": COMPLETIONS, "ranks": ranks[i:] + ranks[:i]}
        | {"labeler": who}
        for i, word in enumerate(["who", "why", "what"])
        for who, ranks in RANKS.items()
    ]
    add_labels(store, [read_label(row, "row") for row in rows])
    store.close()
    return str(store.path)


def both_ways(tmp_path, project, to, train, config):
    """The metrics of training on the project, and on what it is exported to."""
    out = str(tmp_path / f"{to}.jsonl")
    export_feedback(ExportConfig(path=project, to=to, out=out))
    found = []
    for name, data in (("direct", project), ("exported", out)):
        changed = dataclasses.replace(config, data=data, out=str(tmp_path / name))
        folder = train(changed)
        found.append([(row["step"], row.get("loss")) for row in toys.metrics(folder)])
    return found


@pytest.mark.parametrize(
    ("loss", "to"), [("pairwise", "pairs"), ("listwise", "rankings"), ("binary", "thumbs")]
)
def test_reward_models(tmp_path, project, loss, to):
    config = toys.reward(tmp_path, toys.save(tmp_path), [], loss=loss, batch_size=1)
    direct, exported = both_ways(tmp_path, project, to, train_reward, config)
    assert direct == exported
    assert len(direct) > 1


@pytest.mark.parametrize(
    ("method", "train", "to"),
    [(DPOConfig, train_dpo, "pairs"), (KTOConfig, train_kto, "thumbs")],
    ids=["dpo", "kto"],
)
def test_preference_methods(tmp_path, project, method, train, to):
    config = toys.preference(tmp_path, toys.save(tmp_path), method, [], batch_size=2, max_steps=2)
    direct, exported = both_ways(tmp_path, project, to, train, config)
    assert direct == exported
    assert len(direct) > 1


def test_a_run_is_not_mixed_with_judgments_that_came_later(tmp_path, project):
    config = toys.reward(tmp_path, toys.save(tmp_path), [])
    config = dataclasses.replace(config, data=project)
    train_reward(config)
    train_reward(config)  # finished: skipped
    row = {"prompt": "who ", "chosen": "it ", "rejected": "no ", "labeler": "dan"}
    add_labels(Store(project), [read_label(row, "row")])
    with pytest.raises(ConfigError, match=r"p\.db' has changed since"):
        train_reward(config)
