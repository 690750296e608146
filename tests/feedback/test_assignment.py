import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tether.feedback.assignment as assignment_module
from tether.errors import DataError
from tether.feedback.assignment import Answer, assignment, next_assignment, submit, submit_and_next
from tether.feedback.judgments import Item, item_key
from tether.feedback.people import local_person
from tether.feedback.store import Project, Store

TEXTS = ["one", "two", "three"]


def make_store(folder, num_items=4, *, gold=None, **settings):
    off = {"repeat_share": 0.0, "gold_share": 0.0, "num_labelers": 2}
    store = Store.create(folder / "project.db", Project(name="test", **(off | settings)))
    size = {"rank": 3, "pair": 2, "thumbs": 1}[store.project.mode]
    store.add_items(make_item(f"p{i}", TEXTS[:size]) for i in range(num_items))
    if gold is not None:
        store.add_items([make_item("gold", TEXTS[:size], gold)])
    return store


def make_item(prompt, texts, gold=None):
    sources = ["a model"] * len(texts)
    key = item_key(prompt, texts)
    return Item(key=key, prompt=prompt, completions=list(texts), sources=sources, gold=gold)


def people(store, count):
    return [local_person(store, f"labeler {i}").id for i in range(count)]


def answer(number, ranks=(1.0, 2.0, 3.0), **changes):
    fields = {"assignment": number, "submission": f"submission {number}", "verdict": "ranked"}
    return Answer(**(fields | {"ranks": list(ranks) if ranks else None} | changes))


