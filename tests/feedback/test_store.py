import shutil
import sqlite3
import stat
import threading
import time

import pytest

import tether.feedback.store as store_module
from tether.errors import DataError
from tether.feedback.assignment import next_assignment
from tether.feedback.people import by_id, by_token, everybody, invite, local_person, revoke
from tether.feedback.store import Project, Store

from .test_assignment import TEXTS, judge, make_item, make_store, people


def test_a_project_comes_back_as_it_was_made(tmp_path):
    project = Project(name="a", mode="pair", criterion="brief", num_labelers=4, seed=7)
    Store.create(tmp_path / "new" / "a.db", project, "Read *all*.").close()
    store = Store(tmp_path / "new" / "a.db")
    assert store.project == project
    assert store.instructions() == (1, "Read *all*.")
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_a_new_text_of_the_instructions_is_a_new_version(tmp_path):
    store = make_store(tmp_path)
    [ann] = people(store, 1)
    judge(store, ann)
    assert store.set_instructions("second") == 2
    assert store.set_instructions("second") == 2
    judge(store, ann)
    rows = store.read().execute("SELECT instructions FROM judgments ORDER BY id")
    assert [row[0] for row in rows] == [1, 2]


def test_importing_twice_adds_nothing(tmp_path):
    store = make_store(tmp_path, num_items=2)
    assert store.add_items([make_item("p0", TEXTS), make_item("p9", TEXTS)]) == 1
    assert [item.prompt for item in store.items().values()] == ["p0", "p1", "p9"]


def test_judgments_are_append_only(tmp_path):
    store = make_store(tmp_path)
    [ann] = people(store, 1)
    judge(store, ann)
    for statement in ("UPDATE judgments SET reason = 'x'", "DELETE FROM judgments"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"), store.write() as db:
            db.execute(statement)
    assert len(store.judgments()) == 1


def test_a_transaction_that_fails_leaves_nothing(tmp_path):
    store = make_store(tmp_path)
    wrong = "INSERT INTO instructions VALUES (1, '', 0)"  # version 1 is there
    with pytest.raises(sqlite3.IntegrityError), store.write() as db:
        _ = [db.execute(statement) for statement in ("UPDATE items SET retired = 1", wrong)]
    assert store.read().execute("SELECT sum(retired) FROM items").fetchone()[0] == 0
    assert store.read().execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_work_in_one_transaction_fails_and_succeeds_apart(tmp_path):
    """Three threads wait while a fourth writes; one sync takes all, and one mistake is undone."""
    store = make_store(tmp_path)
    insert = "INSERT INTO instructions VALUES (?, '', 0)"
    results, syncs = {}, []

    def add(version, then):
        def work(db):
            db.execute(insert, (version,))
            return then()

        try:
            results[version] = store.transact(work)
        except ZeroDivisionError as error:
            results[version] = error

    threads = [
        threading.Thread(target=add, args=[2, lambda: "two"]),
        threading.Thread(target=add, args=[3, lambda: 1 / 0]),
        threading.Thread(target=add, args=[4, lambda: "four"]),
    ]
    with store._writing:
        for thread in threads:
            thread.start()
        while len(store._waiting) < 3:
            time.sleep(0.001)
        store.read().set_trace_callback(lambda sql: syncs.append(sql == "COMMIT"))
        store._commit_together()
    for thread in threads:
        thread.join()
    assert (results[2], results[4]) == ("two", "four")
    assert isinstance(results[3], ZeroDivisionError)
    versions = [row[0] for row in store.read().execute("SELECT version FROM instructions")]
    assert versions == [1, 2, 4]
    assert sum(syncs) == 1


def test_a_locked_or_full_database_is_told_to_each_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.01)
    store = make_store(tmp_path)
    [ann] = people(store, 1)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        next_assignment(store, ann)
    other.execute("ROLLBACK")
    other.close()
    [pages] = store.read().execute("PRAGMA page_count").fetchone()
    store.read().execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.transact(
            lambda db: db.execute("INSERT INTO instructions VALUES (2, ?, 0)", ["x" * 9999])
        )
    store.read().execute("PRAGMA max_page_count = 100000")
    assert store.instructions()[0] == 1
    assert judge(store, ann) is not None


