import base64
import dataclasses
import gzip
import json
import random

from tests.evaluation import made_up
from tests.evaluation.made_run import many_samples
from tether.evaluation.report_samples import page_samples, shortened
from tether.evaluation.summary import summarize

ROOM = 3_000_000


def shown(samples, most_bytes=ROOM):
    summary = summarize(samples, baseline="sft", scorers=["gold", "proxy"])
    return page_samples(samples, summary, "ppo", most_bytes)


def unpacked(found):
    return json.loads(gzip.decompress(base64.b64decode(found.data)))


def test_samples_refer_to_names_that_are_written_once():
    data = unpacked(shown(made_up.samples()))
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
    asked = [prompt[1][0][1] for prompt in unpacked(found)["prompts"]]
    assert asked[:3] == ["question number 0", "question number 1", "question number 3"]
    assert len(set(asked)) == 1666


def noise(length, seed):
    """A text that cannot be packed well."""
    return "".join(random.Random(seed).choices("abcdefghijklmnop日本<&", k=length))


def noisy(num_prompts, length):
    samples = many_samples(num_prompts, 1)
    return [
        dataclasses.replace(each, completion=noise(length, i)) for i, each in enumerate(samples)
    ]


def test_long_texts_are_cut_until_they_fit():
    samples = noisy(30, 9000)
    found = shown(samples)
    assert (found.shown, found.cut, found.shortened) == (90, 8000, True)
    small = shown(samples, most_bytes=120_000)
    assert small.shown == 90
    assert small.cut < 4000
    assert len(small.data) <= 120_000
    assert unpacked(small)["samples"][7][2] == shortened(samples[7 // 3 + 30].completion, small.cut)
    assert not shown(made_up.samples()).shortened


def test_where_cut_texts_do_not_fit_there_are_fewer_prompts():
    found = shown(noisy(64, 500), most_bytes=20_000)
    assert found.cut == 250
    assert 0 < found.shown < found.total == 192
    assert len(found.data) <= 20_000


def test_a_cut_text_says_what_is_missing():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdef", 4) == "abcd … (2 more characters)"
