import json

import pytest

from tests.evaluation import made_up
from tests.evaluation.made_run import many_samples
from tether.evaluation.report_samples import page_samples, shortened
from tether.evaluation.summary import summarize

ROOM = 3_000_000


def shown(samples, most_bytes=ROOM):
    summary = summarize(samples, baseline="sft", scorers=["gold", "proxy"])
    return page_samples(samples, summary, "ppo", most_bytes)


def test_samples_refer_to_names_that_are_written_once():
    data = shown(made_up.samples()).data
    assert data["policies"] == ["base", "sft", "ppo"]
    assert (data["baseline"], data["tuned"]) == (1, 2)
    assert data["prompts"][2] == ["new topic", [["", "prompt 2"]]]
    # prompt 0: base, sft and ppo, two samples each; ppo's gold scores are 1 and 3, proxy twice
    assert data["samples"][4:6] == [
        [0, 2, "ppo answers 0 0", 1, 1.0, 2.0],
        [0, 2, "ppo answers 0 1", 1, 3.0, 6.0],
    ]


def test_more_than_ten_thousand_are_spread_over_the_prompts():
    found = shown(many_samples(2500))  # 15,000 samples, 6 a prompt: 1,666 prompts hold 9,996
    assert (found.total, found.shown) == (15_000, 9_996)
    asked = [prompt[1][0][1] for prompt in found.data["prompts"]]
    assert asked[:3] == ["question number 0", "question number 1", "question number 3"]
    assert len(set(asked)) == 1666


@pytest.mark.parametrize("text", ["word " * 2000, "<&'" * 3000, "日本語" * 3000])
def test_long_texts_are_cut_until_they_fit(text):
    found = shown(many_samples(30, completion=text))
    assert found.shown == found.total == 180
    assert found.shortened
    small = shown(many_samples(30, completion=text), most_bytes=200_000)
    assert small.cut < found.cut
    size = len(json.dumps(small.data, ensure_ascii=False).encode())
    assert size + 5 * sum(json.dumps(small.data).count(sign) for sign in "<>&'") <= 200_000


def test_where_cut_texts_do_not_fit_there_are_fewer_prompts():
    found = shown(many_samples(64, completion="word " * 100), most_bytes=20_000)
    assert found.cut == 250
    assert 0 < found.shown < found.total == 384


def test_a_cut_text_says_what_is_missing():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdef", 4) == "abcd … (2 more characters)"