def test_judgments_of_some_people_or_groups(tmp_path):
    store = make_store(tmp_path, num_items=1, num_labelers=3)
    for name, group in [("ann", "one"), ("bob", "two"), ("cem", "one")]:
        judge(store, local_person(store, name, group=group).id)
    names = lambda **only: [judgment.labeler for judgment in store.judgments(**only)]  # noqa: E731
    assert names() == ["ann", "bob", "cem"]
    assert names(labelers=["cem"]) == ["cem"]
    assert names(groups=["one"]) == ["ann", "cem"]
    assert names(labelers=["ann", "bob"], groups=["one"]) == ["ann"]
    with pytest.raises(DataError, match=r"labeler='dan' is not in .*; known: \['ann', 'bob'"):
        names(labelers=["dan"])
    with pytest.raises(DataError, match="group='three' is not in"):
        names(groups=["three"])


def test_what_is_no_project_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such project; make one with `tether feedback import"):
        Store(tmp_path / "missing.db")
    (tmp_path / "text.db").write_text("no database")
    with pytest.raises(DataError, match="no feedback project can be read"):
        Store(tmp_path / "text.db")
    with pytest.raises(DataError, match=r"must be a file name that ends in \.db"):
        Store.create(tmp_path / "project", Project(name="x"))
    make_store(tmp_path)
    with pytest.raises(DataError, match="exists"):
        make_store(tmp_path)


def test_an_older_or_newer_file(tmp_path):
    store = make_store(tmp_path)
    with store.write() as db:
        db.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(DataError, match="made by a newer tether"):
        Store(store.path)


def test_a_copy_made_while_it_is_open_is_whole(tmp_path):
    """WAL: the backup of SQLite's own sees every committed judgment."""
    store = make_store(tmp_path)
    [ann] = people(store, 1)
    judge(store, ann)
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        store.read().backup(copy)
    copy.close()
    assert len(Store(tmp_path / "copy.db").judgments()) == 1
    shutil.rmtree(tmp_path)


# --- people ---------------------------------------------------------------------------------------


def test_an_invitation_lets_in_until_it_is_revoked(tmp_path):
    store = make_store(tmp_path)
    token = invite(store, "ann", group="one")
    ann = by_token(store, token)
    assert (ann.name, ann.group, ann.role) == ("ann", "one", "labeler")
    assert by_token(store, token[:-1] + "!") is None
    assert by_id(store, ann.id) == ann
    revoke(store, "ann")
    assert by_token(store, token) is None
    assert by_id(store, ann.id) is None
    assert [person.revoked for person in everybody(store)] == [True]


def test_a_new_invitation_replaces_the_old_one_and_its_sessions(tmp_path):
    store = make_store(tmp_path)
    old = invite(store, "ann", group="one")
    before = by_token(store, old)
    after = by_token(store, invite(store, "ann"))
    assert by_token(store, old) is None
    assert (after.id, after.group) == (before.id, "one")
    assert after.stamp != before.stamp


def test_the_token_itself_is_nowhere_in_the_file(tmp_path):
    store = make_store(tmp_path)
    token = invite(store, "ann")
    store.read().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert token.encode() not in store.path.read_bytes()


@pytest.mark.parametrize("name", ["", "   ", "x" * 81])
def test_a_person_needs_a_name(tmp_path, name):
    with pytest.raises(DataError, match="must have 1 to 80 characters"):
        invite(make_store(tmp_path), name)


def test_nobody_has_two_roles(tmp_path):
    store = make_store(tmp_path)
    invite(store, "ann", role="administrator")
    with pytest.raises(DataError, match="name='ann' is taken by the administrator"):
        invite(store, "ann")
    with pytest.raises(DataError, match="name='bob' is nobody"):
        revoke(store, "bob")
