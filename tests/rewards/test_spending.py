import sqlite3
from contextlib import closing

import pytest

from tether.errors import DataError
from tether.rewards.spending import Ledger, Usage, at_most, request_key
from tether.servers import EndpointConfig

PRICES = EndpointConfig(price_input=2.5, price_output=10.0)


@pytest.fixture
def ledger(tmp_path):
    with closing(Ledger(tmp_path / "new" / "judge.db")) as opened:
        yield opened


def test_what_tokens_cost():
    # (1200 · 2.5 + 30 · 10)/10⁶ = (3000 + 300)/10⁶
    assert Usage(1200, 30).spent(PRICES) == (1230, pytest.approx(0.0033))


def test_a_token_is_a_byte_at_least():
    messages = [{"role": "system", "content": "käse"}, {"role": "user", "content": "猫"}]
    # 5 + 3 bytes, and 64 for the template and for each message
    assert at_most({"messages": messages}, 7) == (8 + 3 * 64, 7)


def test_a_key_is_of_everything_that_is_sent_and_of_nothing_else():
    body = {"model": "m", "messages": [{"role": "user", "content": "é"}], "seed": 1}
    keys = {
        request_key("u", body),
        request_key("v", body),
        request_key("u", {**body, "model": "n"}),
        request_key("u", {**body, "seed": 2}),
        request_key("u", {**body, "messages": []}),
        request_key("u", {**body, "temperature": 0}),
    }
    assert len(keys) == 6
    assert request_key("u", dict(reversed(body.items()))) == request_key("u", body)
    # printf '["u",{"a":1}]' | sha256sum
    known = "e2cdb2614c3eee3f04b61e2a16fe35c725367bbad82c01686166e087c6525be7"
    assert request_key("u", {"a": 1}) == known


def test_what_is_kept_is_found(ledger, tmp_path):
    assert ledger.find("k") is None
    assert ledger.keep("k", {"said": "é"}, Usage(3, 1), 0.5) == {"said": "é"}
    assert ledger.find("k") == {"said": "é"}
    with closing(Ledger(tmp_path / "new" / "judge.db")) as again:
        assert again.find("k") == {"said": "é"}
        assert again.spent == (4, 0.5)


def test_the_first_answer_counts_and_both_are_paid(ledger):
    ledger.keep("k", 1, Usage(3, 1), 0.5)
    assert ledger.keep("k", 2, Usage(5, 2), 0.25) == 1
    assert ledger.find("k") == 1
    assert ledger.spent == (11, 0.75)


def test_what_was_lost_is_paid_and_not_found(ledger):
    ledger.lose("k", Usage(3, 1), 0.5)
    ledger.lose("k", Usage(3, 1), 0.5)
    assert ledger.find("k") is None
    assert ledger.spent == (8, 1.0)
    assert ledger.keep("k", "A", Usage(1, 1), 0.0) == "A"
    assert ledger.find("k") == "A"


def test_answers_are_on_the_disk_before_they_are_used(ledger, tmp_path):
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert (tmp_path / "new" / "judge.db").stat().st_mode & 0o077 == 0


def test_a_file_that_cannot_be_written_is_one_line(ledger, monkeypatch, tmp_path):
    monkeypatch.setattr("tether.rewards.spending.BUSY_SECONDS", 0.01)
    with closing(Ledger(tmp_path / "new" / "judge.db")) as other:
        ledger._db.execute("BEGIN IMMEDIATE")
        with pytest.raises(DataError, match=r"judge\.db: an answer cannot be written \(.*locked"):
            other.keep("k", 1, Usage(1, 1), 0.0)
        ledger._db.execute("ROLLBACK")
        assert other.keep("k", 1, Usage(1, 1), 0.0) == 1


def test_a_folder_is_no_cache(tmp_path):
    with pytest.raises(DataError, match="cannot be opened as a cache"):
        Ledger(tmp_path)


def test_other_tables_are_left_alone(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        db.execute("CREATE TABLE calls (something TEXT)")
    with pytest.raises(DataError, match="cannot be used as a cache of answers"):
        Ledger(tmp_path / "a.db")
