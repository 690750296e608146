import subprocess
import sys

import pytest

from tether.errors import ConfigError, TetherError
from tether.functions import load_function

SCORER = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Weights:
    length: float = 2.0

def score(prompts, completions):
    return [Weights().length * len(text) for text in completions]

constant = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "gold.py").write_text(SCORER, encoding="utf-8")
    return tmp_path / "gold.py"


def test_a_function_of_a_file(file):
    # A dataclass there finds its annotations, though they are strings.
    assert load_function(f"{file}:score")(["p"], ["abc"]) == [6.0]


def test_a_function_of_a_module():
    assert load_function("json.decoder:scanstring")('abc"', 0) == ("abc", 4)


def test_files_of_the_same_name_do_not_mix(file, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "gold.py").write_text("def score(p, c): return [0.5]")
    first, second = load_function(f"{file}:score"), load_function(f"{tmp_path}/other/gold.py:score")
    assert (first([""], ["ab"]), second([""], ["ab"])) == ([4.0], [0.5])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.py:score", "'missing.py' does not exist; use path/to/file.py:function"),
        ("no_such_package.part:score", "no module 'no_such_package.part'; use path/to/file.py:"),
        ("json.no_such_part:score", "no module 'json.no_such_part'"),
        ("json:no_such", "json has no function 'no_such'; check its name"),
        ("json:", "json has no function ''"),
        ("math:pi", "math has no function 'pi'"),  # a number
        (":score", "no module ''; use path/to/file.py:function"),
        ("gold.py", "no module ''; use path/to/file.py:function"),  # the function is forgotten
        (".gold:score", "no module '.gold'; use path/to/file.py:function"),
        ("../gold:score", "no module '../gold'; use path/to/file.py:function"),
        ("", "no module ''"),
    ],
)
def test_a_path_that_leads_nowhere_is_one_clear_line(path, message):
    with pytest.raises(ConfigError) as error:
        load_function(path)
    assert message in str(error.value)
    assert repr(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_is_not_in_the_file(file):
    for name in ("scores", "constant"):
        with pytest.raises(ConfigError, match=f"gold.py has no function '{name}'; check its name"):
            load_function(f"{file}:{name}")


def test_what_a_users_module_lacks_is_not_hidden(tmp_path, monkeypatch):
    # The file is there; what it imports is not: its own traceback says more.
    (tmp_path / "lacks_something.py").write_text("import no_such_package_at_all")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        load_function(f"{tmp_path}/lacks_something.py:score")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all") as error:
        load_function("lacks_something:score")
    assert not isinstance(error.value, TetherError)
    sys.modules.pop("lacks_something", None)


def test_a_function_of_the_script_or_notebook_that_runs():
    code = "def score(p, c): return [7.0]\nfrom tether.functions import load_function\n"
    code += "print(load_function('__main__:score')([], []))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[7.0]\n"
