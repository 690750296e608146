"""Win-rates of models by people: ties, fails, texts of both, and whose judgments count."""

import io
import json

import pytest
from rich.console import Console

from tests.feedback.made import judge
from tests.feedback.test_assignment import judge as submit_ranks
from tests.feedback.test_assignment import people
from tether.errors import DataError
from tether.feedback.judgments import Item
from tether.feedback.prepare import ImportConfig, import_feedback
from tether.feedback.store import Store
from tether.feedback.winrate import print_win_rates, project_win_rates, win_rates


def item(key, *sources, prompt=None, gold=None):
    texts = [f"{key} {i}" for i in range(len(sources))]
    return Item(key=key, prompt=prompt or key, completions=texts, sources=list(sources), gold=gold)


def found(items, judgments):
    rates = win_rates({each.key: each for each in items}, judgments)
    return {(each.source, each.other): each for each in rates}


def test_wins_ties_and_fails_by_hand():
    items = [item("a", "sft", "ppo"), item("b", "ppo", "sft"), item("c", "sft", "ppo")]
    rates = found(
        items,
        [
            judge("a", "ann", [2.0, 1.0]),  # ppo
            judge("a", "bob", [1.0, 1.0]),  # tie
            judge("b", "ann", [1.0, None]),  # ppo: the other fails
            judge("c", "ann", [None, None]),  # tie
            judge("c", "eve", [1.0, 2.0]),  # sft
        ],
    )
    ppo = rates["ppo", "sft"]
    assert ppo.rate.mean == pytest.approx((1 + 0.5 + 1 + 0.5 + 0) / 5)
    assert rates["sft", "ppo"].rate.mean == pytest.approx(1 - 3 / 5)
    assert (ppo.ties, ppo.comparisons, ppo.prompts, ppo.labelers) == (0.4, 5, 3, 3)
    # By prompt 1.5 of 2, 1 of 1, 0.5 of 2: drawn three times the last, 1/4; three times b, 1.
    assert 0.25 <= ppo.rate.low < 0.6 < ppo.rate.high <= 1


def test_a_ranking_compares_every_two_and_a_shared_text_counts_for_both():
    rates = found([item("a", "sft, ppo", "base", "ppo")], [judge("a", "ann", [2.0, 3.0, 1.0])])
    assert rates["sft", "base"].rate.mean == 1
    # ppo's two texts: the shared one and its own, both above base.
    assert (rates["ppo", "base"].comparisons, rates["ppo", "base"].rate.mean) == (2, 1)
    # The shared text against ppo's own: sft loses; ppo is not compared with itself.
    assert rates["sft", "ppo"].rate.mean == 0
    assert ("ppo", "ppo") not in rates


def test_control_items_repeats_and_unnamed_texts_are_left_out():
    items = [
        item("a", "sft", "ppo"),
        item("gold", "sft", "ppo", gold=[1.0, 2.0]),
        item("blank", "sft", ""),
    ]
    rates = found(
        items,
        [
            judge("a", "ann", [1.0, 2.0]),
            judge("a", "ann", [2.0, 1.0], repeat=True),
            judge("gold", "ann", [2.0, 1.0]),
            judge("blank", "ann", [2.0, 1.0]),
        ],
    )
    assert set(rates) == {("sft", "ppo"), ("ppo", "sft")}
    assert (rates["sft", "ppo"].rate.mean, rates["sft", "ppo"].comparisons) == (1, 1)


def test_items_of_one_prompt_are_drawn_together():
    pairs = [item(f"{i}", "sft", "ppo", prompt="same") for i in range(4)]
    rates = found(pairs, [judge(f"{i}", "ann", [1.0, 2.0] if i else [2.0, 1.0]) for i in range(4)])
    assert (rates["sft", "ppo"].rate.mean, rates["sft", "ppo"].prompts) == (0.75, 1)
    assert rates["sft", "ppo"].rate.low != rates["sft", "ppo"].rate.low  # one prompt: no interval


def samples(tmp_path):
    rows = [
        {"policy": policy, "prompt": f"p{i}", "completion": f"{policy} says {i}", "category": "x"}
        for policy in ("sft", "ppo")
        for i in range(3)
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_samples_of_an_evaluation_make_a_blind_comparison(tmp_path):
    path = tmp_path / "blind.db"
    config = ImportConfig(path=str(path), data=(samples(tmp_path),), mode="pair", num_labelers=1)
    assert import_feedback(config).items == 3
    store = Store(path)
    assert {tuple(sorted(each.sources)) for each in store.items().values()} == {("ppo", "sft")}
    with pytest.raises(DataError, match="nobody has compared completions of two named models"):
        project_win_rates(store)
    (ann,) = people(store, 1)
    assert submit_ranks(store, ann, (1.0, 2.0), strength=2)
    file = io.StringIO()
    print_win_rates(project_win_rates(store), Console(file=file, width=80))
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert lines[0] == ["preferred", "to", "wins", "ties", "comparisons", "prompts", "labelers"]
    assert [line[:2] for line in lines if line[:1] == ["ppo"]] == [["ppo", "sft"]]
    assert [line[-3:] for line in lines if line[:1] == ["ppo"]] == [["1", "1", "1"]]


def test_thumbs_compare_nothing(tmp_path):
    config = ImportConfig(path=str(tmp_path / "t.db"), data=(samples(tmp_path),), mode="thumbs")
    import_feedback(config)
    with pytest.raises(DataError, match=r"t\.db: thumbs up and down compare nothing; make a"):
        project_win_rates(Store(tmp_path / "t.db"))
