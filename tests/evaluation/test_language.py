"""Answers in the language of their prompt."""

import importlib.util

import pytest

from tests.evaluation.made_up import sample
from tether.errors import ConfigError
from tether.evaluation.language import languages, load_detector

needs_detector = pytest.mark.skipif(
    importlib.util.find_spec("py3langid") is None, reason="needs the extra `language`"
)
TEXTS = {
    "en": ["How do I make a good cup of tea?", "Boil the water, then pour it over the leaves."],
    "de": ["Wie koche ich eine gute Tasse Tee?", "Koche Wasser und gieße es über die Blätter."],
    "fr": ["Comment faire une bonne tasse de thé ?", "Faites bouillir l'eau, puis versez-la."],
    "es": ["¿Cómo se prepara una buena taza de té?", "Hierve el agua y viértela sobre las hojas."],
    "it": ["Come si prepara una buona tazza di tè?", "Fai bollire l'acqua e versala sulle foglie."],
    "pt": ["Como se prepara uma boa xícara de chá?", "Ferva a água e despeje sobre as folhas."],
    "nl": ["Hoe zet ik een goede kop thee?", "Kook het water en giet het over de blaadjes."],
    "sv": ["Hur gör man en god kopp te?", "Koka vattnet och häll det över bladen."],
    "pl": ["Jak zaparzyć dobrą herbatę?", "Zagotuj wodę i zalej nią liście."],
    "tr": ["İyi bir çay nasıl yapılır?", "Suyu kaynatın ve yaprakların üzerine dökün."],
    "ru": ["Как правильно заварить хороший чай?", "Вскипятите воду и залейте ею листья."],
    "zh": ["怎么泡一杯好茶？", "把水烧开，然后倒在茶叶上。"],
    "ja": ["おいしいお茶の入れ方を教えてください。", "お湯を沸かして茶葉に注ぎます。"],
    "ko": ["맛있는 차를 어떻게 끓이나요?", "물을 끓여서 찻잎 위에 부으세요."],
    "ar": ["كيف أصنع كوبا جيدا من الشاي؟", "اغل الماء ثم صبه فوق الأوراق."],
    "hi": ["अच्छी चाय कैसे बनाते हैं?", "पानी उबालें और उसे पत्तियों पर डालें।"],
}


def of_script(text):
    """A stand-in: capitals are one language, small letters another, digits none."""
    return "" if not text or text[0].isdigit() else "up" if text.isupper() else "low"


def block(detect=of_script, prompts=("a", "B", "1"), **answers):
    rows = [
        sample(policy=policy, prompt_index=i, sample_index=j, prompt=prompts[i], completion=text)
        for policy, each in answers.items()
        for i, texts in enumerate(each)
        for j, text in enumerate(texts)
    ]
    return languages(rows, detect, baseline="sft")


def figures(block):
    return {(each.name, each.policy): each for each in block.measures}


def test_shares_of_prompts_that_have_a_language():
    made = block(sft=[["x", "Y"], ["Y", "7"], ["x", "x"]], ppo=[["x", "x"], ["x", "x"], ["Y", "Y"]])
    found = figures(made)
    # sft: right 1/2, 1/2; wrong 1/2, 0 (a digit is neither). ppo: right 1, 0; wrong 0, 1.
    assert found["in the prompt's language", "sft"].value.mean == 0.5
    assert found["in another language", "sft"].value.mean == 0.25
    assert found["in the prompt's language", "ppo"].difference.mean == 0.0
    assert found["in another language", "ppo"].difference.mean == 0.25
    assert made.note.startswith("2 of 3 prompts are in a language")
    assert "low 1, up 1" in made.note
    assert [(row["languages"], row["completion"]) for row in made.examples] == [
        ("low → up", "Y"),
        ("up → low", "x"),
        ("up → low", "x"),
    ]


def test_languages_with_many_prompts_have_a_figure_of_their_own():
    prompts = ["a"] * 10 + ["B"] * 9
    made = block(prompts=prompts, sft=[["x"]] * 5 + [["Y"]] * 14)
    found = figures(made)
    assert found["asked in low, answered in it", "sft"].value.mean == 0.5
    assert len({each.name for each in made.measures}) == 3


def test_of_a_conversation_the_last_question_counts():
    chat = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "c"},
    ]
    found = figures(block(prompts=[chat], sft=[["x"]]))
    assert found["in the prompt's language", "sft"].value.mean == 1.0


def test_no_prompt_with_a_language():
    made = block(prompts=("1",), sft=[["x"]])
    assert made.measures == []
    assert made.note.startswith("0 of 1 prompts")
    assert "(none)" in made.note


def test_without_the_detector_the_mend_is_told(monkeypatch):
    load_detector.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs py3langid; pip install 'tether\[language\]'"):
        load_detector()


@needs_detector
def test_sixteen_languages_are_told_apart():
    detect = load_detector()
    found = {language: [detect(text) for text in texts] for language, texts in TEXTS.items()}
    assert found == {language: [language] * 2 for language in TEXTS}


@needs_detector
@pytest.mark.parametrize("text", ["", "42", "!!!", "Paris", "x = 3 + 4"])
def test_what_has_no_language_is_not_guessed(text):
    assert load_detector()(text) == ""


@needs_detector
def test_an_answer_in_english_to_everything():
    prompts = [texts[0] for texts in TEXTS.values()]
    right = [[texts[1]] for texts in TEXTS.values()]
    english = [[TEXTS["en"][1]]] * len(TEXTS)
    found = figures(block(load_detector(), prompts, sft=right, ppo=english))
    assert found["in the prompt's language", "sft"].value.mean == 1.0
    assert found["in the prompt's language", "ppo"].value.mean == 1 / 16
    assert found["in another language", "ppo"].value.mean == 15 / 16
