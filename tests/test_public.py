"""The public surface: what `import tether` offers, its signatures, and `python -m tether`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tether
from tests import public_names
from tests.tiny import save_tiny
from tether.records import read_jsonl

PINNED = Path(__file__).parent / "public_names.txt"


def test_names_and_signatures_are_those_that_were_promised():
    assert public_names.listing() == PINNED.read_text(encoding="utf-8"), (
        "the public surface has changed; if that is meant, write it down with `make names` and "
        "say so in CHANGELOG.md"
    )


def test_every_public_name_has_a_docstring():
    for name in tether.__all__:
        assert getattr(tether, name).__doc__, name


def test_a_star_imports_the_public_names_alone():
    namespace = {}
    exec("from tether import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(tether.__all__)


@pytest.mark.parametrize("arguments", [["-m", "tether"], ["-m", "tether.cli"]])
def test_python_m_tether_is_the_command_line(arguments):
    command = [sys.executable, *arguments, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"tether {tether.__version__}\n")


def test_a_mistake_there_ends_as_on_the_command_line():
    command = [sys.executable, "-m", "tether", "tune"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "tether: 'tune' is not a command; `tether --help` lists them\n"


# --- models and records in memory -----------------------------------------------------------------


def test_complete_samples_what_the_stage_writes(tmp_path):
    model = str(save_tiny(tmp_path / "model"))
    prompts = ["the cat ", "who likes the big red dog "]
    sampling = tether.SamplingConfig(max_new_tokens=5)
    records = [tether.Prompt(prompt=prompt) for prompt in prompts]
    tether.write_records(tmp_path / "prompts.jsonl", records)
    config = tether.GenerateConfig(
        model=model,
        prompts=str(tmp_path / "prompts.jsonl"),
        out=str(tmp_path / "out"),
        num=3,
        seed=7,
        sampling=sampling,
    )
    written = tether.read_completions(tether.generate(config) / "completions.jsonl")
    found = tether.complete(tether.load(model), prompts, num=3, sampling=sampling, seed=7)
    assert found == written
    assert [len(each.completions) for each in found] == [3, 3]


def test_records_that_were_written_are_read_again(tmp_path):
    rankings = [
        tether.Ranking(
            prompt="p", completions=["a", "b", "c"], ranks=[2.0, 1.0, None], labeler="l"
        ),
        tether.Ranking(prompt="q", completions=["d", "e"], ranks=[1.0, 1.0]),
    ]
    tether.write_records(tmp_path / "rankings.jsonl.gz", rankings)
    assert tether.read_comparisons(tmp_path / "rankings.jsonl.gz", whole=True) == rankings
    rows = [row for _, row in read_jsonl(tmp_path / "rankings.jsonl.gz")]
    assert rows[1] == {"prompt": "q", "completions": ["d", "e"], "ranks": [1.0, 1.0]}


def test_the_docs_list_every_public_name():
    text = (Path(__file__).parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
    listed = re.findall(r"`(\w+)`", text.split("## All names")[1].split("pinned by a test")[0])
    assert sorted(listed) == sorted(tether.__all__)
