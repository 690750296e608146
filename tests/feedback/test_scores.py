import json
import math

import pytest

from tether.errors import DataError
from tether.feedback.scores import import_scores

from .test_assignment import TEXTS, make_store


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def uncertainties(store):
    rows = store.read().execute("SELECT prompt, uncertainty FROM items ORDER BY id")
    return {json.loads(row["prompt"]): row["uncertainty"] for row in rows}


def test_an_item_is_as_uncertain_as_its_scores_are_close(tmp_path):
    store = make_store(tmp_path, num_items=3, mode="pair")
    rows = [
        {"prompt": "p0", "completions": TEXTS[1::-1], "scores": [math.log(3), 0.0]},
        {"prompt": "p1", "completions": TEXTS[:2], "scores": [0.5, 0.5]},
        {"prompt": "p2", "completions": TEXTS[:1], "scores": [0.5]},
    ]
    assert import_scores(store, [write(tmp_path / "a.jsonl", rows)]) == (2, 1)
    # sigmoid(log 3) = 3/4 and 4 · 3/4 · 1/4 = 3/4; equal scores: 4 · 1/2 · 1/2 = 1
    assert uncertainties(store) == pytest.approx({"p0": 0.75, "p1": 1, "p2": 1})


def test_scorers_that_differ_are_unsure_together(tmp_path):
    store = make_store(tmp_path, num_items=1, mode="pair")
    files = [
        write(
            tmp_path / f"{i}.jsonl", [{"prompt": "p0", "completions": TEXTS[:2], "scores": scores}]
        )
        for i, scores in enumerate([[math.log(3), 0.0], [0.0, math.log(3)]])
    ]
    import_scores(store, files)
    assert uncertainties(store) == pytest.approx({"p0": 1})  # mean of 3/4 and 1/4 is 1/2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completions": ["a"]}, "scores=None must hold a number for each"),
        ({"prompt": "p", "completions": ["a"], "scores": [1, 2]}, r"scores=\[1, 2\] must hold"),
        ({"prompt": "p", "completions": ["a"], "scores": ["x"]}, r"scores=\[.x.\] must hold"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        import_scores(make_store(tmp_path), [write(tmp_path / "a.jsonl", [row])])
