"""How results are displayed in a notebook or a shell."""

import json

import pytest

import tether
from tests.tiny import save_tiny
from tether.errors import DataError
from tether.result import Result

FACTS = {
    "kind": "dpo",
    "name": "dpo",
    "seconds": 12.34,
    "inputs": {"model": "0123"},
    "pairs": 40,
    "held_out_accuracy": {"mean": 0.625, "low": 0.5, "high": 0.75},
    "held_out_margin": {"mean": 0.1, "low": None, "high": None},
    "stopped": "",
}
METRICS = [
    {"step": 1, "loss": 0.693147, "grad_norm": 1.5},
    {"step": 2, "loss": 0.5, "grad_norm": None},
    {"step": 3, "loss": 0.25, "grad_norm": 1e-5, "held_out_loss": 0.4},
]


@pytest.fixture
def stage(tmp_path):
    def make(name="dpo", metrics=METRICS, **facts):
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({**FACTS, "name": name, **facts}))
        if metrics:
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))
        return folder

    return make


def words(text):
    return [line.split() for line in text.splitlines()]


def test_a_stage_shows_its_facts_and_its_first_and_last_figures(stage):
    folder = stage()
    shown = words(repr(Result(folder)))
    assert shown[0] == ["dpo", "(dpo)", str(folder)]
    assert ["held", "out", "accuracy", "0.625", "[0.5,", "0.75]"] in shown
    assert ["held", "out", "margin", "0.1", "[–,", "–]"] in shown
    assert ["pairs", "40"] in shown
    assert ["metric", "step", "1", "step", "3"] in shown
    assert ["loss", "0.6931", "0.25"] in shown
    assert ["grad", "norm", "1.5", "1e-05"] in shown
    assert ["held", "out", "loss", "–", "0.4"] in shown
    assert not any("inputs" in line for line in shown)


def test_what_it_holds_can_be_computed_with(stage):
    folder = stage()
    (folder / "model").mkdir()
    result = Result(str(folder))
    assert result.facts == FACTS
    assert result.metrics == METRICS
    assert result.model == folder / "model"
    assert result.stages == []
    assert Result(stage("merged", metrics=[])).metrics == []
    assert Result(stage("scores")).model is None


def test_a_notebook_gets_html_in_which_texts_are_texts(stage):
    html = Result(stage(project="<b>[red]x[/red]</b>"))._repr_html_()
    assert "&lt;b&gt;[red]x[/red]&lt;/b&gt;" in html
    assert "<b>" not in html
    assert html.startswith("<pre")
    assert "held out accuracy" in html


def test_a_run_shows_its_finished_stages_in_order(stage, tmp_path):
    stage("sft"), stage("ppo")
    manifest = {"stages": ["ppo", "sft", "evaluation"]}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    result = Result(tmp_path / "run")
    assert [each.path.name for each in result.stages] == ["ppo", "sft"]
    assert (result.facts, result.metrics, result.model) == ({}, [], None)
    shown = repr(result)
    assert shown.index("ppo (dpo)") < shown.index("sft (dpo)")


def test_nothing_to_show_is_told(tmp_path):
    with pytest.raises(DataError, match=r"neither result\.json of a stage nor manifest\.json"):
        Result(tmp_path)


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result\.json: cannot be read"):
        repr(Result(tmp_path))


def test_an_evaluation_shows_its_table(tmp_path):
    (tmp_path / "judge.py").write_text("def words(p, c): return [len(x.split()) for x in c]\n")
    model = str(save_tiny(tmp_path / "model"))
    tether.write_records(
        tmp_path / "p.jsonl", [tether.Prompt(prompt=f"{x} ") for x in ("the", "a")]
    )
    config = tether.EvaluateConfig(
        policies=(
            tether.PolicyConfig(name="one", model=model),
            tether.PolicyConfig(name="two", model=model),
        ),
        scorers=(tether.ScorerConfig(name="words", path=f"{tmp_path}/judge.py:words"),),
        prompts=str(tmp_path / "p.jsonl"),
        sampling=tether.SamplingConfig(max_new_tokens=3),
        out=str(tmp_path / "out"),
    )
    shown = repr(Result(tether.evaluate(config)))
    rows = words(shown)
    assert any(line[:2] == ["policy", "words"] for line in rows)
    assert {"one", "two"} <= {line[0] for line in rows if line}