def judge(store, labeler, ranks=(1.0, 2.0, 3.0), **changes):
    """Take the next item and judge it; its prompt, or None where there is nothing left."""
    given = next_assignment(store, labeler)
    if given is None:
        return None
    submit(store, labeler, answer(given.id, ranks, **changes))
    return given.prompt


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told to."""
    now = [1000.0]
    monkeypatch.setattr(assignment_module.time, "time", lambda: now[0])
    return now


# --- handing out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "least", "active"])
def test_every_item_goes_to_its_number_of_labelers_and_never_twice_to_one(tmp_path, order):
    store = make_store(tmp_path, num_items=5, next_item=order)
    ann, bob, cem = people(store, 3)
    for labeler in [ann, bob, cem, ann, bob, cem, ann, bob, cem, ann, bob, cem, ann, bob, cem]:
        judge(store, labeler)
    pairs = [(judgment.item, judgment.labeler) for judgment in store.judgments()]
    assert len(pairs) == len(set(pairs)) == 10  # 5 items with 2 labelers
    assert set(Counter(item for item, _ in pairs).values()) == {2}
    assert all(next_assignment(store, labeler) is None for labeler in (ann, bob, cem))


def test_an_open_lease_is_given_again_unless_the_page_has_it(tmp_path):
    store = make_store(tmp_path)
    [ann] = people(store, 1)
    first = next_assignment(store, ann)
    assert next_assignment(store, ann).id == first.id
    second = next_assignment(store, ann, held=[first.id])
    assert second.id != first.id
    assert next_assignment(store, ann, held=[first.id]).id == second.id


def test_an_expired_lease_goes_to_another_and_a_late_judgment_is_kept(tmp_path, clock):
    store = make_store(tmp_path, num_items=1, num_labelers=1, lease_minutes=10.0)
    ann, bob = people(store, 2)
    late = next_assignment(store, ann)
    assert next_assignment(store, bob) is None
    clock[0] += 10 * 60 - 1
    assert next_assignment(store, bob) is None
    clock[0] += 2
    other = next_assignment(store, bob)
    assert other.prompt == late.prompt
    submit(store, bob, answer(other.id))
    submit(store, ann, answer(late.id))
    assert [judgment.labeler for judgment in store.judgments()] == ["labeler 1", "labeler 0"]


def test_whoever_let_a_lease_expire_may_get_the_item_again(tmp_path, clock):
    store = make_store(tmp_path, num_items=1)
    [ann] = people(store, 1)
    first = next_assignment(store, ann)
    clock[0] += 31 * 60
    assert next_assignment(store, ann).id == first.id
    assert store.read().execute("SELECT taken FROM items").fetchone()[0] == 1


@pytest.mark.parametrize("verdict", ["skipped", "flagged"])
def test_what_is_skipped_or_flagged_goes_to_another(tmp_path, verdict):
    store = make_store(tmp_path, num_items=1, num_labelers=1)
    ann, bob = people(store, 2)
    judge(store, ann, None, verdict=verdict, reason="nonsense")
    assert next_assignment(store, ann) is None
    assert judge(store, bob) == "p0"
    assert [judgment.labeler for judgment in store.judgments()] == ["labeler 1"]


def test_least_labeled_comes_first(tmp_path):
    store = make_store(tmp_path, num_items=3, num_labelers=3, next_item="least")
    ann, bob = people(store, 2)
    done = [judge(store, ann), judge(store, ann)]
    assert judge(store, bob) not in done


def test_active_takes_the_least_certain_first(tmp_path):
    store = make_store(tmp_path, num_items=3, next_item="active", random_share=0.0)
    store.set_uncertainties({item_key(f"p{i}", TEXTS): u for i, u in enumerate([0.2, 0.9, 0.5])})
    [ann] = people(store, 1)
    assert [judge(store, ann) for _ in range(3)] == ["p1", "p2", "p0"]


def test_control_items_go_to_everybody(tmp_path):
    store = make_store(tmp_path, num_items=1, num_labelers=1, gold=[1.0, 2.0, 3.0], gold_share=1.0)
    labelers = people(store, 3)
    assert [judge(store, labeler) for labeler in labelers] == ["gold"] * 3
    assert [judge(store, labeler) for labeler in labelers] == ["p0", None, None]


def test_a_repeat_comes_after_others_in_another_order_and_counts_for_no_one_else(tmp_path):
    store = make_store(tmp_path, num_items=20, num_labelers=1, repeat_share=1.0)
    [ann] = people(store, 1)
    prompts = [judge(store, ann) for _ in range(10)]
    # The first item is due once eight other judgments have followed its own.
    assert prompts[0] == prompts[9]
    assert len(set(prompts[:9])) == 9
    [first, again] = [j for j in store.judgments() if j.item == item_key(prompts[0], TEXTS)]
    assert (first.repeat, again.repeat) == (False, True)
    taken = store.read().execute("SELECT DISTINCT taken FROM items WHERE taken > 0").fetchall()
    assert [row[0] for row in taken] == [1]


def test_repeats_that_are_left_come_at_the_end(tmp_path):
    store = make_store(tmp_path, num_items=2, repeat_share=1.0)
    [ann] = people(store, 1)
    assert sorted(judge(store, ann) for _ in range(4)) == ["p0", "p0", "p1", "p1"]
    assert judge(store, ann) is None


def test_a_retired_item_is_shown_to_nobody(tmp_path):
    store = make_store(tmp_path, num_items=1)
    store.retire(item_key("p0", TEXTS), True)
    [ann] = people(store, 1)
    assert next_assignment(store, ann) is None
    store.retire(item_key("p0", TEXTS), False)
    assert judge(store, ann) == "p0"


def test_the_order_on_the_page_is_a_labelers_own_and_stays(tmp_path):
    store = make_store(tmp_path, num_items=40, num_labelers=9)
    ann, bob = people(store, 2)
    orders = {}
    for labeler in (ann, bob):
        given = [next_assignment(store, labeler) for _ in range(1)]
        while given[-1] is not None:
            again = assignment(store, labeler, given[-1].id)
            assert again.completions == given[-1].completions
            assert sorted(again.completions) == sorted(TEXTS)
            orders[labeler, again.prompt] = again.completions
            submit(store, labeler, answer(again.id))
            given.append(next_assignment(store, labeler))
    differ = [orders[ann, f"p{i}"] != orders[bob, f"p{i}"] for i in range(40)]
    # Of six orders two agree by chance in one of six; all 40 alike, or all 40 apart, are bugs.
    assert 20 < sum(differ) < 40
    first = Counter(order[0] for order in orders.values())
    assert min(first[text] for text in TEXTS) > 10  # of 80, about 27 each


def test_many_threads_hand_out_each_item_the_right_number_of_times(tmp_path):
    store = make_store(tmp_path, num_items=30, num_labelers=3)
    labelers = people(store, 8)
    errors = []

    def work(labeler):
        try:
            while judge(store, labeler) is not None:
                pass
        except Exception as error:
            errors.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=work, args=[labeler]) for labeler in labelers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    pairs = [(judgment.item, judgment.labeler) for judgment in store.judgments()]
    assert len(pairs) == len(set(pairs)) == 90
    assert set(Counter(item for item, _ in pairs).values()) == {3}


# --- taking a judgment ----------------------------------------------------------------------------


def test_ranks_by_place_become_ranks_by_completion(tmp_path):
    store = make_store(tmp_path)
    [ann] = people(store, 1)
    given = next_assignment(store, ann)
    # by text: whatever stands where, "one" is best, "two" fails, "three" is second
    wanted = {"one": 1.0, "two": None, "three": 2.0}
    submit(store, ann, answer(given.id, [wanted[text] for text in given.completions], seconds=4.5))
    [judgment] = store.judgments()
    assert judgment.ranks == [1.0, None, 2.0]
    assert [TEXTS[place] for place in judgment.shown] == given.completions
    assert judgment.seconds == 4.5
    again = assignment(store, ann, given.id)
    assert again.ranks == [wanted[text] for text in given.completions]
    assert again.verdict == "ranked"


def test_a_submission_that_arrives_twice_is_stored_once(tmp_path):
    store = make_store(tmp_path)
    ann, bob = people(store, 2)
    sent = answer(next_assignment(store, ann).id)
    assert submit(store, ann, sent) == submit(store, ann, sent)
    assert len(store.judgments()) == 1
    other = next_assignment(store, bob)
    with pytest.raises(DataError, match="is taken"):
        submit(store, bob, answer(other.id, submission=sent.submission))


def test_an_edit_supersedes_and_keeps_what_was_said_before(tmp_path):
    store = make_store(tmp_path)
    [ann] = people(store, 1)
    given = next_assignment(store, ann)
    submit(store, ann, answer(given.id, [1.0, 2.0, 3.0]))
    submit(store, ann, answer(given.id, [1.0, 1.0, 1.0], submission="the second"))
    submit(store, ann, answer(given.id, None, submission="the third", verdict="skipped"))
    assert store.judgments() == []
    rows = store.read().execute("SELECT id, verdict, supersedes FROM judgments").fetchall()
    assert [tuple(row) for row in rows] == [
        (1, "ranked", None),
        (2, "ranked", 1),
        (3, "skipped", 2),
    ]
    submit(store, ann, answer(given.id, [2.0, 1.0, 3.0], submission="the fourth"))
    assert len(store.judgments()) == 1
    assert store.read().execute("SELECT max(taken) FROM items").fetchone()[0] == 1


def test_submit_and_next_in_one_go(tmp_path):
    store = make_store(tmp_path, num_items=2)
    [ann] = people(store, 1)
    first = next_assignment(store, ann)
    saved, second = submit_and_next(store, ann, answer(first.id))
    assert saved == 1
    assert {first.prompt, second.prompt} == {"p0", "p1"}
    assert submit_and_next(store, ann, answer(second.id), held=[first.id]) == (2, None)
    with pytest.raises(DataError, match="is not yours"):
        submit_and_next(store, ann, answer(99))


def test_only_what_was_handed_out_to_oneself_can_be_read_or_judged(tmp_path):
    store = make_store(tmp_path, repeat_share=1.0, num_items=9)
    ann, bob = people(store, 2)
    mine = next_assignment(store, ann).id
    for forbidden in (
        lambda: assignment(store, bob, mine),
        lambda: submit(store, bob, answer(mine)),
    ):
        with pytest.raises(DataError, match=f"assignment={mine} is not yours"):
            forbidden()
    submit(store, ann, answer(mine))
    planned = store.read().execute("SELECT id FROM assignments WHERE repeat = 1").fetchone()[0]
    with pytest.raises(DataError, match="was not handed out"):
        submit(store, ann, answer(planned))
    assert len(store.judgments()) == 1


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("rank", {"ranks": [1.0, 2.0]}, "must hold 3 ranks"),
        ("rank", {"ranks": [1.0, 2.0, 4.0]}, "rank=4.0 must be a whole number from 1 to 3"),
        ("rank", {"ranks": [1.0, 2.0, 1.5]}, "rank=1.5 must be a whole number"),
        ("rank", {"ranks": [1.0, 2.0, float("nan")]}, "rank=nan must be a whole number"),
        ("rank", {"ranks": [0.0, 2.0, 1.0]}, "rank=0.0 must be a whole number"),
        ("rank", {"ranks": None}, "must hold 3 ranks"),
        ("rank", {"strength": 1}, "strength=1 belongs to pairwise projects"),
        ("pair", {"ranks": [1.0, 2.0]}, "strength=None must be 0 for equal"),
        ("pair", {"ranks": [1.0, 2.0], "strength": 0}, "strength=0 must be 0 for equal"),
        ("pair", {"ranks": [1.0, 1.0], "strength": 2}, "strength=2 must be 0 for equal"),
        ("thumbs", {"ranks": [2.0]}, "rank=2.0 must be a whole number from 1 to 1"),
        ("rank", {"verdict": "flagged", "ranks": None}, "must say what is wrong"),
        ("rank", {"verdict": "skipped"}, "must be absent"),
        ("rank", {"seconds": -1.0}, "seconds=-1.0 must be"),
        ("rank", {"submission": "short"}, "submission='short' must have 8 to 64"),
        ("rank", {"verdict": "skipped", "ranks": None, "reason": "x" * 2001}, "2001 characters"),
    ],
)
def test_an_answer_that_breaks_a_rule_is_refused_and_nothing_is_stored(
    tmp_path, mode, changes, message
):
    store = make_store(tmp_path, mode=mode)
    [ann] = people(store, 1)
    given = next_assignment(store, ann)
    ranks = [1.0, 2.0, 3.0][: len(given.completions)]
    with pytest.raises(DataError) as error:
        submit(store, ann, answer(given.id, **({"ranks": ranks} | changes)))
    assert message in str(error.value)
    assert store.read().execute("SELECT count(*) FROM judgments").fetchone()[0] == 0


@pytest.mark.parametrize(
    ("mode", "ranks", "strength"),
    [
        ("rank", [1.0, 1.0, None], None),
        ("rank", [None, None, None], None),
        ("pair", [2.0, 1.0], 3),
        ("pair", [1.0, 1.0], 0),
        ("pair", [None, None], 0),
        ("pair", [1.0, None], 1),
        ("thumbs", [1.0], None),
        ("thumbs", [None], None),
    ],
)
def test_every_mode_takes_its_answers(tmp_path, mode, ranks, strength):
    store = make_store(tmp_path, mode=mode)
    [ann] = people(store, 1)
    given = next_assignment(store, ann)
    submit(store, ann, answer(given.id, ranks, strength=strength))
    again = assignment(store, ann, given.id)
    assert (again.ranks, again.strength) == (ranks, strength)


ACTS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["take", "rank", "skip", "late"])), max_size=40
)


@settings(max_examples=30, deadline=None)
@given(acts=ACTS, num_labelers=st.integers(1, 3))
def test_whatever_happens_the_count_of_takers_is_right(tmp_path_factory, acts, num_labelers):
    folder = tmp_path_factory.mktemp("store")
    store = make_store(folder, num_items=3, num_labelers=num_labelers)
    labelers = people(store, 3)
    for step, (who, act) in enumerate(acts):
        given = next_assignment(store, labelers[who])
        if given is None:
            continue
        if act == "late":
            with store.write() as db:
                db.execute("UPDATE assignments SET expires = 0 WHERE id = ?", (given.id,))
        if act in ("rank", "late"):
            submit(store, labelers[who], answer(given.id, submission=f"submission {step}"))
        if act == "skip":
            skip = answer(given.id, None, submission=f"submission {step}", verdict="skipped")
            submit(store, labelers[who], skip)
    counted = store.read().execute(
        "SELECT i.taken, i.needed, (SELECT count(*) FROM assignments AS a WHERE a.item = i.id AND "
        "a.repeat = 0 AND a.state IN ('leased', 'done')) FROM items AS i"
    )
    for taken, needed, present in counted:
        assert taken == present <= needed
