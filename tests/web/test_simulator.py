"""What the server gives to the simulator's page, and what it refuses."""

import gzip
import json
import math

import numpy as np
import pytest

from tests.web.runs import client
from tests.web.simulated import EVIL, interval, make_rows, make_run
from tether.core.tilt import expected, weights
from tether.web.simulator import SHIPPED, pack, shipped


def asked(folder, pool):
    with client(folder) as browser:
        return browser.get("/api/pool", params={"pool": pool})


# --- pools ----------------------------------------------------------------------------------------


def test_a_pool_of_a_run(tmp_path):
    make_run(tmp_path)
    found = asked(tmp_path, "demo/simulator").json()
    row = make_rows()[1]
    assert (found["proxy"], found["gold"], found["more"]) == ("proxy", "gold", False)
    assert found["prompts"][1] == {
        "prompt": row["prompt"],
        "category": "known",
        "completions": row["completions"],
        "tokens": [len(ids) for ids in row["token_ids"]],
        "proxy": row["scores"]["proxy"],
        "gold": row["scores"]["gold"],
        "flattery": row["scores"]["flattery"],
    }


def test_measured_models_are_gains_on_the_reference(tmp_path):
    make_run(tmp_path)
    points = asked(tmp_path, "demo/simulator").json()["points"]
    # sft is at 0.25 and -0.5, so 1.0 is +0.75 and 0.75 is +1.25; best of n has no KL, no point
    sft = {"policy": "sft", "step": None, "kl": 0.0, "proxy": 0.0, "gold": 0.0}
    end = {"policy": EVIL, "step": None, "kl": 3.5, "proxy": 1.25, "gold": 0.75}
    assert points == [sft, end, {**end, "step": 6}]


def test_a_frontier_is_preferred(tmp_path):
    make_run(tmp_path)
    gains = {"proxy": interval(0.5), "gold": interval(0.25)}
    table = {"measured": [{"policy": "ppo", "step": 3, "kl": interval(2.0), "gains": gains}]}
    (tmp_path / "demo" / "evaluation" / "frontier.json").write_text(json.dumps(table))
    points = asked(tmp_path, "demo/simulator").json()["points"]
    assert points == [{"policy": "ppo", "step": 3, "kl": 2.0, "proxy": 0.5, "gold": 0.25}]


@pytest.mark.parametrize("text", ["", "[1]", '{"rows": 3}', '{"rows": [{"category": "all"}]}'])
def test_a_broken_evaluation_gives_no_points(tmp_path, text):
    make_run(tmp_path)
    (tmp_path / "demo" / "evaluation" / "summary.json").write_text(text)
    assert asked(tmp_path, "demo/simulator").json()["points"] == []


def test_one_scorer_is_proxy_and_gold(tmp_path):
    [row] = make_rows(num=4, prompts=1)
    make_run(tmp_path, [{**row, "scores": {"helpful": [1.0, 2.0, 3.0, 4.0]}}])
    found = asked(tmp_path, "demo/simulator").json()
    assert (found["proxy"], found["gold"]) == ("helpful", "helpful")
    assert found["prompts"][0]["flattery"] is None


def test_long_pools_are_cut_and_say_so(tmp_path):
    make_run(tmp_path, make_rows(num=4, prompts=33))
    found = asked(tmp_path, "demo/simulator").json()
    assert found["more"]
    assert len(found["prompts"]) == 32


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nowhere", "../outside", "/etc", "demo/evaluation", "demo/../..", "a\0b", "demo/link"]
)
def test_only_pools_below_the_runs(tmp_path, name):
    runs = tmp_path / "runs"
    make_run(runs)
    make_run(tmp_path / "outside")
    (runs / "demo" / "link").symlink_to(tmp_path / "outside" / "demo" / "simulator")
    with client(runs) as browser:
        for address in ("/api/pool", "/simulator"):
            assert browser.get(address, params={"pool": name}).status_code == 404


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"finished": [True]}, "lengths"),
        ({"scores": {"gold": [1.0] * 4, "proxy": [1.0, 2.0, math.nan, 3.0]}}, "finite"),
        ({"scores": {"gold": [1.0] * 4, "proxy": ["1"] * 4}}, "finite"),
        ({"scores": {}}, "no scores"),
        ({"extra": 1}, "extra"),
    ],
)
def test_broken_pools_are_told(tmp_path, change, word):
    [row] = make_rows(num=4, prompts=1)
    make_run(tmp_path, [row | change])
    answer = asked(tmp_path, "demo/simulator")
    assert answer.status_code == 400
    assert word in answer.json()["error"]


def test_others_need_the_link(tmp_path):
    with client(tmp_path, token="t") as browser:
        assert browser.get("/simulator").status_code == 403
        assert browser.get("/api/pool").status_code == 403


def test_the_page_lists_pools(tmp_path):
    make_run(tmp_path)
    with client(tmp_path) as browser:
        text = browser.get("/simulator?pool=demo/simulator").text
    assert '<option value="demo/simulator" selected>' in text


# --- the pool that comes along --------------------------------------------------------------------


def test_the_sandbox_comes_along(tmp_path):
    found = asked(tmp_path, "").json()
    assert found == json.loads(shipped())
    assert len(found["prompts"]) == 16
    assert all(len(row["completions"]) == 256 for row in found["prompts"])
    assert {"sft", "ppo", "dpo"} <= {point["policy"] for point in found["points"]}


def test_the_sandbox_shows_the_lesson():
    """Near the reference gold rises with the proxy; a bias for length makes it fall."""
    rows = json.loads(shipped())["prompts"]
    proxy, gold, tokens = (
        np.array([row[k] for row in rows], float) for k in ("proxy", "gold", "tokens")
    )
    near = expected(weights(proxy, 0.5), gold) - gold.mean(axis=1)
    biased = proxy + 0.1 * (tokens - tokens.mean(axis=1, keepdims=True))
    far = expected(weights(biased, 0.5), gold) - gold.mean(axis=1)
    assert near.min() > 0.2
    assert far.mean() < -0.3


def test_pack(tmp_path):
    run = make_run(tmp_path)
    pack(str(run), out=str(tmp_path / SHIPPED), num_prompts=1, policies=("sft",))
    found = json.loads(gzip.decompress((tmp_path / SHIPPED).read_bytes()))
    whole = asked(tmp_path, "demo/simulator").json()
    assert found["prompts"] == whole["prompts"][:1]
    assert [point["policy"] for point in found["points"]] == ["sft"]
