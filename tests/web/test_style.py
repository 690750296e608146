"""The colours of the one style sheet, in both schemes, by the contrast rule of WCAG 2."""

import re
from importlib.resources import files

import pytest

SHEET = (files("tether.web") / "static" / "tether.css").read_text(encoding="utf-8")

# Text needs 4.5:1 (AA), the edges of controls and the focus ring 3:1.
TEXT = [
    ("text", "ground"),
    ("text", "surface"),
    ("text", "sunken"),
    ("text", "accent-soft"),
    ("muted", "ground"),
    ("muted", "surface"),
    ("muted", "sunken"),
    ("accent", "ground"),
    ("accent", "surface"),
    ("accent", "accent-soft"),
    ("on-accent", "accent"),
    ("surface", "bad"),
    ("bad", "ground"),
    ("warn", "warn-soft"),
    *(("text", f"{kind}-{level}") for kind in ("more", "less") for level in (1, 2, 3)),
]
EDGES = [("edge", "surface"), ("edge", "ground"), ("accent", "ground"), ("accent", "surface")]


def scheme(name):
    """The colours of a scheme, by their task; dark ones replace light ones."""
    light, dark = re.findall(r":root \{(.*?)\}", SHEET, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", light))
    if name == "dark":
        colours.update(re.findall(r"--([\w-]+): (#\w{6});", dark))
    return colours


def luminance(colour):
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_the_rule_itself():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_contrast(name):
    colours = scheme(name)
    assert len(colours) >= 14
    for least, pairs in ((4.5, TEXT), (3.0, EDGES)):
        for front, back in pairs:
            ratio = contrast(colours[front], colours[back])
            assert ratio >= least, f"{front} on {back} in {name}: {ratio:.2f}"


def test_nothing_comes_from_elsewhere():
    assert not re.findall(r"url\(|@import|https?:", SHEET)
