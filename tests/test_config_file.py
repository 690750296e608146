import math
import tomllib
from dataclasses import dataclass, field
from typing import Literal

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from tether.config import EvaluateConfig, PPOConfig, SFTConfig
from tether.config_file import from_table, read_toml, set_dotted, to_table, toml_text
from tether.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rate: float = 0.5
    name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    out: str
    steps: int = 1
    shared: bool = False
    kind: Literal["linear", "cosine"] = "linear"
    betas: tuple[float, float] = (0.9, 0.95)
    stops: tuple[int, ...] = ()
    parts: tuple[Inner, ...] = ()
    inner: Inner = field(default_factory=Inner)


# --- from a table ---------------------------------------------------------------------------------


def test_a_table_becomes_settings():
    found = from_table(
        Settings,
        {
            "out": "x",
            "kind": "cosine",
            "betas": [0.8, 1],
            "stops": [3, 4],
            "parts": [{"rate": 2}, {"name": "b"}],
            "inner": {"rate": 1},
        },
    )
    assert found == Settings(
        out="x",
        kind="cosine",
        betas=(0.8, 1.0),
        stops=(3, 4),
        parts=(Inner(rate=2.0), Inner(name="b")),
        inner=Inner(rate=1.0),
    )
    assert type(found.inner.rate) is float  # a whole number will do where a number is wanted


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"step": 3}, "step=3 is not a setting; did you mean 'steps'?"),
        ({"inner": {"rat": 1}}, "inner.rat=1 is not a setting; did you mean 'rate'?"),
        (
            {"parts": [{}, {"names": "b"}]},
            "parts[1].names='b' is not a setting; did you mean 'name'?",
        ),
        ({"xyz": 1}, "xyz=1 is not a setting; known: out, steps, shared, kind, betas, stops, par"),
        ({"steps": "3"}, "steps='3' must be of type int, not str"),
        ({"steps": 3.0}, "steps=3.0 must be of type int, not float"),
        ({"steps": True}, "steps=True must be of type int, not bool"),
        ({"shared": 1}, "shared=1 must be of type bool, not int"),
        ({"inner": {"rate": True}}, "inner.rate=True must be of type float, not bool"),
        ({"inner": {"rate": "fast"}}, "inner.rate='fast' must be of type float, not str"),
        ({"inner": 3}, "inner=3 must be of type Inner, not int"),
        (
            {"kind": "cosin"},
            "kind='cosin' must be one of 'linear', 'cosine'; did you mean 'cosine'?",
        ),
        ({"betas": [0.9]}, "betas=[0.9] must have 2 entries"),
        ({"betas": 0.9}, "betas=0.9 must be of type tuple"),
        ({"betas": [0.9, "x"]}, "betas[1]='x' must be of type float, not str"),
        ({"stops": [1, 2.5]}, "stops[1]=2.5 must be of type int, not float"),
        ({"parts": [3]}, "parts[0]=3 must be of type Inner, not int"),
    ],
)
def test_what_a_table_may_not_hold(table, message):
    for where in ("", "ppo."):
        with pytest.raises(ConfigError) as error:
            from_table(Settings, {"out": "x", **table}, where)
        assert str(error.value).startswith(where + message)
        assert "\n" not in str(error.value)


def test_what_a_table_must_hold():
    with pytest.raises(ConfigError, match=r"^ppo.out is missing; Settings needs it$"):
        from_table(Settings, {"steps": 3}, "ppo.")


def test_settings_check_themselves():
    with pytest.raises(ConfigError, match=r"^batch_size=0 must be a number above 0$"):
        from_table(SFTConfig, {"out": "o", "model": "m", "data": "d", "batch_size": 0})


# --- there and back -------------------------------------------------------------------------------

