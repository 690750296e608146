import pytest

from tests.constitution import toys
from tether.constitution.principles import read_constitution
from tether.constitution.transcripts import critique_prompt, revision_prompt


@pytest.fixture
def constitution(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(toys.CONSTITUTION)
    return read_constitution(file)


def test_a_string_goes_on_as_a_string(constitution):
    kindness, size = constitution.principles
    assert critique_prompt(constitution, "the cat", " sees", kindness) == (
        "the cat sees ask rude critique"
    )
    assert revision_prompt(constitution, "the cat", " sees", kindness, " yes") == (
        "the cat sees ask rude critique yes ask kind revision"
    )
    assert revision_prompt(constitution, "the cat", " sees", size) == (
        "the cat sees ask small revision"
    )
    assert critique_prompt(constitution, "the cat", " sees", kindness, constitution.examples) == (
        "the dog : no ask rude critique yes rude ask kind revision please \n "
        "the cat sees ask rude critique"
    )


def test_messages_go_on_as_turns(constitution):
    kindness, _ = constitution.principles
    prompt = [{"role": "system", "content": "be"}, {"role": "user", "content": "the cat"}]
    system, user = prompt
    assert critique_prompt(constitution, prompt, " sees ", kindness) == [
        system,
        user,
        {"role": "assistant", "content": "sees"},
        {"role": "user", "content": "rude"},
    ]
    found = revision_prompt(constitution, prompt, "sees", kindness, "yes", constitution.examples)
    assert [message["content"] for message in found] == [
        *("be", "the dog", "no", "rude", "yes rude", "kind", "please"),
        *("the cat", "sees", "rude", "yes", "kind"),
    ]
    assert [message["role"] for message in found] == ["system", *["user", "assistant"] * 5, "user"]
