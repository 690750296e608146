import base64
import dataclasses
import gzip
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from tests.evaluation import made_up
from tests.evaluation.made_run import evaluation, full_run, many_samples, stage
from tests.evaluation.test_overoptimization import made
from tether.errors import DataError
from tether.evaluation.overoptimization import write_frontier
from tether.evaluation.report import write_report

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \"'&"


class Page(HTMLParser):
    """The tags of a page with their attributes, its visible text, and its scripts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.words = [], [], []
        self._open = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts.append((self.tags[-1][1], data))
        elif self._open and self._open[-1] != "style":
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run_dir(tmp_path):
    """A run of four stages whose folder names do not sort in the order of the run."""
    path = tmp_path / "my run"
    stage(path, "sft", "sft", [{"step": i, "loss": 4.0 - i} for i in range(3)], seconds=71.0)
    held = {"mean": 0.806, "low": 0.789, "high": 0.822}
    accuracy = [
        {"step": 0, "loss": 0.75, "accuracy": 0.5, "held_out_accuracy": 0.625},
        {"step": 1, "loss": 0.5, "accuracy": 0.75, "held_out_accuracy": 0.8125},
    ]
    stage(
        path,
        "a-reward",
        "reward",
        accuracy,
        config="learning_rate = 6e-4  # <b>peak</b>\n",
        seconds=43.5,
        held_out_accuracy=held,
        held_out_pairs=1534,
        length_baseline_accuracy=0.552,
    )
    steps = [{"step": i, "score": 0.25 * i, "kl": 0.5 * i, "length": 20.0} for i in range(4)]
    stage(path, "ppo", "ppo", steps, seconds=3725.0)
    evaluation(path, made_up.samples(), apart=["new topic"])
    manifest = {
        "stages": ["sft", "a-reward", "ppo", "evaluation"],
        "seed": 17,
        "versions": {"torch": "2.13.0"},
        "inputs": {"prompts.jsonl": "9b1f6a3c"},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "recipe.toml").write_text("seed = 17\n")
    return path


def report(path):
    written = write_report(path)
    assert written == path / "report.html"
    return written.read_text(encoding="utf-8")


def test_the_page_opens_with_the_verdict(run_dir):
    page = Page(report(run_dir))
    assert ("h1", {}) in page.tags
    # ppo - sft is 0.5 [-0.5, 1.5]; wins .5625 [.25, .875]: see test_summary.
    assert (
        "ppo is not clearly different from sft: +0.50 on the gold score (95% interval -0.50 to "
        "+1.50, which includes 0), and it wins 56% of the comparisons on the same prompt (95% "
        "interval 25 to 88%), over 2 prompts. It is 2.0 nats per answer away from the reference."
    ) in page.text
    assert {"class": "verdict unclear"} in page.all("p")


def test_the_page_holds_the_figures(run_dir):
    text = Page(report(run_dir)).text
    assert "ppo 1.75 [1.50, 2.00] 3.50 [3.00, 4.00] 2.00 [1.50, 2.50] 56% [25, 88]" in text
    assert "new topic (reported apart, 1 prompt)" in text
    assert "ppo against sft: gold +0.50 [-0.50, +1.50] (includes 0: no clear difference)" in text
    assert (
        "On 1,534 held-out pairs it prefers the answer that the labels prefer in 81% [79, 82] of "
        "cases; always preferring the longer answer would be right in 55%."
    ) in text
    assert "KL to the reference (nats per answer) over steps 0 to 3: from 0 to 1.5." in text
    assert "held out from 0.625 to 0.812." in text
    assert "a base model has only learned to" in text


def test_the_page_says_what_was_run(run_dir):
    html = report(run_dir)
    page = Page(html)
    # 71 + 43.5 + 3725 + 9.75 = 3849.25 s = 1 h 4 min 9.25 s
    wanted = (
        "sft sft 1 min 11 s a-reward reward 43.5 s ppo ppo 1 h 02 min evaluation evaluate 9.8 s "
        "total 1 h 04 min"
    )
    assert wanted in page.text
    assert "learning_rate = 6e-4 # <b>peak</b>" in page.text
    assert "&lt;b&gt;peak" in html
    for fact in ("seed 17", "versions.torch 2.13.0", "inputs.prompts.jsonl 9b1f6a3c"):
        assert fact in page.text


def test_the_same_prompts_stand_side_by_side(run_dir):
    page = Page(report(run_dir))
    assert len(page.all("article")) == 3
    for category in made_up.CATEGORIES:
        assert f" {category} prompt" in page.text
    assert "prompt 1 base base answers 1 0 gold 0.00, proxy 0.00" in page.text
    assert "sft sft answers 1 0 gold 2.00, proxy 4.00 ppo ppo answers 1 0" in page.text
    assert "answers 1 1" not in page.text  # the first sample only


def test_many_prompts_are_shown_spread_over_categories(tmp_path):
    samples = [
        made_up.sample(
            policy=policy,
            prompt_index=i,
            category="rare" if i % 100 == 7 else "common",
            prompt=f"prompt {i}",
            completion="x" * 5000,
        )
        for policy in ("sft", "ppo")
        for i in range(300)
    ]
    evaluation(tmp_path, samples, scorers=["gold"])
    page = Page(report(tmp_path))
    shown = re.findall(r"(rare|common) prompt \d+", page.text)
    # 3 rare ones (7, 107, 207), and every 13th of 297 common ones: ceil(297 / 24) = 13.
    assert shown.count("rare") == 3
    assert shown.count("common") == 23
    assert shown[:4] == ["common", "rare", "common", "rare"]
    assert "xxx … (1,000 more characters)" in page.text


def test_texts_of_models_are_shown_not_interpreted(tmp_path):
    samples = [
        dataclasses.replace(
            each,
            policy=f"{each.policy}{ATTACK}",
            category=ATTACK,
            prompt=[{"role": ATTACK, "content": ATTACK}],
            completion=ATTACK,
        )
        for each in made_up.samples()
    ]
    evaluation(tmp_path, samples, baseline=f"sft{ATTACK}", pairs=[])
    stage(tmp_path, "sft", "sft", [{"step": i, "loss": 1.0} for i in range(3)], note=ATTACK)
    (tmp_path / "manifest.json").write_text(json.dumps({ATTACK: ATTACK, "stages": []}))
    html = report(tmp_path)
    page = Page(html)
    assert page.all("img") == []
    assert not any("onerror" in attributes for _, attributes in page.tags)
    for kind, text in page.scripts:
        is_json = kind.get("type") == "application/json"
        assert json.loads(text) if is_json else "alert(1)" not in text
    assert page.text.count("<img src=x onerror=alert(1)>") > 20


def test_only_the_two_scripts_of_the_page_may_run(run_dir):
    page = Page(report(run_dir))
    (policy,) = [each["content"] for each in page.all("meta") if "http-equiv" in each]
    running = [text for kind, text in page.scripts if "type" not in kind]
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for text in running
    ]
    assert len(running) == 2
    assert "default-src 'none'" in policy
    assert f"script-src {' '.join(hashes)};" in policy


def test_the_page_is_one_file_that_loads_nothing(run_dir):
    html = report(run_dir)
    page = Page(html)
    assert len(html.encode()) < 8_000_000
    assert not any("src" in attributes for _, attributes in page.tags)
    links = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
    assert links == ["#results", "#rewards", "#training", "#answers", "#run"]
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {link[1:] for link in links} <= targets
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_plots_carry_a_description_and_their_numbers(run_dir):
    page = Page(report(run_dir))
    plots = [each for each in page.all("div") if each.get("class") == "plot"]
    # gold by category; loss of sft; loss and accuracy of the reward; score, KL and length of ppo
    assert len(plots) == len(page.all("figure")) == 7
    assert all(each["role"] == "img" and len(each["aria-label"]) > 20 for each in plots)
    specs = [json.loads(text) for kind, text in page.scripts if "json" in kind.get("type", "")]
    assert len(specs) == 7
    assert {"y": [0.0, 0.5, 1.0, 1.5]}.items() <= specs[5]["data"][0].items()


def test_missing_pieces_are_left_out(tmp_path):
    stage(tmp_path, "generate", "generate")
    (tmp_path / "unfinished").mkdir()
    page = Page(report(tmp_path))
    assert page.all("figure") == []
    assert [each["href"] for each in page.all("a")] == ["#run"]
    assert "unfinished" not in page.text


def test_a_single_stage_has_a_report_too(tmp_path):
    rows = [{"step": i, "score": 1.0 * i, "kl": 2.0 * i} for i in range(3)]
    folder = stage(tmp_path, "tuned", "ppo", rows, held_out_accuracy=None)
    page = Page(report(folder))
    assert "Score of the reward (normalized) over steps 0 to 2: from 0 to 2." in page.text


def test_several_evaluations_are_told_apart(run_dir):
    evaluation(run_dir, made_up.samples(), name="again")
    text = Page(report(run_dir)).text
    assert "evaluation: ppo is not clearly different" in text
    assert "Results: again" in text


def test_reports_are_equal_for_equal_runs_and_overwritten(run_dir):
    first = report(run_dir)
    assert report(run_dir) == first
    assert [path.name for path in run_dir.glob("report*")] == ["report.html"]


def test_an_empty_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="no stage has finished here"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_file_is_named_and_the_last_report_stays(run_dir, text):
    before = report(run_dir)
    (run_dir / "ppo" / "result.json").write_text(text)
    with pytest.raises(DataError, match=r"result\.json: .*run its stage again"):
        write_report(run_dir)
    assert (run_dir / "report.html").read_text(encoding="utf-8") == before


# --- monitor, blocks, labels, samples -------------------------------------------------------------


@pytest.fixture
def full(tmp_path):
    return full_run(tmp_path / "rice", many_samples(20))


def test_the_verdict_tells_of_the_frontier_and_of_alarms(full):
    write_frontier(full / "evaluation", made())  # ppo reached 71% [65, 77]
    text = Page(report(full)).text
    # mean of 2 (i - 5) / 20 over i = 0 … 19 = 2 (9.5 - 5) / 20 = 0.45
    assert "ppo is better than sft: +0.45 on the gold score" in text
    assert (
        "It is 2.0 nats per answer away from the reference. It reaches 71% of the best reachable "
        "gain of the proxy at its KL (95% interval 65 to 77%). One alarm was raised while it "
        "trained, at step 20. It was rolled back to step 12."
    ) in text
    assert "What was reachable, and what was reached" in text


def test_alarms_stand_with_their_texts(full):
    text = Page(report(full)).text
    assert "Step 20: held-out score did not keep up with the proxy · rolled back" in text
    assert "the audit fell by 0.12 (one-sided p = 0.004)." in text
    assert "answer Of course! I am happy to help." in text
    assert "What training climbs, and what an audit of it says" in text


def test_blocks_are_tables_with_differences(full):
    text = Page(report(full)).text
    assert "Toxicity How likely a classifier" in text
    assert "share above 0.5 (low is better)" in text
    assert "differences to sft on the same prompts" in text
    assert "The classifier errs on quotations." in text
    assert "policy base answer the worst of base" in text
    assert "share ordered as labeled over foretold probability" in text  # the curve's table


def test_agreement_of_the_labelers_is_told(full):
    text = Page(report(full)).text
    # 4 prompts, 3 labelers each; ann and cem agree, bob swaps two: no prompt is unanimous
    assert "12 rankings on 4 items, 4 of them judged by several labelers." in text
    assert "unanimous 0%" in text
    assert "Krippendorff's α on ranks" in text


def test_every_table_has_a_caption_and_headings_do_not_skip(full):
    page = Page(report(full))
    assert len(page.all("caption")) == len(page.all("table"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


def test_all_samples_are_in_the_page(full):
    page = Page(report(full))
    (packed,) = [text for kind, text in page.scripts if kind.get("type") == "application/gzip"]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert len(data["samples"]) == 3 * 20 * 2
    assert data["samples"][0] == [0, 0, "answer base 0 0", 1, 0.25, -0.25]
    assert data["prompts"][19] == ["baking", [["", "question number 19"]]]
    assert (data["policies"][data["baseline"]], data["policies"][data["tuned"]]) == ("sft", "ppo")


def test_a_page_elsewhere_leaves_the_run_alone(full, tmp_path):
    before = sorted(full.rglob("*"))
    page = write_report(full, tmp_path / "elsewhere.html")
    assert page.is_file()
    assert sorted(full.rglob("*")) == before