PPO = {
    "out": "runs/ppo",
    "model": "m",
    "prompts": "p.jsonl",
    "rewards": [{"path": "r", "weight": 0.5}, {"path": "mine.py:f", "clip": 0}],
    "kl": {"beta": 0.1, "target": 6},
    "sampling": {"stop_token_ids": [3, 4], "temperature": 0.7},
    "optimizer": {"betas": [0.9, 0.99], "schedule": "cosine"},
}
EVALUATION = {
    "out": "o",
    "prompts": "p",
    "policies": [{"name": "a", "model": "x"}, {"name": "b", "model": "y", "best_of": 4}],
    "scorers": [{"name": "gold", "path": "gold.py:score"}],
    "compare": [["a", "b"]],
    "apart": ["new topic"],
}


@pytest.mark.parametrize(("cls", "table"), [(PPOConfig, PPO), (EvaluateConfig, EVALUATION)])
def test_settings_survive_a_toml_file(tmp_path, cls, table):
    config = from_table(cls, table)
    (tmp_path / "config.toml").write_text(toml_text(to_table(config)), encoding="utf-8")
    assert from_table(cls, read_toml(tmp_path / "config.toml")) == config
    # and every setting is in it, also those left as they are
    assert set(to_table(config)) == set(cls.__dataclass_fields__)


@given(
    st.builds(
        Settings,
        out=st.text(st.characters(codec="utf-8")),
        steps=st.integers(-(2**63), 2**63 - 1),
        shared=st.booleans(),
        kind=st.sampled_from(["linear", "cosine"]),
        betas=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
        stops=st.lists(st.integers(0, 99)).map(tuple),
        parts=st.lists(st.builds(Inner, rate=st.floats(allow_nan=False))).map(tuple),
        inner=st.builds(Inner, rate=st.floats(allow_nan=False), name=st.text("abc\"'\\\n#=")),
    )
)
def test_any_settings_survive(config):
    assert from_table(Settings, tomllib.loads(toml_text(to_table(config)))) == config


# --- files ----------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"no.toml does not exist; give the path of a TOML file"):
        read_toml(tmp_path / "no.toml")


@pytest.mark.parametrize("content", [b"seed = ", b"seed = 1\nseed = 2", b"name = '\xff'"])
def test_a_file_that_is_not_toml(tmp_path, content):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(DataError, match=r"bad.toml is not TOML: ") as error:
        read_toml(tmp_path / "bad.toml")
    assert "\n" not in str(error.value)


# --- overrides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-5", 1e-5),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('{path = "r"}', {"path": "r"}),
        ('"3"', "3"),
        ("inf", math.inf),
        ("cosine", "cosine"),  # not TOML, so a string
        ("runs/demo/ppo", "runs/demo/ppo"),
        ("stage:sft", "stage:sft"),
        ("", ""),
        ("True", "True"),  # TOML's is "true"; refused later, with its type
    ],
)
def test_an_override_is_a_toml_value_or_a_string(text, value):
    table = {}
    set_dotted(table, "kl.beta", text)
    assert table == {"kl": {"beta": value}}


def test_overrides_reach_into_tables_and_leave_the_rest():
    table = {"kl": {"beta": 0.1, "target": 6}, "steps": 3}
    set_dotted(table, "kl.beta", "0.2")
    set_dotted(table, "steps", "5")
    set_dotted(table, "sampling.max-new-tokens", "7")
    assert table == {
        "kl": {"beta": 0.2, "target": 6},
        "steps": 5,
        "sampling": {"max_new_tokens": 7},
    }


def test_an_override_does_not_reach_into_a_value():
    with pytest.raises(ConfigError, match=r"--steps.beta: 'steps' is a value, not a table"):
        set_dotted({"steps": 3}, "steps.beta", "0.2")


def test_what_is_written_is_plain_toml():
    assert toml_text({"a": 1, "b": {"c": "x"}}) == tomli_w.dumps({"a": 1, "b": {"c": "x"}})
    assert to_table(Inner(rate=0.25)) == {"rate": 0.25, "name": ""}
