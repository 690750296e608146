import dataclasses
import json

import pytest

from tether.config import USUAL_LABELERS, Labeler, SimulateConfig
from tether.errors import CheckError, ConfigError, DataError
from tether.feedback.label import label
from tether.records import Ranking, from_dict, read_jsonl

# The known score is the number a completion spells: far apart, so honest labelers agree.
FUNCTIONS = """
def number(prompts, completions):
    assert len(prompts) == len(completions)
    return [float(text) for text in completions]

def nan(prompts, completions):
    return [float("nan")] + [0.0] * (len(completions) - 1)

def too_few(prompts, completions):
    return [0.0] * (len(completions) - 1)

def too_many(prompts, completions):
    return [0.0] * (len(completions) + 1)
"""
ROWS = [
    {"prompt": "p", "completions": ["20", "-10", "10"], "finished": [True] * 3, "category": "c"},
    {"prompt": "q", "completions": ["-20", "30"], "finished": [True, False]},
]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "gold.py").write_text(FUNCTIONS)
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def make(function="number", **settings):
        return SimulateConfig(
            data=str(tmp_path / "data.jsonl"),
            scorer=f"{tmp_path}/gold.py:{function}",
            out=str(tmp_path / "out"),
            **settings,
        )

    return make


def rankings(file):
    return [from_dict(Ranking, row, str(line)) for line, row in read_jsonl(file)]


def test_five_labelers_and_their_consensus(config):
    out = label(config())
    judged = rankings(out / "judgments.jsonl")
    names = [labeler.name for labeler in USUAL_LABELERS]
    assert [r.labeler for r in judged] == names * 2
    assert [r.prompt for r in judged] == ["p"] * 5 + ["q"] * 5
    for honest in (judged[0], judged[1], judged[2]):
        assert honest.ranks == [1, 3, 2]
    assert judged[5].ranks == [2, 1]
    agreed = rankings(out / "rankings.jsonl")
    assert [(r.prompt, r.completions, r.category) for r in agreed] == [
        ("p", ["20", "-10", "10"], "c"),
        ("q", ["-20", "30"], ""),
    ]
    # Four see the order as it is; the fifth, who clicks at random, saw (2, 3, 1) and (1, 2). Mean
    # ranks: (4·1 + 2) / 5 = 1.2, (4·3 + 3) / 5 = 3, (4·2 + 1) / 5 = 1.8; (4·2 + 1) / 5, ...
    assert judged[4].ranks == [2, 3, 1]
    assert judged[9].ranks == [1, 2]
    assert [r.ranks for r in agreed] == [[1.2, 3.0, 1.8], [1.8, 1.2]]


def test_the_result_tells_how_far_labelers_agree(config):
    result = json.loads((label(config()) / "result.json").read_text())
    assert (result["judgments"], result["items"]) == (10, 2)
    assert set(result["agreement"]) == {labeler.name for labeler in USUAL_LABELERS}


def test_it_is_a_function_of_the_seed(config, tmp_path):
    def judged(seed, folder):
        made = dataclasses.replace(config(scale=0.01), seed=seed, out=str(tmp_path / folder))
        return (label(made) / "judgments.jsonl").read_text()

    assert judged(1, "a") == judged(1, "b") != judged(2, "c")


def test_the_scale_sets_the_score_against_the_noise(config, tmp_path):
    # At 0.001 the scores differ by hundredths, far below every labeler's noise of 0.15 and more.
    faint = []
    for seed in range(8):
        made = config(scale=1e-3, seed=seed)
        out = label(dataclasses.replace(made, out=str(tmp_path / f"out{seed}")))
        faint += [r.ranks for r in rankings(out / "judgments.jsonl") if r.labeler == "hasty"]
    assert len({str(ranks) for ranks in faint if len(ranks) == 3}) > 2


def test_a_finished_stage_is_skipped(config):
    out = label(config())
    (out / "rankings.jsonl").unlink()
    assert label(config()) == out
    assert not (out / "rankings.jsonl").exists()
    with pytest.raises(ConfigError, match=r"scale=2.0 but"):
        label(config(scale=2.0))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nan", "returned 5 scores for 5 completions, 4 of them finite"),
        ("too_few", "returned 4 scores for 5 completions"),
        ("too_many", "returned 6 scores for 5 completions"),
    ],
)
def test_a_scorer_must_give_one_number_for_each(config, tmp_path, function, message):
    with pytest.raises(CheckError, match=message) as error:
        label(config(function))
    assert f"gold.py:{function}'" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.jsonl: holds no completions; write some with `tether generate`"),
        (json.dumps(ROWS[0]) + "\nnonsense\n", "data.jsonl:2: not JSON"),
        ('{"prompt": "p", "completions": ["1"]}', "data.jsonl:1: .*finished"),
    ],
)
def test_bad_data_writes_nothing(config, tmp_path, text, message):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        label(config())
    assert not (tmp_path / "out").exists()


def test_a_scorer_that_is_not_there(config):
    with pytest.raises(ConfigError, match="has no function 'gold'"):
        label(config("gold"))


def test_a_labeler_can_have_a_score_of_its_own(config, tmp_path):
    # The completions are numbers: "20", "-10", "10" and "-20", "30". One likes the largest, one the
    # longest text; ties are equal ranks.
    (tmp_path / "own.py").write_text(
        "def longest(prompts, completions):\n    return [len(text) for text in completions]\n"
    )
    own = Labeler(name="own", scorer=f"{tmp_path}/own.py:longest")
    out = label(config(labelers=(Labeler(name="usual"), own)))
    ranks = {(r.labeler, r.prompt): r.ranks for r in rankings(out / "judgments.jsonl")}
    assert ranks["usual", "p"] == [1, 3, 2]
    assert ranks["own", "p"] == [2, 1, 2]
    assert ranks["own", "q"] == [1, 2]
    alone = dataclasses.replace(config(labelers=(own,)), scorer="", out=str(tmp_path / "alone"))
    assert [r.ranks for r in rankings(label(alone) / "judgments.jsonl")] == [[2, 1, 2], [1, 2]]


@pytest.mark.parametrize("labelers", [(), (Labeler(name="usual"),)])
def test_somebody_must_know_a_score(config, labelers):
    with pytest.raises(ConfigError, match="scorer='' must name the known score"):
        dataclasses.replace(config(labelers=labelers), scorer="")
