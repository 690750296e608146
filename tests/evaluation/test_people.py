"""The block of blind human judgments."""

import pytest

from tether.errors import DataError
from tether.evaluation.people import people
from tether.feedback.assignment import Answer, next_assignment, submit
from tether.feedback.judgments import Item
from tether.feedback.people import local_person
from tether.feedback.store import Project, Store


def project(tmp_path, wins):
    """A project of pairs in which ann prefers ppo to sft where `wins` says so."""
    path = tmp_path / "blind.db"
    store = Store.create(path, Project(name="blind", mode="pair", num_labelers=1, repeat_share=0.0))
    keys = {f"p{i}": won for i, won in enumerate(wins)}
    store.add_items(
        Item(key=key, prompt=key, completions=["a", "b"], sources=["ppo", "sft"]) for key in keys
    )
    ann = local_person(store, "ann")
    while (given := next_assignment(store, ann.id)) is not None:
        first = given.completions[0] == "a"  # ppo's text stands first on the page
        ranks = [1.0, 2.0] if keys[given.prompt] == first else [2.0, 1.0]
        answer = Answer(
            assignment=given.id,
            submission=f"submission {given.prompt}",
            verdict="ranked",
            ranks=ranks,
            strength=2,
        )
        submit(store, ann.id, answer)
    return str(path)


def test_the_share_of_comparisons_that_people_gave_to_a_policy(tmp_path):
    block = people(project(tmp_path, [True, True, True, False]), ["sft", "ppo"], baseline="sft")
    (found,) = block.measures
    assert (found.name, found.policy, found.value.mean) == ("preferred to sft", "ppo", 0.75)
    assert found.value.low < 0.75 < found.value.high
    assert block.note.startswith("ppo: 4 comparisons on 4 prompts by 1 labeler, 0% ties.")


def test_a_project_about_others_is_refused(tmp_path):
    path = project(tmp_path, [True])
    with pytest.raises(DataError, match=r"no policy with the baseline 'base'; its sources are ppo"):
        people(path, ["base", "dpo"], baseline="base")
    with pytest.raises(DataError, match="no such project"):
        people(str(tmp_path / "other.db"), ["sft", "ppo"], baseline="sft")
